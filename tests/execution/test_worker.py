"""OptunaStudy that share processes under Ray Tune: what they give, and what happens when such a process is killed."""

import os
import signal

import pytest

from mixtune.config import parse
from mixtune.execution import ray_tune, worker
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import Concurrency
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from tests.conftest import TINY
from tests.execution.test_coordinator import Recorder

SETTINGS = TINY | {"trials": 4, "published": ["fixed", "multiscale"], "pruner": {"name": "none"}}


def study(folder, recorder, run, **settings):
    space = parse(SETTINGS | settings, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    coordinator = Coordinator(trials, space.training(1), folder, Callbacks([recorder]))
    run(coordinator)
    return trials.outcomes()


class Killer(Recorder):
    """Kills the host, once, at the first report of the trial ``victim``: nothing is tidied up."""

    def __init__(self, victim):
        super().__init__()
        self.victim, self.killed = victim, []

    def reported(self, trial, report, score):
        super().reported(trial, report, score)
        if trial.number == self.victim and not self.killed:
            import ray

            (name,) = (n for n in ray.util.list_named_actors() if n.startswith(worker.WORKER_NAME))
            pid = ray.get(ray.get_actor(name).pid.remote())
            self.killed.append(pid)
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def outcomes(cluster, tmp_path_factory):
    """The same study in processes of their own, packed in one, and packed in one that is killed on the way."""
    alone, packed, killed = (tmp_path_factory.mktemp(n) for n in ("alone", "packed", "killed"))
    killer = Killer(victim=1)
    concurrency = Concurrency(1, 0, 3, pack=3)
    found = {
        "alone": study(alone, Recorder(), lambda b: ray_tune.run(b, Concurrency(1, 0, 2), alone)),
        "packed": study(packed, Recorder(), lambda b: worker.run_trials(b, concurrency, packed, "cpu", 0)),
        "killed": study(killed, killer, lambda b: worker.run_trials(b, concurrency, killed, "cpu", 0)),
    }
    assert len(killer.killed) == 1
    return found, killer


@pytest.mark.slow
def test_packed_trials_score_as_trials_alone_to_the_bit(outcomes):
    found, _ = outcomes
    for kind in ("packed", "killed"):
        assert [o.state for o in found[kind]] == ["COMPLETE"] * 4
    for name in ("fixed", "multiscale"):
        scores = {kind: next(o.score for o in os if o.published == name) for kind, os in found.items()}
        assert len(set(scores.values())) == 1, scores


@pytest.mark.slow
def test_a_killed_process_costs_no_trial_a_report(outcomes):
    """Every trial that was in it goes on from its checkpoint, and no report is told twice."""
    _, killer = outcomes
    for number in range(4):
        reports = [e for e in killer.events if e[0] == "reported" and e[1] == number]
        assert len(reports) == 2
    ended = [e for e in killer.events if e[0] == "ended"]
    assert len(ended) == 4
