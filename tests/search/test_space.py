import numpy as np
import pytest

from mixtune.config import load_config, parse
from mixtune.errors import InputError
from mixtune.regime import published
from mixtune.search.domains import Uniform
from mixtune.search.space import NEGLIGIBLE, Space
from tests.conftest import TINY

FILES = ["digits", "cifar10", "cifar100", "imagenet", "folder"]
STRIDE = {"imagenet": 32, "folder": 32}


@pytest.mark.parametrize("name", FILES)
def test_published_regimes_are_points_of_every_shipped_space(name):
    space = load_config(f"search_spaces/{name}.yaml", Space)
    stride = STRIDE.get(name, 4)
    for family in space.published:
        found = space.regime(space.published_params(family, stride), family)
        expected = published(family, space.base, sorted(space.search.sizes), stride)
        assert found.shapes == expected.shapes
        assert [ph.share for ph in found.phases] == pytest.approx([ph.share for ph in expected.phases])
        for mine, theirs in zip(found.phases, expected.phases, strict=True):
            assert mine.mixture.shapes == theirs.mixture.shapes
            assert mine.mixture.p == pytest.approx(theirs.mixture.p)


@pytest.mark.parametrize("seed", range(30))
def test_every_point_is_a_regime_that_spends_the_base_pixels(seed):
    space = load_config("search_spaces/imagenet.yaml", Space)
    params = space.suggest(Uniform(seed))
    regime = space.regime(params)
    assert set(regime.sizes) == {S for S in space.search.sizes if params[f"w_{S}"] >= NEGLIGIBLE}
    for shape in regime.shapes:
        assert abs(shape.pixels / space.base.pixels - 1) <= 0.5 / shape.B


def test_growth_orders_sizes_and_keeps_their_shares():
    space = parse(TINY, Space, "tiny")
    point = {"w_4": 0.2, "w_8": 0.3, "w_12": 0.5, "split": 1.0}
    none, gradual, stepwise = (space.regime(point | {"growth": g}) for g in ("none", "gradual", "stepwise"))
    assert [ph.mixture.shapes[0].S for ph in gradual.phases] == [4, 8, 12]
    assert [ph.share for ph in gradual.phases] == pytest.approx(none.phases[0].mixture.p)
    assert [[s.S for s in ph.mixture.shapes] for ph in stepwise.phases] == [[4], [8, 12]]
    assert [ph.share for ph in stepwise.phases] == pytest.approx([0.2, 0.8])


def test_all_negligible_weights_leave_the_largest():
    space = parse(TINY, Space, "tiny")
    regime = space.regime({"w_4": 0.01, "w_8": 0.04, "w_12": 0.0, "split": 0.5, "growth": "none"})
    assert regime.sizes == (8,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trails": 3}, "unknown key trails; did you mean 'trials'?"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"trials": "ten"}, "trials must be a valid integer, not 'ten'"),
        ({"search": {"sizes": [8, 8]}}, "search: sizes must be different"),
        ({"search": {"sizes": [8], "split": {"low": 1, "high": 0}}}, "search.split: low must be at most high"),
        ({"search": {"sizes": [8], "split": {"low": 0, "high": 2}}}, "search: split must lie in"),
        ({"search": {"sizes": [8], "growth": ["sudden"]}}, "search: growth must be one or several of none, gradual"),
        ({"published": ["mixsize_c"]}, "unknown regime 'mixsize_c'; did you mean"),
        ({"base": {"S": 0, "B": 4}}, "base: S must be a whole number of at least 1"),
        ({"budget": {"epochs": -1}}, "budget: epochs must be positive"),
        ({"recipe": {"lr": 0}}, "recipe: lr must be positive"),
        ({"score": {"measure": "top1", "S": 99}}, "score.S is 99, which is not among evaluate.sizes"),
        ({"task": {"dataset": "mnist", "network": "resnet18"}}, "task.dataset must be 'digits'"),
        ({"study": "a/b"}, "study names the folder"),
        ({"resources": {"gpus": 1.5}}, "resources: gpus must be a share in"),
    ],
)
def test_mistakes_are_one_sentence(tiny, change, message):
    with pytest.raises(InputError) as error:
        parse(tiny | change, Space, "space.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_published_regime_outside_the_space_is_refused_with_the_remedy(tiny):
    tiny["search"] = {"sizes": [8, 12]}
    space = parse(tiny | {"base": {"S": 16, "B": 8}}, Space, "f")
    with pytest.raises(
        ValueError, match=r"mixsize_b at base 16 px trains on 8, 12, 16, 24 px; add 16, 24 to search.sizes"
    ):
        space.published_params("mixsize_b", 4)
    tiny["search"] = {"sizes": [4, 8, 12], "growth": ["none"]}
    with pytest.raises(ValueError, match=r"gradual has growth stepwise, which search\.growth does not allow"):
        parse(tiny, Space, "f").published_params("gradual", 4)


def test_digest_tells_fidelities_apart(tiny):
    kinds = [{"kind": "truncate"}, {}, {"rungs": 4}, {"factor": 4}]
    digests = [parse(tiny | {"fidelity": kind}, Space, "f").digest() for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert parse(tiny | {"fidelity": {"kind": "compress"}}, Space, "f").digest() == digests[1]


def test_digest_ignores_what_does_not_change_scores(tiny):
    one = parse(tiny, Space, "f").digest()
    assert parse(tiny | {"trials": 9, "resources": {"cpus": 2}}, Space, "f").digest() == one
    assert parse(tiny | {"budget": {"epochs": 2}}, Space, "f").digest() != one


@pytest.mark.parametrize("name", ["digits", "cifar10", "imagenet"])
def test_the_shapes_of_a_space_are_those_its_candidates_have(name):
    space = load_config(f"search_spaces/{name}.yaml", Space)
    known = set(space.shapes())
    assert {space.base.resized(S, split) for S in space.search.sizes for split in np.linspace(0, 1, 101)} <= known
    for seed in range(50):
        assert set(space.regime(space.suggest(Uniform(seed))).shapes) <= known
