"""Random regimes for property tests."""

from hypothesis import strategies as st

from mixtune.regime import BatchShape, Mixture, Regime

shapes = st.builds(
    BatchShape, S=st.integers(1, 12).map(lambda k: 4 * k), B=st.integers(1, 64), D=st.sampled_from([1, 1, 2, 5])
)


@st.composite
def mixtures(draw):
    of = draw(st.lists(shapes, min_size=1, max_size=5, unique=True))
    return Mixture.of(of, [draw(st.floats(0.01, 1)) for _ in of])


@st.composite
def regimes(draw):
    """One to four phases on any clock. A phase's share is at least a tenth of the largest."""
    phases = draw(st.lists(mixtures(), min_size=1, max_size=4))
    shares = [draw(st.floats(0.1, 1)) for _ in phases]
    clock = draw(st.sampled_from(["budget", "epochs", "steps"]))
    return Regime.of(draw(shapes), phases, shares, name="random", clock=clock)
