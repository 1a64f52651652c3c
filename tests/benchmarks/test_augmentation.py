"""The distance between distributions is the textbook's, and notices crops that are drawn otherwise."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

from benchmarks import augmentation


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
