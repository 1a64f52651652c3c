"""The rounds after a search with planted curves: what is trained, what is concluded, what survives an interruption."""

import re
from zlib import crc32

import numpy as np
import pytest
from mlflow import MlflowClient

from mixtune.config import parse
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.feasibility import refuse_nothing
from mixtune.search.callbacks import Callbacks
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.study.final_evaluation import run_final
from mixtune.study.repeats import Repeats
from mixtune.study.stores import open_stores
from tests.curves import curve_of, point
from tests.tracking.writers import Silent

SEARCHED = "searched 2"


class Planted:
    """Stands in for the runner: a run's accuracy is its regime's, the noise of its seed, and luck in the search."""

    def __init__(self, means, luck=None, stop_after=None, faults=None):
        """faults: {(regime, judge, seed): what the worker reports instead, one for each attempt}"""
        self.means, self.luck, self.stop_after, self.errors = means, luck or {}, stop_after, faults or {}
        self.trained = []

    def run(self, study, folder, callbacks, refuse=refuse_nothing):
        coordinator = Coordinator(study.trials, study.trials.space.training(1), folder, callbacks, refuse)
        while (told := coordinator.suggest("one")) is not None:
            if self.stop_after is not None and len(self.trained) == self.stop_after:
                coordinator.interrupt()
                raise KeyboardInterrupt
            coordinator.report("one", self.report(told, searching=folder.name not in ("leaders", "final")))
            coordinator.end("one", error=False)

    def report(self, told, searching):
        name, seed = told["regime"]["name"], told["training"]["seed"]
        self.trained.append((name, told["judge"], seed))
        if faults := self.errors.get((name, told["judge"], seed)):
            return faults.pop(0)
        noise = np.random.default_rng((seed, crc32(name.encode()), told["judge"] == "test")).normal(0, 0.003)
        top1 = self.means.get(name, 0.5) + float(noise) + (self.luck.get(name, 0.0) if searching else 0.0)
        curve = curve_of(*(point(S, g, top1) for S, g in ((8, 0.1), (12, 0.2))))
        return {
            "number": told["training"]["evaluate"]["reports"],
            "last": True,
            "score": curve.points[0].metrics["top1"],
            "progress": 1.0,
            "curve": curve.rows(),
            "loss": 0.1,
            "lr": 0.1,
            "views_per_second": 1.0,
            "seconds": 1.0,
        }


@pytest.fixture
def space(tiny):
    final = {"leaders": 2, "replicates": 2, "seeds": 4}
    return parse(tiny | {"final": final, "pruner": {"name": "none"}, "trials": 6}, Space, "f")


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Of a study whose runs are not taken to MLflow, which is most of the work."""
    monkeypatch.setattr("mixtune.study.stores.MlflowWriter", Silent)
    return StudyPaths(tmp_path)


@pytest.fixture
def recorded(tmp_path, empty_store):
    """Of one whose runs are."""
    empty_store(tmp_path)
    return StudyPaths(tmp_path)


def conclude(space, paths, runner, said=None):
    with open_stores(space, paths, 4, False) as study:
        if study.trials.remaining():
            runner.run(study, paths.folder, Callbacks([study.tracker]))
        try:
            return run_final(space, paths, study, runner, (said if said is not None else []).append)
        finally:
            assert study.tracker.resync()


def test_a_search_that_found_something_better_says_so(space, paths):
    runner = Planted({SEARCHED: 0.95, "fixed": 0.80, "multiscale": 0.90})
    proof = conclude(space, paths, runner)
    assert proof.winner.name == "searched #2"
    assert proof.verdict.sentence().startswith(
        "searched #2 is better than multiscale and fixed (paired t-test over 4 seeds, 5 % level, p adjusted by Holm's"
    )
    lines = proof.table().split("\n")
    assert [line.split()[0] for line in lines[2:5]] == ["#2", "#1", "#0"]
    assert re.search(r" 9[45]\.\d\d ± 0\.\d\d +9[45]\.\d\d ± .*  <- winner$", lines[2])


def test_a_search_that_found_nothing_says_that(space, paths):
    proof = conclude(space, paths, Planted(dict.fromkeys([SEARCHED, "fixed", "multiscale"], 0.9)))
    said = proof.verdict.sentence()
    assert said.startswith(f"no regime is distinguishable from {proof.winner.name} at this noise (paired t-test over 4")


def test_the_luckiest_run_of_the_search_does_not_win(space, paths):
    runner = Planted({SEARCHED: 0.85, "searched 3": 0.89, "multiscale": 0.92}, luck={SEARCHED: 0.14})
    proof = conclude(space, paths, runner)
    assert proof.winner.name == "multiscale"
    assert [o.name for o in proof.tested] == ["multiscale", "searched #3", "fixed"]
    assert re.match(r"the best mean of 4 .* 2 new seeds .* validation", proof.chosen)


def test_every_run_is_made_once_and_judged_where_it_should_be(space, paths):
    runner = Planted({SEARCHED: 0.95})
    conclude(space, paths, runner)
    again = runner.trained[6:]
    assert len(again) == len(set(again)) == 4 * 2 + 3 * 4
    assert {seed for _, judge, seed in again if judge == "validation"} == {1, 2}
    assert {seed for _, judge, seed in again if judge == "test"} == {0, 1, 2, 3}
    assert all(judge == "validation" for _, judge, _ in runner.trained[:14])


@pytest.mark.parametrize("stop_after", [7, 14, 19])
def test_what_was_interrupted_goes_on_and_repeats_nothing(space, paths, stop_after):
    runner = Planted({SEARCHED: 0.95}, stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        conclude(space, paths, runner)
    runner.stop_after, said = None, []
    proof = conclude(space, paths, runner, said)
    assert len(runner.trained) == len(set(runner.trained)) == 6 + 8 + 12
    assert {n: sorted(each) for n, each in proof.final.items()} == {n: [0, 1, 2, 3] for n in (2, 1, 0)}
    assert any(f"{stop_after - (6 if stop_after < 14 else 14)} of" in line for line in said)
    said.clear()
    assert conclude(space, paths, runner, said).table() == proof.table()
    assert not said
    assert len(runner.trained) == 26


LOST = {"failed": "the device's memory does not hold a step", "cause": "memory"}
BUG = {"failed": "ValueError: a bug", "cause": "unknown"}
DIVERGED = {"failed": "the loss is not finite", "cause": "regime"}
RUN = (SEARCHED, "test", 1)


def test_what_the_machine_did_to_a_run_is_tried_again_at_once_and_not_for_ever(space, paths):
    runner = Planted(
        {SEARCHED: 0.95}, faults={RUN: [LOST | {"cause": "machine"}], ("fixed", "test", 2): [LOST, LOST, LOST]}
    )
    proof = conclude(space, paths, runner)
    assert runner.trained.count(RUN) == 2
    assert runner.trained.count(("fixed", "test", 2)) == 1 + space.limits.retries
    assert {n: len(each) for n, each in proof.final.items()} == {2: 4, 1: 4, 0: 3}
    table = proof.table()
    assert "failed: fixed, seed 2, for the test set: the device's memory does not hold a step (2 times)" in table
    assert "is better than" in table
    assert "Welch's t-test, 3 and 4 seeds" in table  # n is said
    runner.errors.clear()
    said = []
    again = conclude(space, paths, runner, said)
    assert said[0] == (
        "final: #0 with seed 2 failed (the device's memory does not hold a step (2 times)) and starts again"
    )
    assert said[1] == "final: 3 regimes with 4 seeds each; 11 of 12 runs are done"
    assert runner.trained.count(("fixed", "test", 2)) == 2 + space.limits.retries
    assert "failed: " not in again.table()
    assert "paired t-test over 4 seeds" in again.table()


def test_what_fails_for_no_known_reason_is_tried_again_by_the_next_command_only(space, paths):
    runner = Planted({SEARCHED: 0.95}, faults={RUN: [BUG, BUG]})
    for attempts in (1, 2):
        proof = conclude(space, paths, runner)
        assert runner.trained.count(RUN) == attempts
        assert proof.missing == ["searched #2, seed 1, for the test set: ValueError: a bug"]
    assert conclude(space, paths, runner).missing == []


def test_what_diverges_would_again_and_is_shown_beside_what_there_is(space, paths):
    faults = {RUN: [DIVERGED] * 9} | {("fixed", "test", s): [{**DIVERGED}] * 9 for s in range(4)}
    runner, said = Planted({SEARCHED: 0.95}, faults=faults), []
    proof = conclude(space, paths, runner)
    assert len(runner.trained) == len(set(runner.trained)) == 6 + 8 + 12
    assert len(proof.missing) == 5
    assert "failed: searched #2, seed 1, for the test set: the loss is not finite" in proof.table()
    assert proof.verdict.sentence().endswith("; no run was completed of fixed")
    assert conclude(space, paths, runner, said).table() == proof.table()
    assert said == []
    assert len(runner.trained) == 26


def test_a_kill_while_failed_runs_are_begun_again_loses_none(space, paths, monkeypatch):
    runner = Planted({SEARCHED: 0.95}, faults={RUN: [BUG], (SEARCHED, "test", 2): [BUG]})
    conclude(space, paths, runner)

    def killed(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after they were noted as to be repeated
        patch.setattr(Repeats, "_enqueue", killed)
        with pytest.raises(KeyboardInterrupt):
            conclude(space, paths, runner)
    assert conclude(space, paths, runner).missing == []
    assert runner.trained.count(RUN) == 2


def test_a_search_does_not_try_again_what_fell_over(space, paths):
    runner = Planted({}, faults={(SEARCHED, "validation", 0): [LOST, LOST]})
    conclude(space, paths, runner)
    assert runner.trained.count((SEARCHED, "validation", 0)) == 1


def test_with_several_objectives_the_front_is_proven_and_the_output_says_so(tiny, paths):
    several = {"objectives": ["score", "ece"], "final": {"leaders": 1, "replicates": 2, "seeds": 2}, "trials": 4}
    space, said = parse(tiny | several, Space, "f"), []
    proof = conclude(space, paths, Planted({SEARCHED: 0.95}), said)
    assert said[0] == "leaders: 1 of 1 searched regimes on the Pareto front; and the published regimes"
    assert re.match(r"the best mean score of 3 .* 2 new seeds .* validation", proof.chosen)
    assert "; 1 of 1 searched regimes on the Pareto front)" in proof.table()


def test_a_study_that_has_ended_can_be_proven_later_and_with_more_seeds(tiny, space, paths):
    runner = Planted({SEARCHED: 0.95})
    bare = parse(tiny | {"pruner": {"name": "none"}, "trials": 6}, Space, "f")
    assert conclude(bare, paths, runner) is None
    conclude(space, paths, runner)
    more = parse(tiny | {"final": {"leaders": 2, "seeds": 5}, "pruner": {"name": "none"}, "trials": 6}, Space, "f")
    proof = conclude(more, paths, runner)
    assert len(runner.trained) == len(set(runner.trained)) == 6 + 8 + 12 + 3
    assert all(len(each) == 5 for each in proof.final.values())


def test_mlflow_holds_every_run_once_as_a_repeat(space, recorded):
    runner = Planted({SEARCHED: 0.95})
    conclude(space, recorded, runner)
    conclude(space, recorded, runner)  # says it all again
    client = MlflowClient(recorded.tracking_uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "mixtune")
    runs = client.search_runs([experiment.experiment_id], "tags.`mixtune.kind` = 'repeat'")
    found = sorted((r.data.tags["mixtune.judge"], int(r.data.tags["mixtune.seed"])) for r in runs)
    assert found == sorted([("validation", s) for s in (1, 2)] * 4 + [("test", s) for s in range(4)] * 3)
    run = next(r for r in runs if r.data.tags["mixtune.trial"] == "2" and r.data.tags["mixtune.judge"] == "test")
    assert run.data.tags["mixtune.fold"] == "whole training set"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["score"] == pytest.approx(0.95, abs=0.02)
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"regime.yaml", "curve.csv"} <= artifacts


def test_runs_that_mlflow_lacked_at_a_kill_are_written_by_the_next_search(space, recorded, monkeypatch):
    runner = Planted({SEARCHED: 0.95})
    with monkeypatch.context() as broken:
        broken.setattr("mixtune.study.stores.MlflowWriter", Silent)
        conclude(space, recorded, runner)
    conclude(space, recorded, runner)
    client = MlflowClient(recorded.tracking_uri)
    (experiment,) = (e for e in client.search_experiments() if e.name == "mixtune")
    assert len(client.search_runs([experiment.experiment_id], "tags.`mixtune.kind` = 'repeat'")) == 20
