import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.regime import BatchShape, Mixture, Regime
from mixtune.regime.catalogue import CIFAR, IMAGENET, from_literature
from mixtune.regime.rebase import rebased
from tests.regime.strategies import regimes


def test_a_regime_found_at_32_is_carried_to_224():
    small = from_literature("mixsize_cifar_d", CIFAR, 8)  # 16x64x4, 24x57x2, 32x64, 48x28
    large = rebased(small, IMAGENET, 32)
    # 16, 24 and 48 become 112, 168 and 336, which the stride moves to 128, 160 and 320; B takes up the difference.
    assert [str(s) for s in large.shapes] == ["128x196x4", "160x251x2", "224x256", "320x125"]
    assert large.phases[0].mixture.p == small.phases[0].mixture.p
    assert re.search("32x64.*224x256.*32", large.source)


def test_fixed_batches_stay_fixed():
    small = from_literature("multiscale_fbs", BatchShape(32, 64), 4)
    assert {s.B for s in rebased(small, IMAGENET, 32).shapes} == {256}


def test_shapes_that_fall_together_are_one_and_the_source_says_so():
    base = BatchShape(32, 64)
    small = Regime.of(base, [Mixture.of([base.resized(S, 1) for S in (28, 32, 36)], [0.2, 0.5, 0.3])])
    large = rebased(small, BatchShape(64, 16), 32)
    assert large.shapes == (BatchShape(64, 16),)
    assert large.phases[0].mixture.p == pytest.approx((1.0,))
    assert re.search("28x84.*32x64.*36x51.*64x16", large.source)


@given(regimes(), st.sampled_from([8, 16, 32]), st.integers(1, 8), st.integers(32, 512))
def test_a_rebased_regime_keeps_shares_clock_and_relative_cost(regime, stride, multiple, B):
    base = BatchShape(stride * multiple, B)
    large = rebased(regime, base, stride)
    assert (large.base, large.clock) == (base, regime.clock)
    assert [ph.share for ph in large.phases] == [ph.share for ph in regime.phases]
    assert all(s.S % stride == 0 for s in large.shapes)
    if len(regime.phases) == len(regime.shapes) == 1:
        (old,), (new,) = regime.shapes, large.shapes
        if (old.B, old.D) != (regime.base.B, regime.base.D) and new.B > 1:
            off = abs(new.pixels - old.pixels / regime.base.pixels * base.pixels)
            rounding = new.S**2 * new.D / 2 + old.S**2 * old.D / 2 * base.pixels / regime.base.pixels
            assert off <= rounding * (1 + 1e-9)


@given(st.integers(2, 12), st.integers(1, 64), st.integers(1, 3), st.floats(0, 1), st.sets(st.integers(1, 12)))
def test_rebasing_to_the_same_base_changes_nothing_that_was_on_budget(S, B, D, split, others):
    base = BatchShape(4 * S, B, D)
    exact = [
        shape for k in others if abs((shape := base.resized(4 * k, split)).pixels / base.pixels - 1) < 0.5 / shape.B
    ]
    regime = Regime.of(base, [Mixture.of(sorted({base, *exact}))])
    assert rebased(regime, base, 4) == regime


def test_a_base_off_the_stride_is_refused():
    with pytest.raises(ValueError, match=r"225.*32"):
        rebased(from_literature("fixed", CIFAR, 8), BatchShape(225, 4), 32)
