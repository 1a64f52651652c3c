import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mixtune.data.augment import Augment, resize
from mixtune.data.in_memory import PixelViews, cached
from mixtune.data.sources import Pixels
from mixtune.regime import BatchShape, Schedule

pytestmark = pytest.mark.arithmetic

SHAPES = (BatchShape(8, 6, 2), BatchShape(12, 4), BatchShape(16, 3, 3), BatchShape(4, 20))


def pixels(n=24, H=8, W=8):
    rng = np.random.default_rng(0)
    return Pixels(torch.from_numpy(rng.integers(0, 256, (n, H, W, 3), dtype=np.uint8)), torch.arange(n))


def schedule(steps=12):
    return Schedule(SHAPES, np.arange(steps, dtype=np.int16) % len(SHAPES), np.ones(len(SHAPES)))


def plain(source, pad, flip, seed, steps):
    """The same views by one gather per step from images [N, H, W, 3]: the pixels of every crop, one index each."""
    N, H, W, _ = source.images.shape
    padded = F.pad(source.images, (0, 0, pad, pad, pad, pad))
    row, column = torch.arange(H), torch.arange(W)
    for step, samples in enumerate(steps.sample_batches(N, seed)):
        shape = steps.shapes[steps.index[step]]
        rng = np.random.default_rng((seed, step))
        y, x = torch.from_numpy(rng.integers(0, 2 * pad + 1, size=(2, shape.views)))
        columns = column.expand(shape.views, W)
        if flip:
            mirrored = torch.from_numpy(rng.integers(0, 2, size=shape.views, dtype=bool))
            columns = torch.where(mirrored[:, None], W - 1 - column, column)
        image = torch.from_numpy(samples).repeat_interleave(shape.D)
        crops = padded[image[:, None, None], (y[:, None] + row)[:, :, None], (x[:, None] + columns)[:, None, :]]
        yield resize(crops.permute(0, 3, 1, 2).float(), shape.S), source.labels[image]


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_views_are_those_of_a_plain_gather_to_the_bit(pad, flip):
    source, steps = pixels(H=8, W=12), schedule()
    views = PixelViews(source, Augment(pad=pad), flip, torch.device("cpu"))
    for drawn, (x, y) in zip(views.draw(steps, 5), plain(source, pad, flip, 5, steps), strict=True):
        here = views.make(drawn)
        captured = views.make_at(drawn.shape.S, torch.from_numpy(drawn.choices))  # what a GPU does
        for made in (here, captured):
            assert torch.equal(made[0], x)
            assert torch.equal(made[1], y)


def test_drawing_goes_on_where_it_stopped():
    views, steps = PixelViews(pixels(), Augment(), True, torch.device("cpu")), schedule()
    whole = [d.choices for d in views.draw(steps, 1)]
    rest = [d.choices for d in views.draw(steps, 1, 5)]
    assert all(np.array_equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_the_images_are_not_copied_for_every_crop_nor_for_the_next_trial():
    source = pixels()
    one, two = (PixelViews(source, Augment(pad=2), True, torch.device("cpu")) for _ in range(2))
    assert one._windows.data_ptr() == two._windows.data_ptr()
    assert one._windows.untyped_storage().nbytes() == 24 * 3 * 12 * 12


def test_what_was_made_of_images_goes_with_them():
    source, made = pixels(), []
    for _ in range(2):
        cached(source, "size", lambda: made.append(1))
    assert made == [1]
    cached(pixels(), "size", lambda: made.append(1))
    assert made == [1, 1]


@pytest.mark.gpu
def test_views_on_the_gpu_are_those_of_the_cpu():
    source, steps = pixels(), schedule()
    here, there = (PixelViews(source, Augment(pad=2), True, torch.device(d)) for d in ("cpu", "cuda"))
    for drawn in here.draw(steps, 3):
        (x, y), (u, v) = here.make(drawn), there.make(drawn)
        assert torch.equal(y, v.cpu())
        assert torch.allclose(x, u.cpu(), atol=0.01)  # pixel values up to 255; interpolation differs in the last bits
