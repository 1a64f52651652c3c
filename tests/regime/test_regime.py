import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.regime import BatchShape, Mixture, Regime
from tests.regime.strategies import mixtures, regimes

SMALL, LARGE = BatchShape(16, 256), BatchShape(32, 64)


@given(mixtures())
def test_step_shares_survive_the_way_through_sample_shares(mixture):
    again = Mixture.of_samples(mixture.shapes, mixture.sample_shares)
    assert again.shapes == mixture.shapes
    assert again.p == pytest.approx(mixture.p, rel=1e-12)


@given(mixtures(), st.integers(0, 2**32))
def test_sample_shares_survive_the_way_through_step_shares(mixture, seed):
    q = np.random.default_rng(seed).dirichlet(np.ones(len(mixture.shapes)))
    assert Mixture.of_samples(mixture.shapes, q).sample_shares == pytest.approx(q, rel=1e-9)


def test_step_and_sample_shares_by_hand():
    # 4 steps of 64 images see as many samples as one step of 256.
    mixture = Mixture.of([SMALL, LARGE], [0.2, 0.8])
    assert mixture.sample_shares == pytest.approx((0.5, 0.5))
    assert Mixture.of_samples([SMALL, LARGE], [0.5, 0.5]).p == pytest.approx((0.2, 0.8))


@pytest.mark.parametrize(
    ("clock", "steps", "epochs", "pixels"),
    [
        # 32x64 costs as many pixels as 16x256 and a quarter of its images.
        ("budget", (0.5, 0.5), (0.8, 0.2), (0.5, 0.5)),
        ("steps", (0.5, 0.5), (0.8, 0.2), (0.5, 0.5)),
        ("epochs", (0.2, 0.8), (0.5, 0.5), (0.2, 0.8)),
    ],
)
def test_phase_shares_are_converted_from_each_clock(clock, steps, epochs, pixels):
    regime = Regime.of(LARGE, [Mixture.of([SMALL]), Mixture.of([LARGE])], clock=clock)
    assert regime.shares_of(lambda s: 1) == pytest.approx(steps)
    assert regime.shares_of(lambda s: s.B) == pytest.approx(epochs)
    assert regime.shares_of(lambda s: s.pixels) == pytest.approx(pixels)


def test_the_budget_clock_follows_what_the_budget_counts():
    regime = Regime.of(LARGE, [Mixture.of([SMALL]), Mixture.of([LARGE])])
    assert regime.shares_of(lambda s: s.B, budget_cost=lambda s: s.B) == pytest.approx((0.5, 0.5))
    assert regime.shares_of(lambda s: 1, budget_cost=lambda s: s.B) == pytest.approx((0.2, 0.8))


@given(regimes())
def test_shares_always_sum_to_one_and_restore_the_clock(regime):
    clocks = {"budget": lambda s: s.pixels, "epochs": lambda s: s.B, "steps": lambda s: 1}
    for cost in clocks.values():
        assert sum(regime.shares_of(cost)) == pytest.approx(1)
    assert regime.shares_of(clocks[regime.clock]) == pytest.approx([ph.share for ph in regime.phases])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture.of([SMALL, SMALL]), "16x256"),
        (lambda: Mixture.of([SMALL], [float("nan")]), "nan"),
        (lambda: Mixture((SMALL, LARGE), (0.5, 0.4)), r"\bp\b.*\b1\b.*0\.9"),
        (lambda: Mixture((SMALL,), (0.5, 0.5)), r"\b1\b.*\b2\b"),
        (lambda: Regime.of(LARGE, [Mixture.of([SMALL])], clock="hours"), "clock.*budget.*epochs.*steps.*'hours'"),
        (lambda: Regime.of(LARGE, []), "phase"),
    ],
)
def test_bad_mixtures_and_regimes_are_refused_with_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_mixture_of_the_whole_run_counts_its_steps():
    # Phases of half the budget each; 32x64 costs as much as 16x256, so half the steps are of each.
    regime = Regime.of(LARGE, [Mixture.of([SMALL]), Mixture.of([SMALL, LARGE], [0.5, 0.5])])
    assert regime.mixture == Mixture.of([SMALL, LARGE], [0.75, 0.25])


def test_many_phases_are_summed_up_in_a_line():
    few = Regime.of(LARGE, [Mixture.of([SMALL]), Mixture.of([LARGE])], [0.25, 0.75])
    assert str(few) == "25%: 16x256 → 75%: 32x64"
    many = Regime.of(LARGE, [Mixture.of([SMALL])] * 5 + [Mixture.of([LARGE])] * 5)
    assert str(many) == "10 phases, 16 to 32 px on average: 16x256 50% · 32x64 50%"
