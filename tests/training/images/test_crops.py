"""The crops are torchvision's: their boxes by distribution, their pixels by value."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp
from torchvision.transforms import v2

from mixtune.training.images import crops
from mixtune.training.images.decode import Decoded

SCALE, RATIO, N = (0.08, 1.0), (3 / 4, 4 / 3), 4000


@pytest.mark.parametrize(("H", "W"), [(375, 500), (224, 224), (90, 400), (7, 9)])
def test_boxes_have_the_distribution_of_torchvisions(H, W):
    numbers, mirrored = crops.draw(0, 0, N)
    ours = np.array([crops.random_box(H, W, row, SCALE, RATIO) for row in numbers.tolist()], float)
    theirs_crop = v2.RandomResizedCrop(16, SCALE, RATIO)
    torch.manual_seed(1)
    image = torch.empty(3, H, W)
    drawn = [theirs_crop.make_params([image]) for _ in range(N)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn], float)

    def features(boxes):
        top, left, h, w = boxes.T
        room = np.maximum(H - h, 1), np.maximum(W - w, 1)
        return {"area": h * w, "ratio": w / h, "top": top, "left": left, "y": top / room[0], "x": left / room[1]}

    for name, values in features(ours).items():
        assert ks_2samp(values, features(theirs)[name]).pvalue > 0.001, name
    assert binomtest(int(mirrored.sum()), N, 0.5).pvalue > 0.001
    assert np.all(ours[:, :2] >= 0)
    assert np.all(ours[:, :2] + ours[:, 2:] <= [H, W])


def test_a_box_that_never_fits_is_torchvisions_middle():
    torch.manual_seed(0)
    for H, W in ((4, 400), (400, 4)):
        p = v2.RandomResizedCrop(8, (0.9, 1.0), RATIO).make_params([torch.empty(3, H, W)])
        box = crops.random_box(H, W, [0.5] * crops.DRAWS, (0.9, 1.0), RATIO)
        assert box == (p["top"], p["left"], p["height"], p["width"])


@pytest.mark.parametrize("size", [(30, 50), (5, 9), (1, 1), (16, 16), (200, 17)])
def test_pixels_are_those_of_torchvision(size):
    pixels = np.random.default_rng(0).integers(0, 256, (210, 60, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    out = torch.empty(16, 16, 3, dtype=torch.uint8)
    crops.resize_into(out, Decoded(pixels, 210, 60).crop(3, 2, *size))
    theirs = v2.functional.resized_crop(image, 3, 2, *size, [16, 16], antialias=True)
    assert torch.equal(out.permute(2, 0, 1), theirs)


def test_the_scale_leaves_every_view_its_pixels():
    rng = np.random.default_rng(0)
    used = set()
    for _ in range(500):
        H, W = rng.integers(1, 2000, 2).tolist()
        numbers, _ = crops.draw(int(rng.integers(99)), 0, int(rng.integers(1, 4)))
        boxes = [crops.random_box(H, W, row, SCALE, RATIO) for row in numbers.tolist()]
        need = crops.needed_for(boxes, 96)
        used.add(need.factor)
        if need.factor > 1:
            assert min(min(b[2:]) for b in boxes) / need.factor >= 96
        assert need.top == min(b[0] for b in boxes)
        assert need.bottom == max(b[0] + b[2] for b in boxes)
    assert used == {1, 2, 4, 8}
