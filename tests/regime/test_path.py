import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.regime import BatchShape, Budget, Mixture, Regime, Schedule, published
from mixtune.regime.path import GRID, NEGLIGIBLE, SizePath, bell, distance, profile

BASE, SIZES = BatchShape(16, 64), (8, 12, 16, 20, 24)
ONE, ALL = 0.05, 4.0  # spreads: a single size, all sizes alike


@st.composite
def paths(draw):
    n = draw(st.integers(1, 4))
    octaves = st.lists(st.floats(-1.2, 0.8), min_size=n, max_size=n)
    spreads = st.lists(st.floats(0.05, 4.0), min_size=n, max_size=n)
    lengths = np.array(draw(st.lists(st.floats(0.05, 1.0), min_size=n, max_size=n)))
    splits = st.sampled_from([(1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.25)])
    return SizePath(
        tuple(draw(octaves)),
        tuple(draw(spreads)),
        tuple((lengths / lengths.sum()).tolist()),
        draw(st.floats(0, 1)),
        draw(splits),
    )


@given(paths(), st.sampled_from([BASE, BatchShape(224, 256)]))
@settings(max_examples=60, deadline=None)
def test_every_path_is_a_regime_on_the_grid_at_the_budget(path, base):
    sizes = [S * base.S // BASE.S for S in SIZES]
    regime = path.regime(base, sizes)
    assert set(regime.sizes) <= set(sizes)
    assert sum(phase.share for phase in regime.phases) == pytest.approx(1)
    for shape in regime.shapes:
        assert abs(shape.pixels - base.pixels) <= shape.S**2 * shape.D / 2
    for phase in regime.phases:
        assert min(phase.mixture.p) >= 0.99 * NEGLIGIBLE * max(phase.mixture.p)


@given(paths())
@settings(max_examples=30, deadline=None)
def test_a_path_means_the_same_at_any_base(path):
    """Batch sizes aside, which are whole numbers: the same shares of relative sizes, the same phases."""
    small = path.regime(BASE, SIZES)
    large = path.regime(BatchShape(224, 6400), [14 * S for S in SIZES])
    assert [p.share for p in small.phases] == [p.share for p in large.phases]
    for a, b in zip(small.phases, large.phases, strict=True):
        assert [14 * s.S for s in a.mixture.shapes] == [s.S for s in b.mixture.shapes]
        assert a.mixture.p == pytest.approx(b.mixture.p)


@given(paths(), st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_the_compiled_mixture_is_the_bell_at_the_middle_of_its_slice(path, progress):
    """The slow oracle: look the slice up and compute its mixture from the definition."""
    cuts = path.boundaries()
    low = max(c for c in cuts if c <= progress)
    high = min(c for c in cuts if c > progress)
    centre, spread = path.at((low + high) / 2)
    p = np.array([2.0 ** (-(((np.log2(S / 16) - centre) / spread) ** 2) / 2 / np.log(2)) for S in SIZES])
    if not p.any():  # far off the grid: the nearest size alone
        p = np.array([float(min(SIZES, key=lambda s: abs(np.log2(s / 16) - centre)) == S) for S in SIZES])
    p /= p.sum()
    p[p < NEGLIGIBLE * p.max()] = 0
    ends = np.cumsum([phase.share for phase in path.regime(BASE, SIZES).phases])
    mixture = path.regime(BASE, SIZES).phases[int(np.searchsorted(ends, (low + high) / 2))].mixture
    shares = {s.S: x for s, x in zip(mixture.shapes, mixture.p, strict=True)}
    assert [shares.get(S, 0.0) for S in SIZES] == pytest.approx(p / p.sum(), abs=1e-6)


def test_a_path_without_blend_is_as_many_phases_as_levels():
    path = SizePath((-1.0, -0.415, 0.0), (ONE, ONE, ALL), (0.45, 0.35, 0.2))
    regime = path.regime(BASE, SIZES)
    assert [round(p.share, 9) for p in regime.phases] == [0.45, 0.35, 0.2]
    assert [sorted({s.S for s in p.mixture.shapes}) for p in regime.phases] == [[8], [12], list(SIZES)]
    assert Schedule.build(regime, Budget(epochs=6), 9000, 0).counts.sum() > 0


def test_a_full_blend_of_single_sizes_grows_step_by_step():
    regime = SizePath((-1.0, 0.0, 0.585), (ONE,) * 3, (1 / 3,) * 3, 1.0).regime(BASE, SIZES)
    largest = [max(s.S for s in p.mixture.shapes) for p in regime.phases]
    assert largest == sorted(largest)
    assert set(regime.sizes) == set(SIZES)


def test_splits_move_from_batches_to_copies():
    regime = SizePath((-1.0,), (ONE,), (1.0,), 0.0, (1.0, 0.0)).regime(BASE, SIZES)
    copies = [p.mixture.shapes[0].D for p in regime.phases]
    assert (copies[0], copies[-1]) == (1, 4)
    assert copies == sorted(copies)


def test_knots_of_a_step_and_of_a_ramp():
    step = SizePath((-1.0, 0.0), (0.25, 0.5), (0.25, 0.75))
    assert step.at(0.2) == (-1.0, 0.25)
    assert step.at(0.3) == (0.0, 0.5)
    ramp = SizePath((-1.0, 0.0), (0.25, 0.25), (0.5, 0.5), 1.0)
    assert ramp.at(0.5) == pytest.approx((-0.5, 0.25))
    assert ramp.at(0.0) == (-1.0, 0.25)
    assert ramp.at(1.0) == (0.0, 0.25)


def test_the_distance_is_in_octaves_of_the_average_pixel():
    at8, at16 = (Regime.of(BASE, [Mixture.of([BASE.resized(S, 1)])]) for S in (8, 16))
    half = Regime.of(BASE, [Mixture.of([BASE.resized(8, 1)]), Mixture.of([BASE])], [0.5, 0.5])
    assert distance(at8, at16, SIZES) == (1.0, 0.0)
    assert distance(half, at16, SIZES) == (pytest.approx(0.5), 0.0)
    copies = Regime.of(BASE, [Mixture.of([BASE.resized(8, 0)])])
    assert distance(at8, copies, SIZES) == (0.0, 2.0)


def test_a_size_off_the_grid_counts_towards_its_neighbours():
    at14 = Regime.of(BASE, [Mixture.of([BASE.resized(14, 1)])])
    shares, _ = profile(at14, SIZES)
    assert shares.shape == (GRID, len(SIZES))
    assert shares.sum(1) == pytest.approx(1)
    assert shares[0] @ np.log2(SIZES) == pytest.approx(np.log2(14))


def test_a_fixed_batch_is_compared_by_its_pixels():
    """Steps at 24 px cost nine times those at 8 px, so that is where the compute is."""
    fixed_batch = Regime.of(BASE, [Mixture.of([BatchShape(8, 64), BatchShape(24, 64)])])
    shares, _ = profile(fixed_batch, SIZES)
    assert shares[0].tolist() == pytest.approx([0.1, 0, 0, 0, 0.9])


def test_bells_far_off_the_grid_are_the_nearest_size():
    assert bell(SIZES, 16, -9.0, 0.05).tolist() == [1, 0, 0, 0, 0]
    assert bell(SIZES, 16, 0.0, 1e9) == pytest.approx([0.2] * 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"centres": (0.0,)},
        {"centres": (0.0, float("nan"))},
        {"spreads": (0.1, 0.0)},
        {"lengths": (0.5, 0.6)},
        {"lengths": (-0.5, 1.5)},
        {"blend": 1.5},
        {"splits": (0.0, 2.0)},
    ],
)
def test_what_is_no_path_is_refused(wrong):
    right = {"centres": (0.0, 0.0), "spreads": (0.1, 0.1), "lengths": (0.5, 0.5), "blend": 0.0, "splits": (1.0, 1.0)}
    with pytest.raises(ValueError, match=next(iter(wrong)) if wrong != {"centres": (0.0,)} else "centre"):
        SizePath(**(right | wrong))


def test_a_path_without_sizes_is_refused():
    with pytest.raises(ValueError, match="size"):
        SizePath((0.0,), (1.0,), (1.0,)).regime(BASE, [])


def test_published_steps_are_paths_exactly():
    gradual = SizePath((-1.0, -0.415, 0.0), (ONE,) * 3, (1 / 3,) * 3).regime(BASE, SIZES)
    assert distance(gradual, published("gradual", BASE, SIZES, 4), SIZES) == pytest.approx((0, 0), abs=1e-9)
