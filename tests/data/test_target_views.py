"""Targets follow the crops and flips of their images, and views depend on (seed, step, view) alone."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from mixtune.data.target_views import crop_and_flip, seeded, target_views
from mixtune.regime import BatchShape, Schedule, Shard

SHAPES = (BatchShape(16, 4), BatchShape(8, 3, 2))
SCHEDULE = Schedule(SHAPES, np.array([0, 1, 0, 1], np.int16), np.ones(2))
N, SIDE = 9, 40


def load(i):
    """A dark image with a bright rectangle at a place of its own, the rectangle's mask and box, and a number."""
    top, left, bottom, right = 4 + i, 6, 20 + i, 30 - i
    image = torch.full((3, SIDE, SIDE), 10, dtype=torch.uint8)
    image[:, top:bottom, left:right] = 200
    mask = (image[0] > 100).to(torch.uint8)
    box = tv_tensors.BoundingBoxes([[left, top, right, bottom]], format="XYXY", canvas_size=(SIDE, SIDE))
    return {"image": tv_tensors.Image(image), "mask": tv_tensors.Mask(mask), "boxes": box, "number": i}


def views_of(seed=0, start=0, shard=None, augment=crop_and_flip, source=load):
    more = {} if shard is None else {"shard": shard}
    return list(target_views(source, N, augment, SCHEDULE, seed, start, **more))


def same(a, b):
    return a["number"] == b["number"] and all(torch.equal(a[name], b[name]) for name in ("image", "mask", "boxes"))


@pytest.mark.parametrize("flip", [False, True])
def test_masks_and_boxes_follow_the_image(flip):
    """Wherever the rectangle is in the view, its mask and its box are there, to within a pixel."""
    mirrored = 0
    for number in range(200):
        sample, rng = load(number % N), np.random.default_rng(number)
        view = crop_and_flip(sample, 32, rng, scale=(0.3, 1.0), flip=flip)
        bright = view["image"][0].float() > 105
        assert view["image"].shape == (3, 32, 32)
        assert view["mask"].shape == (32, 32)
        assert set(view["mask"].unique().tolist()) <= {0, 1}  # no label is a mean of two
        border = 32 * 4 * 2  # at most a pixel around the rectangle
        assert (bright != view["mask"].bool()).sum() < border
        if bright.any():
            ys, xs = torch.nonzero(bright, as_tuple=True)
            found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert (view["boxes"][0] - found).abs().max() <= 2
        assert view["number"] == sample["number"]
        plain = crop_and_flip(sample, 32, np.random.default_rng(number), scale=(0.3, 1.0), flip=False)
        mirrored += not torch.equal(plain["mask"], view["mask"])
    assert (30 < mirrored < 170) if flip else mirrored == 0


def test_a_step_has_b_images_in_d_copies_side_by_side_each_loaded_once():
    loaded = []

    def source(i):
        loaded.append(i)
        return load(i)

    batches = views_of(source=source)
    assert [len(views) for views in batches] == [4, 6, 4, 6]
    numbers = [view["number"] for view in batches[1]]
    assert numbers[::2] == numbers[1::2]
    assert not same(batches[1][0], batches[1][1])  # two views of one image
    assert len(loaded) == 4 + 3 + 4 + 3
    assert loaded[:4] == next(SCHEDULE.sample_batches(N, 0)).tolist()  # as every other loader draws them


def test_views_depend_on_seed_and_step_alone():
    batches = views_of()
    later = views_of(start=2)
    assert all(same(a, b) for one, two in zip(later, batches[2:], strict=True) for a, b in zip(one, two, strict=True))
    assert not same(views_of(seed=1)[0][0], batches[0][0])


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_make_parts_of_the_same_views(world):
    parts = [views_of(shard=Shard(rank, world)) for rank in range(world)]
    for step, whole in enumerate(views_of()):
        joined = [view for part in parts for view in part[step]]
        assert all(same(a, b) for a, b in zip(joined, whole, strict=True))


def test_torchvisions_own_transforms_are_seeded_and_leave_the_generator_alone():
    augment = seeded(v2.Compose([v2.RandomHorizontalFlip(), v2.RandomZoomOut(p=0.5), v2.Resize((8, 8))]))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = views_of(augment=augment)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    two = views_of(augment=augment)
    assert all(same(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    assert len({tuple(view["boxes"][0].tolist()) for views in one for view in views}) > 4
