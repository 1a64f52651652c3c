import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.data import datasets, splits
from mixtune.errors import InputError


def write(folder, shape=(20, 30), n=3, classes=("ant", "bee")):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def test_digits_keep_every_class_on_both_sides():
    digits = datasets.load_dataset("digits", None)
    assert (len(digits.train), len(digits.test), digits.classes) == (1438, 359, 10)
    assert digits.train.images.shape[1:] == (8, 8, 3)
    assert digits.train.images.dtype == torch.uint8
    assert not digits.flips
    pixels = digits.train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(digits.mean[0], abs=0.01)
    assert pixels.std().item() == pytest.approx(digits.std[0], abs=0.01)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_stratified_parts_are_disjoint_complete_and_balanced(share):
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(5), [2, 10, 50, 100, 301])))
    rest, part = splits.stratified_split(labels, share, seed=0)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label in range(5):
        n, taken = int((labels == label).sum()), int((labels[part] == label).sum())
        assert 1 <= taken <= n - 1
        assert abs(taken - share * n) <= 1
    again = splits.stratified_split(labels, share, seed=0)[1]
    assert np.array_equal(part, again)
    assert not np.array_equal(part, splits.stratified_split(labels, share, seed=1)[1]) or share == 0.99


def test_a_class_of_one_image_cannot_be_divided():
    with pytest.raises(ValueError, match="class 1 has a single image"):
        splits.stratified_split(torch.tensor([0, 0, 1]), 0.5, 0)


def test_a_folder_is_read_as_files_with_classes_in_order(tmp_path):
    found = datasets.load_dataset("folder", str(write(tmp_path)))
    assert (len(found.train), len(found.test), found.classes) == (6, 6, 2)
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.train.subset(np.array([5, 0])).labels.tolist() == [1, 0]


def test_missing_and_odd_folders_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"no folder images in .*train/"):
        datasets.load_dataset("folder", str(tmp_path / "none"))
    write(tmp_path / "odd")
    (tmp_path / "odd" / "val" / "bee").rename(tmp_path / "odd" / "val" / "cow")
    with pytest.raises(InputError, match="'bee' is in only one"):
        datasets.load_dataset("folder", str(tmp_path / "odd"))


def test_a_folder_of_no_images_is_refused_and_one_bad_file_is_not(tmp_path):
    write(tmp_path)
    first, *others = sorted((tmp_path / "train").rglob("*.png"))
    first.write_bytes(b"no image")
    assert len(datasets.load_dataset("folder", str(tmp_path)).train) == 6
    for path in others:
        path.write_bytes(b"no image")
    datasets.load_dataset.cache_clear()
    with pytest.raises(
        InputError, match=r"train/ant/0\.png is not a readable image \(.*\), nor are the files after it"
    ):
        datasets.load_dataset("folder", str(tmp_path))


def test_a_truncated_cifar_is_refused_with_the_place_and_the_file(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half")
    with pytest.raises(InputError, match=r"no intact CIFAR10 .*cifar-10-python\.tar\.gz"):
        datasets.load_dataset("cifar10", str(tmp_path))
