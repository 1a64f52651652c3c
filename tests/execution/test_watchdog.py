from types import SimpleNamespace

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

from mixtune.execution import watchdog as watch
from mixtune.execution.watchdog import ClusterLostError, Watchdog, treat_memory_kills_as_deaths


def manager():
    made = object.__new__(RayActorManager)
    made._failed_actor_ids = set()
    made._cleanup_actor = lambda tracked_actor: None
    return made


def test_a_worker_that_rays_memory_monitor_killed_is_a_dead_worker():
    """Ray alone takes it for a fault of its own, which ends the experiment."""
    treat_memory_kills_as_deaths()
    treat_memory_kills_as_deaths()  # once is enough
    told = []
    actor = SimpleNamespace(actor_id=7, _on_error=lambda a, err: told.append(err))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda a, err: told.append(err))
    manager()._actor_task_failed(task, OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert [type(err) for err in told] == [RayActorError, RayActorError]
    assert "running low on memory" in str(told[0])
    with pytest.raises(RuntimeError, match="unexpected"):  # what is unknown stays so
        manager()._actor_task_failed(task, ValueError("unexpected"))


class FakeCoordinator:
    def __init__(self):
        self.began, self.late = {}, []

    def start_clock(self, run_id, now):
        self.began[run_id] = now

    def overdue(self, now):
        return self.late


def trial(name, actor="actor"):
    return SimpleNamespace(trial_id=name, temporary_state=SimpleNamespace(ray_actor=actor))


@pytest.fixture
def killed(monkeypatch):
    found = []
    monkeypatch.setattr(watch.ray, "kill", found.append)
    monkeypatch.setattr(watch, "dead_ray_processes", lambda: "")
    return found


def test_workers_that_are_overdue_are_killed_from_outside(killed):
    clock, coordinator = [10.0], FakeCoordinator()
    look = Watchdog(coordinator, lambda: clock[0])
    trials = [trial("a", "one"), trial("b", "two"), trial("c", None)]
    look.on_trial_start(0, trials, trials[1])
    assert coordinator.began == {"b": 10.0}
    coordinator.late = ["b", "c"]  # the third has no worker any more
    look.on_step_end(1, trials)
    assert killed == ["two"]
    look.on_step_end(2, trials)  # not at every step
    assert killed == ["two"]
    clock[0] += watch.EVERY
    look.on_step_end(3, trials)
    assert killed == ["two", "two"]


def test_time_in_which_the_driver_was_held_up_is_no_trials(killed):
    """The study's storage was away for ten minutes, and reports waited for it."""
    clock, coordinator, seen = [10.0], FakeCoordinator(), []
    coordinator.overdue = lambda now: seen.append(now) or []
    look = Watchdog(coordinator, lambda: clock[0])
    for seconds in (1.0, 1.0, 600.0, 1.0):
        clock[0] += seconds
        look.on_step_end(1, [])
    assert seen == [11.0, 12.0, 12.0 + watch.STALL, 13.0 + watch.STALL]


def test_a_cluster_whose_process_died_is_told_at_once(killed, monkeypatch):
    monkeypatch.setattr(watch, "dead_ray_processes", lambda: "raylet")
    with pytest.raises(ClusterLostError, match="raylet of the local Ray cluster died"):
        Watchdog(FakeCoordinator(), lambda: 10.0).on_step_end(0, [])


def test_nothing_is_lost_where_there_is_no_local_cluster():
    assert watch.dead_ray_processes() == ""


def test_little_is_kept_of_a_trial_that_is_over():
    over = Trial("trial", stub=True, config={"regime": {"phases": [1, 2]}})
    over.update_last_result({"score": 0.5, "curve": [1, 2], "training_iteration": 1})
    assert over.run_metadata.metric_analysis.keys() >= {"score"}
    watch = Watchdog(FakeCoordinator(), lambda: 0.0)
    watch.on_trial_complete(1, [over], over)
    assert over.last_result["score"] == 0.5  # other callbacks read it
    watch.on_step_end(1, [over])
    assert over.config == over.evaluated_params == {}
    assert over.last_result.keys() <= {"trial_id"}
    assert over.run_metadata.metric_analysis == over.run_metadata.metric_n_steps == {}
