"""OptunaStudy on several ranks, in a real Ray on this machine; ranks that die in every way."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import ray
import torch

from mixtune.config import parse
from mixtune.errors import InputError, TrainingError
from mixtune.execution import ray_tune, worker_group
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling import checks
from mixtune.profiling.concurrency import Concurrency, concurrency_for
from mixtune.profiling.resource_profile import measure_profile
from mixtune.regime import BatchShape
from mixtune.runtime.process_group import PeerLostError
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.training.run import Run
from tests.accounts import assert_ended
from tests.conftest import TINY
from tests.execution import on_ranks
from tests.execution.published_trial import published_spec

pytestmark = pytest.mark.arithmetic

SPACE = TINY | {
    "resources": {"workers": 2, "cpus": 1},
    "recipe": {"sync_bn": True},
    "published": ["multiscale"],
    "trials": 1,
    "pruner": {"name": "none"},
}


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory):
    """A finished study of a trial on two ranks: its space, outcomes and folder."""
    folder, space = tmp_path_factory.mktemp("study"), parse(SPACE, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    ray_tune.run(Coordinator(trials, space.training(1), folder, Callbacks([])), Concurrency(1, 0, 1, 2), folder)
    return space, trials.outcomes(), folder


@pytest.mark.slow
def test_a_study_whose_trials_have_two_ranks_scores_what_one_device_scores(study):
    space, outcomes, folder = study
    assert [o.state for o in outcomes] == ["COMPLETE"]
    for outcome in outcomes:
        regime = space.regime(outcome.params, outcome.published)
        *_, alone = Run.prepare(regime, space.training(1)).reports()
        for p, q in zip(outcome.curve.points, alone.curve.points, strict=True):
            assert p.metrics["loss"] == pytest.approx(q.metrics["loss"], rel=1e-3)
            assert p.metrics["top1"] == pytest.approx(q.metrics["top1"], abs=0.021)  # two of 100 images
        assert (folder / "trials" / f"{outcome.number:04d}" / "weights.safetensors").exists()


@pytest.mark.slow
def test_torchrun_gives_the_trials_score_to_the_last_bit(study):
    _, outcomes, folder = study
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mixtune.train"]
    for outcome in outcomes:
        regime = folder / "trials" / f"{outcome.number:04d}" / "regime.yaml"
        done = subprocess.run([*start, "--regime", str(regime)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"score    {outcome.score!r} " in done.stdout
        assert done.stdout.count("score ") == 1
        assert "note " not in done.stdout


@pytest.mark.slow
def test_a_rank_that_is_killed_starts_the_trial_again_from_its_checkpoint(study, group, tmp_path):
    notes = tmp_path / "notes"
    found = list(
        worker_group.group_results(
            on_ranks.dies_once, group, published_spec(parse(SPACE, Space, "f"), tmp_path), str(notes)
        )
    )
    assert [r["number"] for r in found] == [1, 2]
    (undisturbed,) = (o.curve for o in study[1])
    assert found[-1]["curve"] == undisturbed.rows()
    told = [line.split() for line in notes.read_text().splitlines()]
    first = [seconds for rank, number, seconds in told if (rank, number) == ("0", "1")]
    assert len(first) == 2
    assert first[0] == first[1]  # the first report was not made again: it came out of the checkpoint


def test_a_ranks_own_words_come_before_a_death_and_a_death_before_those_who_noticed():
    lost, dead, bug = PeerLostError("gone"), ray.exceptions.RayActorError(error_msg="killed"), ValueError("a bug")
    said = InputError("task.data: nothing there")
    assert worker_group._first_cause([lost, dead, bug, said]) is said
    assert isinstance(worker_group._first_cause([lost, bug, dead]), worker_group.RankLostError)
    assert worker_group._first_cause([lost, bug]) is bug  # it would be the same again
    assert isinstance(worker_group._first_cause([lost]), worker_group.RankLostError)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: uncorrectable ECC error"), OSError(errno.EIO, "Input/output error")],
    ids=["GPU", "file"],
)
def test_a_rank_that_lost_its_device_or_a_file_counts_as_dead_and_a_full_disk_or_lack_of_memory_does_not(error):
    found = worker_group._first_cause([PeerLostError("gone"), error])
    assert isinstance(found, worker_group.RankLostError)
    assert str(error) in str(found)
    for other in (OSError(errno.ENOSPC, "No space left"), torch.OutOfMemoryError("CUDA out of memory")):
        assert worker_group._first_cause([PeerLostError("gone"), other]) is other


@pytest.mark.slow
def test_ranks_start_again_in_new_processes_when_one_lost_its_device(group, tmp_path):
    assert list(worker_group.group_results(on_ranks.loses_its_device_once, group, str(tmp_path / "pids"))) == [1, 2]
    told = [line.split() for line in (tmp_path / "pids").read_text().splitlines()]
    assert sorted(rank for rank, _ in told) == ["0", "0", "1", "1"]
    assert len({pid for _, pid in told}) == 4


@pytest.mark.slow
def test_ranks_that_always_die_are_given_up(group, monkeypatch):
    monkeypatch.setattr(worker_group, "MAX_RESTARTS", 1)
    given = []
    with pytest.raises(TrainingError, match=r"ranks died 2 times; the last time: a rank died"):
        given.extend(worker_group.group_results(on_ranks.dies, group))
    assert given == [1]


@pytest.mark.slow
def test_what_a_rank_says_is_what_is_told(group):
    with pytest.raises(InputError, match=r"^task\.data: nothing there$"):
        list(worker_group.group_results(on_ranks.refuses, group))


def test_a_trial_that_is_stopped_ends_its_ranks(group):
    stream = worker_group.group_results(on_ranks.pids, group)
    alive = next(stream)
    assert len(set(alive)) == 2
    stream.close()
    assert_ended(alive)


@pytest.mark.slow
def test_memory_and_time_are_measured_by_the_ranks_that_share_a_step(cluster):
    space = parse(SPACE, Space, "f")
    shapes = [space.base, BatchShape(8, 16)]
    profile = ray_tune.call(measure_profile, Concurrency(1, 0, 1, 2), space.training(1), shapes)
    assert "2 ranks" in profile.measured_on
    assert {step.shape for step in profile.steps} == set(shapes)
    assert profile.step_seconds(space.base) > 0
    assert 0 < profile.memory(space.base) < profile.available_memory


@pytest.mark.slow
def test_a_rank_that_runs_out_of_memory_ends_the_measurement(cluster):
    space = parse(SPACE, Space, "f")
    with pytest.raises(InputError, match=r"base: .*8x32.*base\.B"):
        ray_tune.call(
            on_ranks.short_of_memory, Concurrency(1, 0, 1, 2), space.training(1), [space.base, BatchShape(8, 16)]
        )


def test_a_measurement_that_kills_its_process_is_told_and_not_repeated(cluster, tmp_path):
    def dies_too(notes):
        with notes.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"the process that was to measure steps died \(out of memory, or killed\)"):
        ray_tune.call(dies_too, Concurrency(1, 0, 1), tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "x"


def test_a_cluster_without_room_is_said(cluster, monkeypatch):
    monkeypatch.setattr(worker_group, "PLACEMENT_TIMEOUT", 1.0)
    with pytest.raises(TrainingError, match="the cluster had no room for 3 ranks"):
        worker_group.call_on_group(on_ranks.dies, 3, 1, 0)
    assert ray.is_initialized()


def test_slots_count_ranks_node_by_node():
    space = parse(SPACE | {"resources": {"workers": 3, "cpus": 2}}, Space, "f")
    assert concurrency_for(space, [(12, 0)]) == Concurrency(2, 0, 2, 3)
    # Three cores hold one worker of two; four of the twelve cores are of no use.
    assert concurrency_for(space, [(3, 0)] * 4) == Concurrency(2, 0, 1, 3)
    with pytest.raises(InputError, match="asks for 3 workers of 2 CPU cores each, and there is room for 2"):
        concurrency_for(space, [(3, 0)] * 2)
    gpus = parse(SPACE | {"resources": {"workers": 8}}, Space, "f")
    assert concurrency_for(gpus, [(32, 8)] * 2) == Concurrency(4, 1, 2, 8)
    assert str(Concurrency(4, 1, 2, 8)) == "2 at once, each on 8 workers of 4 CPU cores and 1 GPU"
    assert str(Concurrency(1, 0, 2)) == "2 at once, each on 1 CPU core"
    with pytest.raises(InputError, match="gpus must be 0 or 1 where a trial has several workers"):
        parse(SPACE | {"resources": {"workers": 2, "gpus": 0.5}}, Space, "f")


def test_a_shape_with_fewer_images_than_workers_is_refused_before_the_study():
    space = parse(SPACE | {"resources": {"workers": 15}}, Space, "f")
    with pytest.raises(InputError, match=r"f: resources\.workers: a step of 12x14 has 14 images, too few for 15 ranks"):
        checks.check_batches(space, 300, "f")


def test_ranks_change_the_meaning_of_a_score_unless_norms_are_synchronised():
    own = [parse(SPACE | {"recipe": {}, "resources": {"workers": n}}, Space, "f").digest() for n in (1, 2)]
    synced = [parse(SPACE | {"resources": {"workers": n}}, Space, "f").digest() for n in (1, 2)]
    assert own[0] != own[1]
    assert synced[0] == synced[1]
