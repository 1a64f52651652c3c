"""What the rows measure is the textbook's, and they notice crops that are drawn otherwise or decoded too small."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ks_2samp

from benchmarks import augmentation

pytestmark = pytest.mark.arithmetic


def test_the_distance_is_scipys_and_notices_other_crops(monkeypatch):
    rng = np.random.default_rng(0)
    for a, b in ((rng.random(300), rng.random(200)), (rng.integers(0, 5, 300), rng.integers(0, 6, 300))):
        assert augmentation.distance(a, b) == pytest.approx(ks_2samp(a, b).statistic)
    assert augmentation.row(2000)["ratio"] < 1
    plain = augmentation.crops.random_box
    monkeypatch.setattr(
        augmentation.crops, "random_box", lambda H, W, x, scale, ratio: plain(H, W, x, (0.2, 1.0), ratio)
    )
    assert augmentation.row(2000)["ratio"] > 1


def test_views_of_too_small_decodes_are_noticed(tmp_path, monkeypatch):
    """Of images with as much detail at each scale as photographs have."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(300)[:, None], np.fft.fftfreq(400)[None])
    frequency[0, 0] = 1
    paths = []
    for i in range(12):
        scene = np.fft.ifft2(np.exp(2j * np.pi * rng.random((3, 300, 400))) / frequency).real.transpose(1, 2, 0)
        paths.append(str(tmp_path / f"{i}.jpg"))
        Image.fromarray((128 + 50 * scene / scene.std()).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    found = augmentation.reduced_row(paths, 48)
    assert found["views"] > 9
    assert found["ratio"] > 1
    plain = augmentation.crops.region_for_boxes
    monkeypatch.setattr(augmentation.crops, "region_for_boxes", lambda boxes, S: plain(boxes, S // 2))
    assert augmentation.reduced_row(paths, 48)["ratio"] < 1


def test_decibels_are_those_of_the_mean_square():
    a = np.zeros((2, 2, 3), np.uint8)
    assert augmentation.decibels(a, a + 1) == pytest.approx(20 * np.log10(255))
    assert augmentation.decibels(a, a) == pytest.approx(78.13, abs=0.01)
