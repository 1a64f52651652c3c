import math
from pathlib import Path

import pytest

from mixtune.config import parse
from mixtune.errors import StorageAwayError
from mixtune.execution.coordinator import Coordinator
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from tests.search.test_optuna_study import CURVE


class Recorder:
    """A callback that remembers."""

    def __init__(self):
        self.events = []

    def started(self, trial):
        self.events.append(("started", trial.number))

    def reported(self, trial, report, score):
        self.events.append(("reported", trial.number, score))

    def ended(self, trial, state, score, reason, curve):
        self.events.append(("ended", trial.number, state, reason))


class Broken:
    """A callback whose server is gone."""

    def __getattr__(self, name):
        def fail(*details):
            raise ConnectionError("gone")

        return fail


@pytest.fixture
def coordinator(tmp_path, tiny):
    space = parse(tiny, Space, "f")
    recorder = Recorder()
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4)
    coordinator = Coordinator(trials, space.training(1), tmp_path, Callbacks([Broken(), recorder]))
    coordinator.recorder = recorder
    return coordinator


def report(number, score, last=False):
    rows = CURVE.rows()
    return {"number": number, "last": last, "score": score, "progress": number / 2, "curve": rows}


def test_a_trial_that_reports_to_the_end_is_complete(coordinator):
    coordinator.suggest("a")
    assert not coordinator.report("a", report(1, 0.4))
    assert not coordinator.report("a", report(2, 0.6, last=True))
    coordinator.end("a", error=False)
    (outcome,) = coordinator.trials.outcomes()
    assert (outcome.state, outcome.score, outcome.published, outcome.curve) == ("COMPLETE", 0.6, "fixed", CURVE)
    assert [e[0] for e in coordinator.recorder.events] == ["started", "reported", "reported", "ended"]


def test_a_listener_that_fails_stops_nothing_and_is_counted_once_per_event(coordinator):
    coordinator.suggest("a")
    coordinator.end("a", error=False)
    assert coordinator.callbacks.errors == {"Broken": 2}
    assert coordinator.recorder.events[-1][2] == "FAIL"


@pytest.mark.parametrize(
    ("results", "error", "reason"),
    [
        ([], False, "ended without a result"),
        ([report(1, 0.4)], False, "ended without a result"),
        ([report(1, 0.4)], True, "its worker died (out of memory, or killed) (2 times)"),
        ([{"failed": "the loss became nan"}], False, "the loss became nan"),
        ([{"unrelated": 1}], False, "ended without a result"),
        ([report(1, math.nan)], False, "the score is not finite"),
        ([report(1, 0.5), report(2, math.inf, last=True)], False, "the score is not finite"),
    ],
)
def test_what_did_not_end_well_is_a_failure_with_its_reason(coordinator, results, error, reason):
    for attempt in ("a", "b") if error else ("a",):
        coordinator.suggest(attempt)
        for result in results:
            coordinator.report(attempt, result)
        coordinator.end(attempt, error)
    (outcome,) = coordinator.trials.outcomes()
    assert outcome.state == "FAIL"
    assert reason in outcome.reason


def test_no_more_trials_than_asked_for(coordinator):
    assert [coordinator.suggest(str(i)) is None for i in range(6)] == [False] * 4 + [True] * 2


def test_interrupted_trials_run_again_and_are_not_counted(coordinator):
    coordinator.suggest("a")
    coordinator.interrupt()
    coordinator.trials.reconcile()
    assert coordinator.trials.remaining() == 4
    assert coordinator.recorder.events[-1][2] == "INTERRUPTED"


def test_trial_folders_hold_a_regime_file_that_says_how_it_was_trained(coordinator, tmp_path):
    from mixtune.regime.files import load_regime
    from mixtune.training.run import TrainingConfig

    configuration = coordinator.suggest("a")
    regime, training = load_regime(tmp_path / "trials" / "0000" / "regime.yaml")
    assert str(regime) == "8x32 100%"
    assert parse(training, TrainingConfig, "f") == coordinator.trials.space.training(1)
    assert configuration["training"] == training


def test_a_trial_that_was_cut_off_goes_on_from_its_first_attempts_checkpoint(coordinator):
    def cut_off(number):
        configuration = coordinator.suggest(str(number))
        coordinator.interrupt()
        coordinator.trials.reconcile()
        return configuration["checkpoint"]

    first, second = cut_off(0), cut_off(1)
    assert first != second
    assert [coordinator.suggest("again")["checkpoint"], coordinator.suggest("once more")["checkpoint"]] == [
        first,
        second,
    ]


def test_the_checkpoints_of_a_finished_trial_are_removed(coordinator):
    path = Path(coordinator.suggest("a")["checkpoint"])
    path.parent.mkdir()
    for stage in (1, 3, 9):
        path.with_name(f"{path.stem}-{stage}.pt").write_bytes(b"state")
    other = path.with_name("9999-1.pt")
    other.write_bytes(b"of another trial")
    coordinator.report("a", report(1, 0.5, last=True))
    coordinator.end("a", error=False)
    assert list(path.parent.iterdir()) == [other]


def test_a_trial_whose_worker_died_goes_on_once_and_is_counted_once(coordinator):
    first = coordinator.suggest("a")
    coordinator.report("a", report(1, 0.4))
    coordinator.end("a", error=True)
    assert coordinator.trials.outcomes() == []
    assert coordinator.suggest("b") == first  # the same trial, folder and checkpoint
    assert not coordinator.report("b", report(1, 0.4))  # told again, from the checkpoint
    assert not coordinator.report("b", report(2, 0.6, last=True))
    coordinator.end("b", error=False)
    assert [(o.number, o.state) for o in coordinator.trials.outcomes()] == [(0, "COMPLETE")]
    assert coordinator.recorder.events == [
        ("started", 0),
        ("reported", 0, 0.4),
        ("reported", 0, 0.6),
        ("ended", 0, "COMPLETE", ""),
    ]
    assert coordinator.trials.remaining() == 3


def test_without_retries_a_death_is_the_end(tmp_path, tiny):
    space = parse(tiny | {"limits": {"retries": 0}}, Space, "f")
    coordinator = Coordinator(
        OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4), space.training(1), tmp_path, Callbacks([])
    )
    coordinator.suggest("a")
    coordinator.end("a", error=True)
    assert [o.reason for o in coordinator.trials.outcomes()] == ["its worker died (out of memory, or killed)"]


def test_a_trial_that_lost_its_gpu_goes_on_within_its_retries_and_leaves_no_error_behind(coordinator):
    lost = {"failed": "AcceleratorError: CUDA error: an ECC error", "cause": "machine"}
    first = coordinator.suggest("a")
    error = Path(first["folder"]) / "error.txt"
    coordinator.report("a", report(1, 0.4))
    error.write_text("Traceback")
    assert coordinator.report("a", lost)
    coordinator.end("a", error=False)
    assert coordinator.suggest("b") == first  # the same trial, folder and checkpoint
    assert not error.exists()
    assert not coordinator.report("b", report(2, 0.6, last=True))
    coordinator.end("b", error=False)
    for attempt in "cd":
        coordinator.suggest(attempt)
        coordinator.report(attempt, lost)
        coordinator.end(attempt, error=False)
    done, failed = coordinator.trials.outcomes()
    assert (done.state, done.score) == ("COMPLETE", 0.6)
    assert (failed.state, failed.reason) == ("FAIL", lost["failed"] + " (2 times)")
    assert [e[2] for e in coordinator.recorder.events if e[0] == "ended"] == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("cause", ["memory", "regime", "unknown"])
def test_what_would_happen_again_is_not_tried_again(coordinator, cause):
    coordinator.suggest("a")
    coordinator.report("a", {"failed": "said", "cause": cause})
    coordinator.end("a", error=False)
    assert [o.state for o in coordinator.trials.outcomes()] in (["FAIL"], ["DIVERGED"])


def test_what_a_worker_died_of_is_told_where_it_is_known(coordinator, tmp_path, monkeypatch):
    kills = iter([3, 3, 4, 4, 4, 4])
    monkeypatch.setattr("mixtune.execution.coordinator.count_oom_kills", lambda: next(kills))
    for attempt in "ab":
        coordinator.suggest(attempt)
        (tmp_path / "trials" / "0000" / "position").write_text("step 7 of 20, shape 12x14")
        coordinator._running[attempt].oom_kills = 2
        coordinator.end(attempt, error=True)
    (outcome,) = coordinator.trials.outcomes()
    assert outcome.reason == "its worker died (out of host memory), at step 7 of 20, shape 12x14 (2 times)"
    assert not (tmp_path / "trials" / "0000" / "position").exists()


def test_a_worker_that_died_after_its_last_report_lost_nothing(coordinator):
    coordinator.suggest("a")
    coordinator.report("a", report(2, 0.6, last=True))
    coordinator.end("a", error=True)
    assert [o.state for o in coordinator.trials.outcomes()] == ["COMPLETE"]


def test_a_trial_over_its_limit_is_a_failure_and_not_tried_again(tmp_path, tiny):
    space = parse(tiny | {"limits": {"minutes": 1, "silent_minutes": 0.5, "retries": 3}}, Space, "f")
    coordinator = Coordinator(
        OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4), space.training(1), tmp_path, Callbacks([])
    )
    for name in "ab":
        coordinator.suggest(name)
    coordinator.start_clock("a", 0.0)
    assert coordinator.overdue(29.0) == []
    assert coordinator.overdue(31.0) == ["a"]  # "b" waits for its worker still
    assert coordinator.overdue(32.0) == []  # told once
    assert coordinator.report("a", report(1, 0.5))  # its last words: stopped all the same
    coordinator.end("a", error=True)
    (outcome,) = coordinator.trials.outcomes()
    assert (outcome.state, outcome.reason) == ("FAIL", "nothing moved for 0.5 min (limits.silent_minutes)")


def test_a_full_disk_in_a_worker_stops_the_search_and_fails_nobody(coordinator):
    for name in "ab":
        coordinator.suggest(name)
    assert coordinator.report("a", {"no_room": "weights.safetensors: the disk is full"})
    assert coordinator.report("b", report(1, 0.5))  # stopped; its checkpoint stays
    for name in "ab":
        coordinator.end(name, error=False)
    assert coordinator.suggest("c") is None
    assert coordinator.done
    assert coordinator.halted == "weights.safetensors: the disk is full"
    assert coordinator.trials.outcomes() == []
    assert [e[2] for e in coordinator.recorder.events if e[0] == "ended"] == ["INTERRUPTED"] * 2
    coordinator.trials.reconcile()
    assert coordinator.trials.remaining() == 4


def test_a_trial_that_ends_while_the_disk_is_full_is_kept_when_it_can_be(coordinator):
    for name in "ab":
        coordinator.suggest(name)
    coordinator.report("a", {"no_room": "full"})
    coordinator.report("b", report(2, 0.7, last=True))
    coordinator.end("b", error=False)
    assert [(o.number, o.state) for o in coordinator.trials.outcomes()] == [(1, "COMPLETE")]


@pytest.mark.parametrize("when", ["suggest", "report", "end"])
def test_a_storage_that_stays_away_stops_the_search_and_fails_nobody(coordinator, when, monkeypatch):
    away = StorageAwayError("--storage sqlite:///study.db: does not answer")

    def fail(*arguments, **options):
        raise away

    checkpoint = Path(coordinator.suggest("a")["checkpoint"])
    checkpoint.parent.mkdir()
    stage = checkpoint.with_name(f"{checkpoint.stem}-2.pt")
    stage.write_bytes(b"state")
    with monkeypatch.context() as patch:
        patch.setattr(coordinator.trials, {"suggest": "ask", "report": "report", "end": "finish"}[when], fail)
        assert (coordinator.suggest("b") is None) == (when == "suggest")
        assert coordinator.report("a", report(2, 0.6, last=True)) == (when == "report")
        coordinator.end("a", error=False)
        coordinator.end("b", error=False)
    assert coordinator.halted == str(away)
    assert coordinator.suggest("c") is None
    assert coordinator.done
    coordinator.interrupt()
    coordinator.trials.reconcile()
    finished = [(0, "COMPLETE")] if when == "suggest" else []
    assert [(o.number, o.state) for o in coordinator.trials.outcomes()] == finished
    assert stage.exists() == (not finished)  # the trial is finished again from there
