import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search import grid
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space

LISTS = {
    "sizes": [4, 8, 12],
    "weights": {4: [0, 1], 8: 1, 12: [0, 0.5, 1]},
    "split": [0, 1],
    "growth": ["none", "gradual"],
}


@pytest.fixture
def settings(tiny):
    return tiny | {"search": LISTS, "sampler": {"name": "grid"}, "published": ["fixed"], "trials": 25}


def run_all(trials, state="COMPLETE"):
    points = []
    while trials.remaining():
        trial, params = trials.ask()
        points.append((trial.user_attrs.get("published", ""), tuple(params.values())))
        trials.finish(trial, state, 0.5, "", None)
    return points


def test_every_point_is_tried_once_after_the_published_regimes(tmp_path, settings):
    points = run_all(OptunaStudy(f"journal:///{tmp_path}/study.journal", parse(settings, Space, "f"), 4))
    assert points[0][0] == "fixed"
    searched = [p for kind, p in points if not kind]
    assert len(searched) == len(set(searched)) == 2 * 1 * 3 * 2 * 2


def test_a_part_of_the_grid_is_shuffled_and_more_trials_are_its_other_points(tmp_path, settings):
    url = f"journal:///{tmp_path}/study.journal"
    part = run_all(OptunaStudy(url, parse(settings | {"trials": 9}, Space, "f"), 4))
    assert len(part) == 9
    assert len({p[1][0] for p in part}) == 2  # not the first weights only
    trials = OptunaStudy(url, parse(settings, Space, "f"), 4)
    trials.ask()  # cut off
    again = OptunaStudy(url, parse(settings, Space, "f"), 4)
    again.reconcile()
    rest = run_all(again)
    searched = [p for kind, p in part + rest if not kind]
    assert len(searched) == len(set(searched)) == 24


def test_points_that_cannot_be_trained_end_the_study_and_not_its_patience(tmp_path, settings):
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", parse(settings, Space, "f"), 4)
    assert len(run_all(trials, "INFEASIBLE")) == 25
    assert trials.outcomes() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"search": LISTS | {"split": {"low": 0, "high": 1}}},
            "sampler grid: split is a range from 0 to 1; give a list",
        ),
        ({"trials": 26}, "sampler grid: there are 25 regimes to try, so trials is at most 25"),
    ],
)
def test_what_is_no_grid_is_refused_in_one_sentence(settings, change, said):
    with pytest.raises(InputError, match=said):
        parse(settings | change, Space, "f")


def test_a_grid_that_nobody_could_train_is_refused(settings):
    many = {S: [i / 20 for i in range(21)] for S in (4, 8, 12)}
    search = LISTS | {"weights": many, "split": [i / 100 for i in range(101)]}
    with pytest.raises(ValueError, match=r"has 1,870,722 points; list fewer"):
        grid.grid_size(parse({**search}, type(parse(settings, Space, "f").search), "f"))
