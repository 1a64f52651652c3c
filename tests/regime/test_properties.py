"""What must hold for every regime, on random ones."""

import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.regime import BatchShape, Budget, Mixture, Regime, Schedule, apportion, published
from mixtune.regime.files import load_regime, save_regime
from tests.regime.strategies import regimes, shapes

N = 2000


def build(regime, seed=0, spend="compute", steps=800):
    """A schedule of about this many steps of the base shape, or of the regime's own where they are much larger."""
    largest = max(s.pixels for s in regime.shapes) / regime.base.pixels
    most = max(s.B for s in regime.shapes) / regime.base.B
    epochs = steps * max(1, largest if spend == "compute" else most) * regime.base.B / N
    return Schedule.build(regime, Budget(epochs, spend), N, seed), epochs


@given(regimes(), st.sampled_from(["compute", "epochs"]))
def test_the_budget_is_met_to_within_a_step(regime, spend):
    schedule, epochs = build(regime, spend=spend)
    total = epochs * N * (regime.base.pixels / regime.base.B if spend == "compute" else 1)
    assert schedule.spent == (schedule.pixels if spend == "compute" else schedule.samples)
    assert abs(schedule.spent - total) <= schedule.cost.max()


@given(shapes, st.lists(st.floats(0.1, 1), min_size=1, max_size=40))
def test_a_run_of_one_shape_ends_within_half_a_step_whatever_its_phases(shape, shares):
    """Forty phases of two steps and a bit each do not add up their roundings."""
    regime = Regime.of(shape, [Mixture.of([shape])] * len(shares), shares)
    steps = 27.3 * sum(shares) / min(shares)
    schedule = Schedule.build(regime, Budget(steps * shape.B / N), N, 0, tolerance=1)
    assert abs(len(schedule) - steps) <= 0.5 + 1e-9


@given(regimes(), st.sampled_from(["compute", "epochs"]))
def test_every_shape_gets_its_share_of_every_phase_to_within_one_step(regime, spend):
    schedule, _ = build(regime, spend=spend)
    assert sum(schedule.phase_steps) == len(schedule)
    phases = np.split(schedule.index, np.cumsum(schedule.phase_steps)[:-1])
    for phase, index in zip(regime.phases, phases, strict=True):
        counts = np.bincount(index, minlength=len(schedule.shapes))
        ids = [schedule.shapes.index(s) for s in phase.mixture.shapes]
        assert np.all(np.abs(counts[ids] - np.array(phase.mixture.p) * len(index)) < 1 + 1e-9)
        assert counts.sum() == counts[ids].sum()


@given(regimes())
def test_every_phase_ends_where_its_share_of_the_budget_ends(regime):
    schedule, epochs = build(regime)
    total = epochs * N * regime.base.pixels / regime.base.B
    spent = np.cumsum(schedule.cost[schedule.index])[np.cumsum(schedule.phase_steps) - 1]
    due = total * np.cumsum(regime.shares_of(lambda s: s.pixels))
    assert np.all(np.abs(spent - due) <= schedule.cost.max())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda w: sum(w) > 0.01), st.integers(0, 10**6))
def test_largest_remainder_is_exact_and_within_one(weights, n):
    p = np.array(weights) / sum(weights)
    counts = apportion(p, n)
    assert counts.sum() == n
    assert np.all(counts >= 0)
    assert np.all(np.abs(counts - p * n) < 1 + 1e-6)


@given(regimes(), st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_steps(regime, seed):
    one, two = build(regime, seed)[0], build(regime, seed)[0]
    assert one.shapes == two.shapes
    assert np.array_equal(one.index, two.index)


@given(regimes())
def test_progress_rises_monotonically_from_zero_to_just_below_one(regime):
    schedule, _ = build(regime)
    progress = schedule.progress
    assert progress[0] == 0
    assert np.all(np.diff(progress) > 0)
    assert progress[-1] == pytest.approx(1 - schedule.cost[schedule.index[-1]] / schedule.spent)


@given(regimes(), st.integers(64, 400), st.integers(0, 99))
def test_every_sample_once_per_epoch_and_all_of_them(regime, n_samples, seed):
    schedule, _ = build(regime, steps=60)
    batches = list(schedule.sample_batches(n_samples, seed))
    assert [len(b) for b in batches] == [s.B for s in schedule]
    assert all(len(set(b)) == len(b) for b in batches)
    stream = np.concatenate(batches)
    whole = len(stream) // n_samples
    epochs = np.sort(stream[: whole * n_samples].reshape(whole, n_samples), axis=1)
    assert np.array_equal(epochs, np.tile(np.arange(n_samples), (whole, 1)))
    assert len(set(stream[whole * n_samples :])) == len(stream) - whole * n_samples


@given(regimes(), st.integers(64, 400), st.integers(0, 99), st.floats(0, 1))
def test_resuming_anywhere_draws_what_an_unbroken_run_draws(regime, n_samples, seed, where):
    schedule, _ = build(regime, steps=60)
    start = int(where * len(schedule))
    whole = list(schedule.sample_batches(n_samples, seed))[start:]
    resumed = list(schedule.sample_batches(n_samples, seed, start))
    assert len(whole) == len(resumed)
    assert all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))


@given(st.integers(20, 40), st.integers(41, 79), st.integers(0, 999), st.data())
def test_resuming_is_exact_where_one_step_is_more_than_half_the_data(B, n_samples, seed, data):
    """There the order of an epoch depends on all epochs before it."""
    regime = Regime.of(BatchShape(8, B), [Mixture.of([BatchShape(8, B), BatchShape(4, n_samples - 1)])])
    schedule = Schedule.build(regime, Budget(30), n_samples, 0)
    whole = list(schedule.sample_batches(n_samples, seed))
    start = data.draw(st.integers(0, len(schedule)))
    resumed = list(schedule.sample_batches(n_samples, seed, start))
    assert len(resumed) == len(whole) - start
    assert all(np.array_equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


@given(regimes())
def test_files_give_back_the_regime_to_the_bit(tmp_path_factory, regime):
    path = tmp_path_factory.mktemp("regime") / "r.yaml"
    save_regime(path, regime)
    assert load_regime(path) == (regime, {})


DIGEST = """
import hashlib, numpy as np
from mixtune.regime import BatchShape, Budget, Schedule, published
schedule = Schedule.build(published("mixsize_bd", BatchShape(32, 64), [16, 24, 32, 48], 8), Budget(3), 5000, 7)
digest = hashlib.sha256(repr(schedule.shapes).encode() + schedule.index.tobytes())
for batch in schedule.sample_batches(5000, 7, start=20):
    digest.update(batch.astype(np.int64).tobytes())
print(digest.hexdigest())
"""


def test_every_rank_agrees_without_talking():
    """Two processes whose hashing differs (as two machines' may) make the same steps of the same samples."""
    root = Path(__file__).parents[2]
    run = [sys.executable, "-c", DIGEST]
    digests = {
        subprocess.run(run, env={"PYTHONHASHSEED": s}, cwd=root, check=True, capture_output=True, text=True).stdout
        for s in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2


def test_an_imagenet_schedule_fits_in_a_few_megabytes():
    regime = published("mixsize_bd", BatchShape(224, 256), [128, 224], 32)
    tracemalloc.start()
    try:
        schedule = Schedule.build(regime, Budget(90), 1_281_167, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(schedule) == pytest.approx(450_410, rel=1e-3)  # the published 450K steps
    assert peak < 8 * 2**20
