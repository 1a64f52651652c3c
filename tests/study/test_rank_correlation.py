from dataclasses import replace

import pytest
from mlflow import MlflowClient

from mixtune.config import parse
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Named, Space
from mixtune.search.trial_result import TrialResult
from mixtune.study import run_study
from mixtune.study.rank_correlation import ENOUGH, agreements, early_steps, metrics, sentence
from mixtune.study.run_study import StudyResult, table
from mixtune.study.stores import open_stores
from tests.search.test_optuna_study import CURVE

RUNGS = {"kind": "compress", "rungs": 3, "factor": 3}


@pytest.fixture
def space(tiny):
    return parse(tiny | {"fidelity": RUNGS}, Space, "f")


def outcomes(early, final, state="COMPLETE"):
    return [
        TrialResult(i, state, f, {}, "", "", None, reports={1: e, 3: -e, 9: f})
        for i, (e, f) in enumerate(zip(early, final, strict=True))
    ]


def test_steps_that_are_not_the_whole_budget(space, tiny):
    assert early_steps(space) == {1: pytest.approx(1 / 9), 3: pytest.approx(1 / 3)}
    on_the_way = parse(tiny | {"fidelity": {"kind": "truncate"}}, Space, "f")
    reports = on_the_way.evaluate.reports
    assert early_steps(on_the_way) == {n: n / reports for n in range(1, reports)}
    folds = parse(tiny | {"folds": 3, "fidelity": RUNGS}, Space, "f")
    assert set(early_steps(folds)) == {1, 3}  # other folds cost the whole budget
    assert early_steps(replace(folds, pruner=Named("wilcoxon"))) == {}


def test_the_correlation_is_that_of_ranks_of_trials_that_were_not_pruned(space):
    final = [float(i) for i in range(10)]
    early = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 90.0, 8.0]  # one pair of ten swapped
    pruned = outcomes([99.0] * 20, [0.0] * 20, "PRUNED")
    found = agreements(space, [*outcomes(early, final), *pruned])
    rho = 1 - 6 * 2 / (10 * 99)  # 1 - 6 * sum(d^2) / (n (n^2 - 1))
    assert found == {1 / 9: (pytest.approx(rho), 10), 1 / 3: (pytest.approx(-rho), 10)}


def test_few_trials_or_equal_scores_say_nothing(space):
    few = outcomes(range(ENOUGH - 1), range(ENOUGH - 1))
    assert agreements(space, few) == {}
    assert agreements(space, outcomes([0.5] * 10, range(10))) == {}
    assert sentence({}) == ""


def test_they_are_metrics_by_share_of_the_budget():
    assert metrics({1 / 3: (0.75, 12), 1 / 9: (0.5, 14)}) == [
        ("fidelity/rank_correlation", 0.5, 11),
        ("fidelity/rank_correlation_n", 14.0, 11),
        ("fidelity/rank_correlation", 0.75, 33),
        ("fidelity/rank_correlation_n", 12.0, 33),
    ]
    assert metrics({}) == []


def test_a_study_keeps_its_own_in_mlflow(space, tmp_path, empty_store):
    empty_store(tmp_path)
    space, paths = replace(space, pruner=Named("none"), trials=9), StudyPaths(tmp_path)
    with open_stores(space, paths, 4, False) as study:
        for n in range(9):
            trial, _ = study.trials.ask()
            for step, score in ((1, n / 10), (3, -n / 10), (9, n / 10)):
                study.trials.report(trial, step, score, step == 9)
            study.trials.finish(trial, "COMPLETE", n / 10, "", CURVE)
        run_study._close(study, paths, space, lambda *_: [], False, None)
        parent = study.tracker.parent
    client = MlflowClient(paths.tracking_uri)
    for name, values in (("rank_correlation", {11: 1.0, 33: -1.0}), ("rank_correlation_n", {11: 9.0, 33: 9.0})):
        history = client.get_metric_history(parent, f"fidelity/{name}")
        assert {m.step: m.value for m in history} == values
    said = client.get_run(parent).data.tags["mixtune.rank_correlation"]
    assert said.endswith("not pruned): 1.00 at 11 % (n = 9), -1.00 at 33 % (n = 9)")


def test_a_study_prints_its_own(space, monkeypatch):
    monkeypatch.setattr("mixtune.study.run_study.results_table", lambda outcomes, regime_of: "the trials")
    result = StudyResult(outcomes(range(12), range(12)), None, False, 0, "", None)
    said = table(space, result).splitlines()
    assert said[0] == "the trials"
    assert said[1].endswith("not pruned): 1.00 at 11 % (n = 12), -1.00 at 33 % (n = 12)")
    assert table(space, replace(result, outcomes=[])) == "the trials"
