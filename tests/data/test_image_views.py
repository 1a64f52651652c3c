"""The views of several images are those of its images one by one, whatever fails at whichever moment."""

import numpy as np
import pytest
from PIL import Image

from mixtune.data import crops
from mixtune.data.image_views import READ_AHEAD, RandomCrops, make_views

pytestmark = pytest.mark.arithmetic


def test_views_of_several_images_are_those_of_each_alone(tmp_path):
    rng, S, D, n = np.random.default_rng(0), 12, 2, 2 * READ_AHEAD + 3
    paths = []
    for i in range(n):
        path = tmp_path / f"{i}.{('jpg', 'png', 'ppm')[i % 3]}"
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    for i in (3, 10):  # JPEG and PNG that end too early: noticed while they are decoded
        data = (tmp_path / paths[i]).read_bytes()
        (tmp_path / paths[i]).write_bytes(data[: len(data) // 2])
    (tmp_path / paths[9]).unlink()  # noticed while it is read
    uniform, mirrored = crops.draw_crops(0, 0, n * D)
    random_crops = RandomCrops(uniform.reshape(n, D, -1), mirrored.reshape(n, D), (0.08, 1.0), (3 / 4, 4 / 3))

    together = np.full((n, D, S, S, 3), 7, np.uint8)
    result = make_views(paths, random_crops, together)
    assert sorted(result.unreadable) == [3, 9, 10]
    assert result.decodes == n - 3
    for i in range(n):
        alone = np.full((1, D, S, S, 3), 7, np.uint8)
        single = make_views(paths[i : i + 1], random_crops.subset(slice(i, i + 1)), alone)
        assert np.array_equal(alone[0], together[i])
        assert single.unreadable == ({0: result.unreadable[i]} if i in result.unreadable else {})
    assert (together[[3, 9, 10]] == 7).all()
