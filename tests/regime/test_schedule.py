import itertools

import numpy as np
import pytest

from mixtune.regime import PUBLISHED, BatchShape, Budget, Mixture, Regime, Schedule, apportion, published

BASE = BatchShape(16, 32)
SIZES = [8, 12, 16, 20, 24]
N = 1000


def build(name, seed=0, **budget):
    return Schedule.build(published(name, BASE, SIZES, 4), Budget(**({"epochs": 10} | budget)), N, seed)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_compute_gives_every_published_regime_the_same_pixels(name):
    assert build(name).pixels == pytest.approx(10 * N * 16**2, rel=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_epochs_gives_every_published_regime_the_same_samples(name):
    assert build(name, spend="epochs").samples == pytest.approx(10 * N, rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_progress_rises_from_zero_to_just_below_one(name):
    progress = build(name).progress
    assert progress[0] == 0
    assert np.all(np.diff(progress) > 0)
    assert progress[-1] < 1


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_apportion_is_within_one_step_of_every_share(n):
    p = np.random.default_rng(0).dirichlet(np.ones(6))
    counts = apportion(p, n)
    assert counts.sum() == n
    assert np.all(np.abs(counts - p * n) < 1)


def test_same_seed_same_schedule_and_another_seed_another():
    assert np.array_equal(build("mixsize_b").index, build("mixsize_b").index)
    assert not np.array_equal(build("mixsize_b").index, build("mixsize_b", seed=1).index)


@pytest.mark.parametrize("name", ["mixsize_b", "stepwise", "multiscale"])
def test_each_sample_once_per_epoch_and_never_twice_in_a_step(name):
    batches = list(build(name).sample_batches(N, seed=3))
    stream = np.concatenate(batches)
    for epoch in range(len(stream) // N):
        assert len(set(stream[epoch * N : (epoch + 1) * N])) == N
    assert all(len(set(b)) == len(b) for b in batches)


def test_resuming_draws_the_same_samples():
    schedule = build("mixsize_b")
    whole = list(schedule.sample_batches(N, seed=3))
    resumed = list(schedule.sample_batches(N, seed=3, start=40))
    assert all(np.array_equal(a, b) for a, b in itertools.zip_longest(whole[40:], resumed))


def test_a_batch_larger_than_the_data_is_refused_with_the_numbers():
    with pytest.raises(ValueError, match=r"\b128\b.*\b100\b"):
        next(build("mixsize_b").sample_batches(100, seed=0))


def test_a_budget_below_one_step_is_refused():
    with pytest.raises(ValueError, match=r"phase 1\b.*0\.001"):
        Schedule.build(published("fixed", BASE, SIZES, 4), Budget(0.001), N, 0)


def test_a_run_that_cannot_meet_its_budget_is_refused_with_the_numbers():
    regime = Regime.of(BatchShape(16, 100), [Mixture.of([BatchShape(16, 700)])], name="too large a step")
    message = r"too large a step.*\b1 epoch.*\b1000\b.*\b1\b.*-30\.0 %.*\b5 %"
    with pytest.raises(ValueError, match=message):
        Schedule.build(regime, Budget(1), N, 0)
    assert len(Schedule.build(regime, Budget(1), N, 0, tolerance=0.31)) == 1
