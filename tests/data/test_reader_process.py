"""A reader's piece of work is its images one by one, whatever fails at whichever moment."""

import numpy as np
from PIL import Image

from mixtune.data import crops
from mixtune.data.reader_process import AT_ONCE, Work, perform


def test_a_piece_is_its_images_one_by_one(tmp_path):
    rng, S, D, n = np.random.default_rng(0), 12, 2, 2 * AT_ONCE + 3
    paths = []
    for i in range(n):
        path = tmp_path / f"{i}.{('jpg', 'png', 'ppm')[i % 3]}"
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    for i in (3, 10):  # JPEG and PNG that end too early: found out while they are decoded
        data = (tmp_path / paths[i]).read_bytes()
        (tmp_path / paths[i]).write_bytes(data[: len(data) // 2])
    (tmp_path / paths[9]).unlink()  # found out while it is read
    numbers, mirrored = crops.draw(0, 0, n * D)
    numbers, mirrored = numbers.reshape(n, D, -1), mirrored.reshape(n, D)

    def work(part, offset=0):
        return Work(tuple(paths[part]), offset, S, D, numbers[part], (0.08, 1.0), (3 / 4, 4 / 3), mirrored[part])

    size, offset = S * S * 3 * D, 5
    whole = np.full(n * size + 2 * offset, 7, np.uint8)
    done = perform(work(slice(n), offset), whole)
    assert sorted(done.unreadable) == [3, 9, 10]
    assert done.decodes == n - 3
    assert set(whole[:offset]) == set(whole[-offset:]) == {7}
    for i in range(n):
        alone = np.full(size, 7, np.uint8)
        single = perform(work(slice(i, i + 1)), alone)
        assert np.array_equal(alone, whole[offset + i * size : offset + (i + 1) * size])
        assert single.unreadable == ({0: done.unreadable[i]} if i in done.unreadable else {})
