"""The crops are torchvision's: their boxes by distribution, their pixels by value."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, ks_2samp
from torchvision.transforms import v2

from mixtune.data import crops
from mixtune.data.decode import Decoded
from tests.data.byte_resize import LEVELS, furthest

pytestmark = pytest.mark.arithmetic

SCALE, RATIO, N = (0.08, 1.0), (3 / 4, 4 / 3), 4000


@pytest.mark.parametrize(("H", "W"), [(375, 500), (224, 224), (90, 400), (7, 9)])
def test_boxes_have_the_distribution_of_torchvisions(H, W):
    numbers, mirrored = crops.draw_crops(0, 0, N)
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


@pytest.fixture(params=["OpenCV", "torch"])
def library(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(crops, "opencv", lambda: None)
    else:
        pytest.importorskip("cv2")
    return request.param


def photograph(H, W):
    """As rough as photographs are, with edges."""
    rough = np.random.default_rng(0).integers(0, 256, (H // 3 + 1, W // 3 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((W, H), Image.Resampling.BICUBIC)).copy()


@pytest.mark.parametrize("size", [(30, 50), (5, 9), (1, 1), (1, 16), (16, 3), (16, 16), (200, 17), (40, 9)])
@pytest.mark.parametrize("make", [lambda: np.random.default_rng(0).integers(0, 256, (210, 60, 3), dtype=np.uint8),
                                  lambda: photograph(210, 60)])  # fmt: skip
def test_pixels_are_those_of_torchvision(library, make, size):
    """To the bit; to one level of 255 where OpenCV enlarges."""
    pixels = make()
    out = np.full((16, 16, 3), 77, np.uint8)
    crops.resize_crop_into(out, Decoded(pixels, 210, 60).crop(3, 2, *size))
    theirs = v2.functional.resized_crop(
        torch.from_numpy(pixels).permute(2, 0, 1), 3, 2, *size, [16, 16], antialias=True
    ).permute(1, 2, 0)
    assert furthest(out, theirs) <= (1 if library == "OpenCV" and max(size) <= 16 else LEVELS)


def test_a_mirrored_view_is_its_mirror_image(library):
    views = np.random.default_rng(0).integers(0, 256, (3, 17, 17, 3), dtype=np.uint8)
    before = views.copy()
    crops.mirror_in_place(views[1])
    assert np.array_equal(views[1], before[1, :, ::-1])
    assert np.array_equal(views[[0, 2]], before[[0, 2]])


def test_the_scale_leaves_every_view_its_pixels():
    rng = np.random.default_rng(0)
    used = set()
    for _ in range(500):
        H, W = rng.integers(1, 2000, 2).tolist()
        numbers, _ = crops.draw_crops(int(rng.integers(99)), 0, int(rng.integers(1, 4)))
        boxes = [crops.random_box(H, W, row, SCALE, RATIO) for row in numbers.tolist()]
        need = crops.region_for_boxes(boxes, 96)
        used.add(need.factor)
        if need.factor > 1:
            assert min(min(b[2:]) for b in boxes) / need.factor >= 96
        assert need.top == min(b[0] for b in boxes)
        assert need.bottom == max(b[0] + b[2] for b in boxes)
    assert used == {1, 2, 4, 8}
