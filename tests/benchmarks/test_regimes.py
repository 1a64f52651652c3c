import itertools
import math
import re
import statistics
from types import SimpleNamespace

import pytest

from benchmarks import regimes
from benchmarks.common import random_images
from benchmarks.regimes import PLANS, Job, Plan, jobs, packed, table, train_once
from benchmarks.verdict import verdict
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Schedule, published
from mixtune.runtime.device import available_cpus
from mixtune.training.checkpoint import Checkpoint

pytestmark = pytest.mark.arithmetic


@pytest.mark.parametrize(
    ("differences", "word"),
    [
        ([1.0, 1.1, 0.9], "better"),
        ([-1.0, -1.1, -0.9], "worse"),
        ([1.0, -1.0, 0.2], "no difference"),
        ([2.0, 0.1, 0.3], "no difference"),  # all above 0, but three seeds do not carry it
    ],
)
def test_the_verdict_is_students_interval(differences, word):
    scipy = pytest.importorskip("scipy.stats")
    n = len(differences)
    low, high = scipy.t.interval(0.95, n - 1, statistics.mean(differences), scipy.sem(differences))
    said = verdict(differences)
    assert said.endswith(word)
    assert f"{low:+.2f} to {high:+.2f}" in said


def test_a_single_seed_has_no_verdict():
    assert "no verdict" in verdict([3.0])


def test_every_seed_brings_a_run_of_every_regime():
    plan = PLANS["gpu"]
    first = jobs(plan)[: len(plan.regimes) * len(plan.spend)]
    assert {j.seed for j in first} == {1}
    assert {(j.regime, j.spend) for j in first} == {(r, s) for r in plan.regimes for s in plan.spend}
    assert len(set(jobs(plan))) == len(jobs(plan)) == plan.seeds * len(first)


def test_the_gpu_plan_is_the_papers():
    """MixSize: ResNet-44, batch 64, 200 epochs: 156K steps of the fixed size, lr steps after epochs 81, 122, 164."""
    plan = PLANS["gpu"]
    steps = len(Schedule.build(published("fixed", plan.base, plan.sizes, 4), Budget(plan.epochs), 50_000, 0))
    assert steps == pytest.approx(156_250, abs=1)
    assert [round(m * plan.epochs) for m in plan.recipe.milestones] == [81, 122, 164]
    assert (plan.network, plan.recipe.lr, plan.recipe.smoothing) == ("cifar_resnet44", 0.1, True)


def test_packed_runs_are_finished_in_pieces_and_are_those_alone(tmp_path, monkeypatch):
    """The time is up in the middle of each run; the next piece goes on from the checkpoints."""
    plan = Plan(
        "cifar_resnet8", BatchShape(8, 32), 2, (8, 12), Recipe(), ("compute",), 1, available_cpus(), 250, packed=2
    )
    mine, clock, real = jobs(plan)[:2], itertools.count(), Checkpoint.save
    saved = []
    monkeypatch.setattr(Checkpoint, "due", True)
    monkeypatch.setattr("mixtune.files.os.fsync", lambda fd: None)  # one for every step takes its time
    monkeypatch.setattr(Checkpoint, "save", lambda self, state: (saved.append(state["step"]), real(self, state)))
    monkeypatch.setattr(regimes, "time", SimpleNamespace(time=lambda: next(clock)))
    with random_images(2000):
        assert list(packed(plan, mine, "-", tmp_path, 10)) == [None, None]
        stopped = len(saved)
        again = list(packed(plan, mine, "-", tmp_path, math.inf))
        alone = [train_once(plan, job, "-", tmp_path / "alone", math.inf) for job in mine]
    assert 1 <= stopped <= 11  # a step's checkpoint comes after its look at the clock
    assert saved[stopped] > 1  # not from the start
    again.sort(key=lambda r: plan.regimes.index(r["regime"]))
    for a, b in zip(again, alone, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_the_table_pairs_the_seeds_that_are_there():
    plan = Plan("cifar_resnet8", BatchShape(16, 64), 1, (8, 16), Recipe(), ("compute",), 2, 1)
    runs = []
    for job, top1 in (
        (Job("fixed", "compute", 1), 0.5),
        (Job("fixed", "compute", 2), 0.6),
        (Job("mixsize_b", "compute", 2), 0.7),
    ):
        curve = {"8": top1, "16": top1 + 0.1}
        runs.append(vars(job) | {"steps": 10, "epochs": 1.0, "top1": {"running": curve, "calibrated": curve}})
    text = "\n".join(table(plan, runs))
    assert re.search(r"mixsize_b.*fixed.*\+10\.00\b.*single seed", text)
    assert "60.00 ± 7.07" in text  # the mean over two sizes, 55 and 65
