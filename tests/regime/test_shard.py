import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.regime import BatchShape, Shard


@given(n=st.integers(0, 5000), world=st.integers(1, 64))
def test_the_parts_are_consecutive_even_and_cover_everything_once(n, world):
    parts = [Shard(r, world).part(n) for r in range(world)]
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert Shard(0, world).bounds(n) == [*(part.start for part in parts), n]


def test_copies_stay_with_their_image():
    shapes = [Shard(r, 3).of(BatchShape(96, 8, 5)) for r in range(3)]
    assert shapes == [BatchShape(96, 2, 5), BatchShape(96, 3, 5), BatchShape(96, 3, 5)]
    assert sum(s.views for s in shapes) == 40


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"rank.*\[0, 2\).*2"):
        Shard(2, 2)
    with pytest.raises(ValueError, match=r"16x6\b.*\b6\b.*\b8\b"):
        Shard(0, 8).check([BatchShape(8, 24), BatchShape(16, 6)])
    Shard(0, 6).check([BatchShape(16, 6)])
