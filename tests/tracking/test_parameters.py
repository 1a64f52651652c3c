import pytest

from mixtune.config import parse, to_plain
from mixtune.errors import InputError
from mixtune.evaluation.score import Score
from mixtune.regime import BatchShape
from mixtune.search.candidates import Search, suggest
from mixtune.search.domains import Uniform
from mixtune.tracking import parameters

SEARCHES = [
    {"sizes": [8, 12]},
    {"sizes": [8, 128], "split": 1, "growth": "none"},
    {"sizes": [8, 12], "split": [0, 0.5, 1], "growth": ["none", "window"], "weights": {8: 0.3, 12: [0.1, 0.2]}},
    {
        "sizes": [8],
        "split": {"low": 0.1, "high": 1 / 3},
        "weights": {8: {"low": 0.25, "high": 1}},
        "recipe": {
            "lr": {"low": 1e-3, "high": 0.1, "log": True},
            "smoothing": [True, False],
            "schedule": ["cosine", "sgdr"],
            "cycles": [1, 2],
        },
    },
]


@pytest.fixture(params=SEARCHES, ids=["usual", "values", "lists", "ranges"])
def search(request):
    return parse(request.param, Search, "f")


def test_a_section_is_read_as_it_was_written(search):
    written = parameters.settings("search", to_plain(search))
    assert all(isinstance(v, str) for v in written.values())
    assert parameters.section({**written, "searched": "x", "base.S": "8"}, "search", Search, "f") == search


@pytest.mark.parametrize("value", [BatchShape(8, 32, 2), Score(), Score("top1", 224)])
def test_other_sections_too(value):
    written = parameters.settings("x", to_plain(value))
    assert parameters.section(written, "x", type(value), "f") == value


def test_a_setting_of_none_is_one_that_is_left_out():
    assert parameters.section({"score.measure": "mean", "score.S": "None"}, "score", Score, "f") == Score("mean")


def test_a_section_that_is_not_there_is_one_sentence():
    with pytest.raises(InputError, match="the parent run: search: sizes is missing"):
        parameters.section({"base.S": "8"}, "search", Search, "the parent run")
    with pytest.raises(InputError, match="the parent run: search: unknown key size"):
        parameters.section({"search.size": "[8]", "search.sizes": "[8]"}, "search", Search, "the parent run")


def test_a_point_is_read_to_the_bit_and_shown_with_four_digits(search):
    for seed in range(20):
        point = suggest(search, Uniform(seed))
        shown = parameters.point(point, 3)
        assert all(len(v) <= 9 for v in shown.values())
        assert shown.keys() == {f"w_{int(k[2:]):03d}" if k.startswith("w_") else k for k in point}
        found = parameters.read_point({parameters.POINT: parameters.exact(point)}, shown, search, "f")
        assert found == point
        assert [type(v) for v in found.values()] == [type(v) for v in point.values()]


def test_the_point_of_an_older_study_is_read_from_its_parameters(search):
    """Ranges to four digits and never outside the range; choices as the values they are."""
    for seed in range(20):
        point = suggest(search, Uniform(seed))
        shown = parameters.point(point, 3) | {"family": "searched", "regime": "8x32 100%"}
        found = parameters.read_point({}, shown, search, "f")
        assert found == {k: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for k, v in point.items()}
        assert [type(v) for v in found.values()] == [type(v) for v in point.values()]


def test_rounding_does_not_leave_a_range():
    search = parse({"sizes": [8], "split": {"low": 0.123456, "high": 0.56784}, "growth": "none"}, Search, "f")
    shown = {"w_8": "1", "growth": "none"}
    assert parameters.read_point({}, shown | {"split": "0.1235"}, search, "f")["split"] == 0.1235
    assert parameters.read_point({}, shown | {"split": "0.1234"}, search, "f")["split"] == 0.123456


def test_a_point_that_lacks_a_parameter_is_one_sentence():
    search = parse({"sizes": [8]}, Search, "f")
    with pytest.raises(InputError, match="run 7: has no parameter growth, which its study searched"):
        parameters.read_point({}, {"w_8": "1", "split": "1"}, search, "run 7")
