"""Several nodes: a local Ray cluster of two raylets, trials on both, a trial across both, and the loss of one."""

import re
import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from mixtune.config import parse
from mixtune.execution import executor, ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import concurrency_for
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.training.run import Run
from tests.conftest import TINY
from tests.test_search import command

pytestmark = pytest.mark.slow
SYNCED = {"recipe": {"sync_bn": True}, "pruner": {"name": "none"}}


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes with two CPUs each, joined as any other cluster; what a test adds is stopped as well."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever token lies in the home folder
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray_tune.connect(cluster.address, 0, 0)
    yield cluster
    ray_tune.disconnect()
    cluster.shutdown()


def noted(here, spec, *more):
    """A trial that notes on which node each rank trained, and waits a little at every report."""
    for result in ORIGINAL(here, spec, *more):
        with (spec.folder / "nodes").open("a") as file:
            file.write(ray.get_runtime_context().get_node_id() + "\n")
        time.sleep(0.5)
        yield result


ORIGINAL = executor.trial_reports


def noted_trial(config):
    """What a worker runs instead, in its own process."""
    executor.trial_reports = noted
    ray_tune.run_trial(config)


def study(folder, monkeypatch, **settings):
    """Run a study on the cluster; its space, outcomes and, per trial, the nodes that worked on it."""
    monkeypatch.setattr(ray_tune, "run_trial", noted_trial)
    space = parse(TINY | SYNCED | settings, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    concurrency = concurrency_for(space, ray_tune.nodes())
    ray_tune.run(Coordinator(trials, space.training(1), folder, Callbacks([])), concurrency, folder)
    found = [set(path.read_text().split()) for path in sorted(folder.glob("trials/*/nodes"))]
    return space, trials.outcomes(), found


def check(space, outcomes):
    """Every trial is complete and has the results of one device."""
    assert [o.state for o in outcomes] == ["COMPLETE"] * space.trials
    for outcome in outcomes:
        *_, alone = Run.prepare(space.regime(outcome.params, outcome.published), space.training(1)).reports()
        for p, q in zip(outcome.curve.points, alone.curve.points, strict=True):
            assert p.metrics["loss"] == pytest.approx(q.metrics["loss"], rel=1e-3)


def test_trials_run_on_both_nodes(nodes, tmp_path, monkeypatch):
    space, outcomes, where = study(tmp_path, monkeypatch, trials=4, resources={"cpus": 1})
    check(space, outcomes)
    assert len(set.union(*where)) == 2


def test_a_trial_spans_nodes(nodes, tmp_path, monkeypatch):
    space, outcomes, where = study(tmp_path, monkeypatch, trials=1, resources={"workers": 4, "cpus": 1})
    check(space, outcomes)
    assert len(where[0]) == 2


def test_a_node_that_is_lost_takes_nothing_with_it(nodes, tmp_path, monkeypatch):
    """Two trials of two ranks, one on each node; when both have reported, one of the nodes is killed."""
    other = nodes.list_all_nodes()[1]

    def kill():
        while len(list(tmp_path.glob("trials/*/nodes"))) < 2:
            time.sleep(0.05)
        nodes.remove_node(other, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    settings = dict(trials=3, resources={"workers": 2, "cpus": 1}, evaluate={"sizes": [8, 12], "reports": 4})
    space, outcomes, where = study(tmp_path, monkeypatch, **settings)
    killer.join()
    check(space, outcomes)
    assert sum(node["Alive"] for node in ray.nodes()) == 1
    assert sorted(map(len, where)) == [1, 1, 2]  # one began there and ended here


def test_a_token_that_the_cluster_does_not_take_is_one_sentence(nodes, tmp_path, space_file, monkeypatch):
    """Ray keeps the token of an earlier cluster in the home folder; with it, every trial's worker would die."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text(64 * "a")
    done = command("mixtune.search", "--space", space_file(TINY), "--out", tmp_path / "out", "--address", nodes.address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"error: --address {nodes.address}: the cluster ends what is started there (" in done.stderr
    assert "where it takes no token, set RAY_AUTH_MODE=disabled" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(560)  # eight ranks in turn, on two cores
def test_the_command_joins_a_cluster_measures_there_and_goes_on(nodes, tmp_path, space_file):
    """A driver without a share of the cluster, as on the head of one; every trial spans both nodes."""
    file = space_file(TINY | SYNCED | {"trials": 1, "resources": {"workers": 4, "cpus": 1}})
    words = ["mixtune.search", "--space", str(file), "--out", str(tmp_path / "out"), "--address", nodes.address]
    for trials, said in (("1", "measuring the time and memory"), ("2", "goes on: 1 of 2 trials are done")):
        done = command(*words, "--trials", trials)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
        assert re.search(r"measured  cifar_resnet8 on digits, cpu, 1 threads, 4 ranks", done.stdout)
        assert f"plan      {trials} trials, 1 at once, each on 4 workers of 1 CPU core" in done.stdout
        assert f"trials: {trials} complete, 0 pruned, 0 failed" in done.stdout
    assert done.stdout.count("measuring") == 0
