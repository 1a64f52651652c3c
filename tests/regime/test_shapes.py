import pytest

from mixtune.regime import BatchShape


@pytest.mark.parametrize("base", [BatchShape(32, 64), BatchShape(224, 256), BatchShape(224, 64, 2)])
@pytest.mark.parametrize("split", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("S", [8, 16, 24, 32, 48, 96, 160, 224, 288])
def test_resized_shapes_keep_the_pixels_to_within_half_an_image(base, split, S):
    shape = base.resized(S, split)
    if shape.B > 1:  # one image is the least there is
        assert abs(shape.pixels - base.pixels) <= S**2 * shape.D / 2


def test_split_one_only_grows_the_batch_and_split_zero_only_adds_copies():
    base = BatchShape(32, 64)
    assert base.resized(16, 1.0) == BatchShape(16, 256, 1)
    assert base.resized(16, 0.0) == BatchShape(16, 64, 4)
    assert base.resized(16, 0.5) == BatchShape(16, 128, 2)


@pytest.mark.parametrize(("key", "value"), [("S", 0), ("B", 0), ("D", 0), ("S", 8.0), ("S", True)])
def test_bad_shapes_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"^{key}\b.*\b{value}$"):
        BatchShape(**(dict(S=8, B=1) | {key: value}))
