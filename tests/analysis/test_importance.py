"""Importances with every kind of domain: the made-up score depends on one of them, which must come out."""

import csv
import math

import pytest

from analysis import importance
from analysis.study_runs import read_study
from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.domains import Uniform
from mixtune.search.space import Space
from tests.analysis.conftest import Made, curve

SEARCH = {
    "sizes": [4, 8, 12],
    "weights": {4: 0.5, 8: [0.25, 0.5, 1.0]},
    "split": [0, 1],
    "growth": ["none", "window"],
    "recipe": {"lr": {"low": 0.001, "high": 1, "log": True}, "smoothing": [True, False], "momentum": 0.9},
}


def made_of(tmp_path, tiny, empty_store, search, score_of, trials=16):
    made = Made(tmp_path, tiny | {"search": search}, empty_store)
    for number in range(trials):
        point = made.space.suggest(Uniform(number))
        made.trial(number, "searched", curve(score_of(point), score_of(point)), **point)
    return made, read_study(made.uri, "tiny")


def test_a_searched_setting_of_the_recipe_is_found(tmp_path, tiny, empty_store, monkeypatch):
    def score_of(point):
        return 0.5 - 0.1 * math.log10(point["recipe.lr"]) + (0.15 if point["growth"] == "window" else 0)

    made, study = made_of(tmp_path, tiny, empty_store, SEARCH, score_of)
    assert set(importance.varied_parameters(study)) == {
        "w_8",
        "w_12",
        "split",
        "growth",
        "recipe.lr",
        "recipe.smoothing",
    }
    found = importance.importances(study, study.trials)
    assert sum(found.values()) == pytest.approx(1)
    assert list(found)[:2] == ["recipe.lr", "growth"]
    assert found["recipe.lr"] > 0.5
    assert importance.trend(study, "recipe.lr").startswith("less is better (ρ −")
    assert importance.trend(study, "growth") == "best: window"
    assert importance.trend(study, "w_4") == "did not vary"
    said = [importance.parameter_label(name) for name in ("w_8", "split", "recipe.weight_decay")]
    assert said == ["weight of 8 px", "split (B+ or D+)", "weight decay"]
    monkeypatch.setattr(importance, "REFITS", 2)
    importance.main(["--study", "tiny", "--tracking-uri", made.uri, "--out", str(tmp_path / "out")])
    rows = list(csv.DictReader((tmp_path / "out" / "importance.csv").open()))
    assert [r["parameter"] for r in rows[:2]] == ["recipe.lr", "growth"]


def test_a_range_in_the_logarithm_is_weighed_as_it_was_drawn(tmp_path, tiny, empty_store):
    """The score turns on the lower half of the decades, which are 3 % of the range's numbers."""
    search = SEARCH | {"recipe": {"lr": {"low": 0.001, "high": 1, "log": True}}}
    _, study = made_of(
        tmp_path,
        tiny,
        empty_store,
        search,
        lambda point: 0.7 if point["recipe.lr"] < 10**-1.5 else 0.5 + 0.05 * point["split"],
    )
    assert importance.importances(study, study.trials)["recipe.lr"] > 0.8


def test_the_points_of_a_study_are_those_that_were_tried(tmp_path, tiny, empty_store):
    _, study = made_of(tmp_path, tiny, empty_store, SEARCH, lambda point: 0.5, trials=4)
    space = parse(tiny | {"search": SEARCH}, Space, "f")
    assert study.search == space.search
    for trial in study.trials:
        assert trial.params == space.suggest(Uniform(trial.number))  # to the bit


def test_a_study_in_which_nothing_was_searched_is_one_sentence(tmp_path, tiny, empty_store):
    search = {"sizes": [8], "weights": {8: 1.0}, "split": 1, "growth": "none"}
    scores = iter(range(50, 80))
    _, study = made_of(tmp_path, tiny, empty_store, search, lambda point: next(scores) / 100, trials=6)
    with pytest.raises(InputError, match="everything in its search is fixed"):
        importance.draw_study(study, tmp_path)
