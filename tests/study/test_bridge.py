import math

import pytest

from mixtune.config import parse
from mixtune.study.bridge import Bridge
from mixtune.study.events import Listeners
from mixtune.study.sampling import Trials
from mixtune.study.space import Space
from tests.study.test_sampling import CURVE


class Recorder:
    """A listener that remembers."""

    def __init__(self):
        self.events = []

    def started(self, trial):
        self.events.append(("started", trial.number))

    def reported(self, trial, report, score):
        self.events.append(("reported", trial.number, score))

    def ended(self, trial, state, score, reason, curve):
        self.events.append(("ended", trial.number, state, reason))


class Broken:
    """A listener whose server is gone."""

    def __getattr__(self, name):
        def fail(*details):
            raise ConnectionError("gone")

        return fail


@pytest.fixture
def bridge(tmp_path, tiny):
    space = parse(tiny, Space, "f")
    recorder = Recorder()
    trials = Trials(f"sqlite:///{tmp_path}/study.db", space, 4)
    bridge = Bridge(trials, space.training(1), tmp_path, Listeners([Broken(), recorder]))
    bridge.recorder = recorder
    return bridge


def report(number, score, last=False):
    rows = CURVE.rows()
    return {"number": number, "last": last, "score": score, "progress": number / 2, "curve": rows}


def test_a_trial_that_reports_to_the_end_is_complete(bridge):
    bridge.suggest("a")
    assert not bridge.report("a", report(1, 0.4))
    assert not bridge.report("a", report(2, 0.6, last=True))
    bridge.end("a", error=False)
    (outcome,) = bridge.trials.outcomes()
    assert (outcome.state, outcome.score, outcome.published, outcome.curve) == ("COMPLETE", 0.6, "fixed", CURVE)
    assert [e[0] for e in bridge.recorder.events] == ["started", "reported", "reported", "ended"]


def test_a_listener_that_fails_stops_nothing_and_is_counted_once_per_event(bridge):
    bridge.suggest("a")
    bridge.end("a", error=True)
    assert bridge.listeners.faults == {"Broken": 2}
    assert bridge.recorder.events[-1][2] == "FAIL"


@pytest.mark.parametrize(
    ("results", "error", "reason"),
    [
        ([], False, "ended without its last report"),
        ([report(1, 0.4)], False, "ended without its last report"),
        ([report(1, 0.4)], True, "its worker died"),
        ([{"failed": "the loss became nan"}], False, "the loss became nan"),
        ([{"unrelated": 1}], False, "ended without its last report"),
        ([report(1, math.nan)], False, "the score is not finite"),
        ([report(1, 0.5), report(2, math.inf, last=True)], False, "the score is not finite"),
    ],
)
def test_what_did_not_end_well_is_a_failure_with_its_reason(bridge, results, error, reason):
    bridge.suggest("a")
    for result in results:
        bridge.report("a", result)
    bridge.end("a", error)
    (outcome,) = bridge.trials.outcomes()
    assert outcome.state == "FAIL"
    assert reason in outcome.reason


def test_no_more_trials_than_asked_for(bridge):
    assert [bridge.suggest(str(i)) is None for i in range(6)] == [False] * 4 + [True] * 2


def test_interrupted_trials_run_again_and_are_not_counted(bridge):
    bridge.suggest("a")
    bridge.interrupt()
    bridge.trials.reconcile()
    assert bridge.trials.remaining() == 4
    assert bridge.recorder.events[-1][2] == "INTERRUPTED"


def test_trial_folders_hold_a_regime_file_that_says_how_it_was_trained(bridge, tmp_path):
    from mixtune.regime.files import load_regime
    from mixtune.training.run import TrainingConfig

    configuration = bridge.suggest("a")
    regime, training = load_regime(tmp_path / "trials" / "0000" / "regime.yaml")
    assert str(regime) == "8x32 100%"
    assert parse(training, TrainingConfig, "f") == bridge.trials.space.training(1)
    assert configuration["training"] == training


def test_a_trial_that_was_cut_off_goes_on_from_its_first_attempts_checkpoint(bridge):
    def cut_off(number):
        configuration = bridge.suggest(str(number))
        bridge.interrupt()
        bridge.trials.reconcile()
        return configuration["checkpoint"]

    first, second = cut_off(0), cut_off(1)
    assert first != second
    assert [bridge.suggest("again")["checkpoint"], bridge.suggest("once more")["checkpoint"]] == [first, second]


def test_the_checkpoint_of_a_finished_trial_is_removed(bridge):
    from pathlib import Path

    path = Path(bridge.suggest("a")["checkpoint"])
    path.parent.mkdir()
    path.write_bytes(b"state")
    bridge.report("a", report(1, 0.5, last=True))
    bridge.end("a", error=False)
    assert not path.exists()
