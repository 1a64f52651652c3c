import pytest

from mixtune.config import parse, to_plain
from mixtune.errors import InputError
from mixtune.regime import PUBLISHED, BatchShape, published
from mixtune.regime.files import load_regime, save_regime
from mixtune.search.domains import Range, Uniform
from mixtune.search.space import Space
from tests.conftest import TINY

ALL = TINY | {"base": {"S": 16, "B": 32}, "search": {"sizes": [8, 12, 16, 20, 24]}, "published": []}


def space(**search):
    return parse(ALL | {"search": ALL["search"] | search}, Space, "f")


@pytest.mark.parametrize("seed", range(40))
def test_a_regime_becomes_its_point_again(seed):
    s = space(growth=["none", "gradual", "stepwise", "window"])
    params = s.suggest(Uniform(seed))
    regime = s.regime(params)
    again = s.regime(s.point(regime))
    if params["growth"] == "window":  # a window passes all sizes alike: weights are not to be seen in it exactly
        assert again.sizes == regime.sizes
        assert len(again.phases) in (1, len(regime.phases))
        return
    assert again.shapes == regime.shapes
    assert [ph.share for ph in again.phases] == pytest.approx([ph.share for ph in regime.phases])
    for mine, theirs in zip(again.phases, regime.phases, strict=True):
        assert mine.mixture.p == pytest.approx(theirs.mixture.p)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_regime_is_a_point(name):
    s = space(growth=["none", "gradual", "stepwise", "window"])
    found, expected = s.regime(s.published_params(name, 4)), published(name, s.base, s.search.sizes, 4)
    assert found.shapes == expected.shapes
    assert found.clock == expected.clock
    assert [ph.mixture.p for ph in found.phases] == [pytest.approx(ph.mixture.p) for ph in expected.phases]


def test_a_value_is_fixed_a_list_is_a_choice_a_mapping_is_a_range():
    s = space(
        split=1,
        growth="none",
        weights={8: 0, 24: [0, 0.5]},
        recipe={"lr": {"low": 0.01, "high": 0.1, "log": True}, "smoothing": [True, False]},
    )
    drawn = [s.suggest(Uniform(i)) for i in range(200)]
    assert {d["split"] for d in drawn} == {1}
    assert {d["growth"] for d in drawn} == {"none"}
    assert {d["w_8"] for d in drawn} == {0}
    assert {d["w_24"] for d in drawn} == {0, 0.5}
    assert {d["recipe.smoothing"] for d in drawn} == {True, False}
    rates = sorted(d["recipe.lr"] for d in drawn)
    assert 0.01 <= rates[0] < rates[100] < 0.045 < rates[-1] <= 0.1  # the median of a range in the logarithm: 0.032
    assert all(8 not in s.regime(d).sizes for d in drawn)
    recipe = s.recipe_of(drawn[0])
    assert (recipe.lr, recipe.smoothing) == (drawn[0]["recipe.lr"], drawn[0]["recipe.smoothing"])


def test_a_written_space_is_read_as_it_was():
    s = space(split=[0, 1], weights={8: {"low": 0.1, "high": 0.2}}, recipe={"weight_decay": 1e-4})
    assert parse(to_plain(s), Space, "f") == s
    assert parse(to_plain(s), Space, "f").search.weights == {8: Range(0.1, 0.2)}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"weights": {9: 1}}, "weights has 9 px, which is not among sizes"),
        ({"weights": {8: 2}}, "weights.8 must lie in [0, 1], not 2"),
        ({"split": []}, "search.split: give a value, a list of values or {low: ..., high: ...}, not []"),
        ({"split": {"low": 0}}, "search.split: a range is {low: ..., high: ...}"),
        ({"split": [1, 1]}, "the values of a list must differ"),
        ({"growth": {"low": 0, "high": 1}}, "growth must be one or several of none"),
        ({"recipe": {"lrr": 1}}, "recipe: unknown key lrr; did you mean 'lr'?"),
        ({"recipe": {"lr": [0.1, -1]}}, "recipe: lr must be positive, not -1"),
        ({"recipe": {"smoothing": [1, 0]}}, "recipe: smoothing must be a bool, not 1"),
        ({"recipe": {"lr": {"low": 0, "high": 1, "log": True}}}, "a range in the logarithm starts above 0"),
    ],
)
def test_mistakes_are_one_sentence(search, message):
    with pytest.raises(InputError) as error:
        space(**search)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_known_regime_is_carried_to_this_base(tmp_path):
    save_regime(tmp_path / "found.yaml", published("mixsize_d", BatchShape(32, 64), [16, 24, 32, 48], 4))
    s = parse(ALL | {"known": [str(tmp_path / "found.yaml")]}, Space, "f")
    (point,) = s.known_points(4).values()
    assert s.regime(point).shapes == published("mixsize_d", s.base, s.search.sizes, 4).shapes
    save_regime(
        tmp_path / "found.yaml", load_regime(tmp_path / "found.yaml")[0], {"recipe": {"lr": 0.2, "momentum": 0.5}}
    )
    recipe = {"lr": {"low": 0.1, "high": 0.3}, "momentum": [0.8, 0.9]}
    searched = parse(ALL | {"known": s.known, "search": {"sizes": list(s.search.sizes), "recipe": recipe}}, Space, "f")
    (point,) = searched.known_points(4).values()
    assert (point["recipe.lr"], point["recipe.momentum"]) == (0.2, 0.9)  # as it was trained, where the space has that
    narrow = parse(ALL | {"known": s.known, "search": {"sizes": [8, 16]}}, Space, "f")
    with pytest.raises(ValueError, match=r"add 12, 24 to search\.sizes"):
        narrow.known_points(4)
