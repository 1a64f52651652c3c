"""Faults of real Ray workers."""

import os
import signal

import pytest

from mixtune.config import parse
from mixtune.study import tuning
from mixtune.study.bridge import Bridge
from mixtune.study.events import Listeners
from mixtune.study.preflight import Slots
from mixtune.study.sampling import Trials
from mixtune.study.space import Space
from tests.conftest import TINY
from tests.study.test_bridge import Recorder
from tests.study.test_sampling import CURVE


@pytest.fixture(scope="module")
def faulty_ray(tmp_path_factory):
    """One real Ray Tune run whose workers fail in every way that a worker can."""
    folder = tmp_path_factory.mktemp("a folder")
    space = parse(TINY | {"trials": 5, "published": ["fixed"], "pruner": {"name": "none"}}, Space, "f")
    trials = Trials(f"sqlite:///{folder}/study.db", space, 4)
    recorder = Recorder()
    bridge = Bridge(trials, space.training(1), folder, Listeners([recorder]))
    before = tuning.run_trial
    tuning.run_trial = _faulty_trial
    try:
        tuning.connect(None, 2, 0)
        tuning.run(bridge, Slots(1, 0, 2), folder)
    finally:
        tuning.run_trial = before
        tuning.disconnect()
    return trials, recorder


def _faulty_trial(config):
    from ray import tune

    number = int(config["folder"][-4:])
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        raise RuntimeError("CUDA out of memory")
    if number == 3:
        return
    tune.report({"number": 1, "last": False, "score": 0.3, "progress": 0.5, "curve": CURVE.rows()})
    tune.report({"number": 2, "last": True, "score": 0.5, "progress": 1.0, "curve": CURVE.rows()})


def test_workers_that_die_raise_or_return_early_are_failures_and_the_study_goes_on(faulty_ray):
    trials, recorder = faulty_ray
    assert [o.state for o in trials.outcomes()] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert trials.remaining() == 0
    assert sum(e[0] == "ended" for e in recorder.events) == 5
