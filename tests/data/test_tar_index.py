"""Image files inside tar archives are the same data set as the loose files, in every order and after every fault."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.data import augment, datasets, tar_index
from mixtune.data.decode import decode
from mixtune.data.file_issues import FileIssues
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Schedule
from tests.data.test_datasets import write

CLASSES = ("ant", "bee", "longer name")


@pytest.fixture
def loose(tmp_path):
    return write(tmp_path / "loose", n=4, classes=CLASSES)


def packed(loose, out, form="folders", shard=5):
    """The images of a folder in archives of a few: by class folders, as tar does, or with .cls, as WebDataset does."""
    for part in ("train", "val"):
        (out / part).mkdir(parents=True)
        files = sorted((loose / part).rglob("*.png"), reverse=form == "folders")  # tar takes them as they come
        for first in range(0, len(files), shard):
            with tarfile.open(out / part / f"{first:06}.tar", "w") as tar:
                for i, path in enumerate(files[first : first + shard], start=first):
                    if form == "folders":
                        tar.add(path, f"./{path.relative_to(loose / part)}")
                        continue
                    label = str(CLASSES.index(path.parent.name) + 9).encode()  # 9, 10, 11
                    for name, content in ((f"{i:04}.png", path.read_bytes()), (f"{i:04}.cls", label)):
                        info = tarfile.TarInfo(name)
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    datasets.load_dataset.cache_clear()
    return out


def batches(source, workers):
    shapes = (BatchShape(8, 6, 2), BatchShape(16, 4))
    schedule = Schedule(shapes, np.arange(6, dtype=np.int16) % 2, np.ones(2))
    made = augment.file_batches(source, schedule, augment.Augment(), True, 3, 0, workers)
    return [(x.clone(), y) for x, y in made]


@pytest.mark.parametrize("form", ["folders", "cls"])
def test_archives_are_the_data_set_that_was_packed(form, loose, tmp_path):
    plain = datasets.load_dataset("folder", str(loose))
    made = datasets.load_dataset("folder", str(packed(loose, tmp_path / form, form)))
    assert made.classes == plain.classes == 3
    for here, there in ((made.train, plain.train), (made.test, plain.test)):
        assert here.labels.tolist() == there.labels.tolist()
        for address, path in zip(here.paths, there.paths, strict=True):
            assert np.array_equal(decode(address).pixels, decode(path).pixels)
    for workers in (0, 2):
        for (x, y), (u, v) in zip(batches(made.train, workers), batches(plain.train, 0), strict=True):
            assert torch.equal(x, u)
            assert torch.equal(y, v)


def test_the_index_is_used_until_an_archive_changes(loose, tmp_path, monkeypatch):
    out = packed(loose, tmp_path / "a")
    before = datasets.load_dataset("folder", str(out)).train.paths
    kept = json.loads((out / "train" / tar_index.INDEX_FILE).read_text())
    assert len(kept["images"]) == len(before) == 12
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)  # nothing is looked for again
        datasets.load_dataset.cache_clear()
        assert datasets.load_dataset("folder", str(out)).train.paths == before
    (first, *_) = tar_index.list_archives(out / "train")
    os.utime(first, ns=(1, 1))
    with tarfile.open(first, "a") as tar:
        tar.add(loose / "train/ant/0.png", "bee/new.png")
    datasets.load_dataset.cache_clear()
    assert len(datasets.load_dataset("folder", str(out)).train) == 13
    for damage in (b"", b"{}", b'{"archives": 3}', b'[{"images": [1]}]'):
        (out / "train" / tar_index.INDEX_FILE).write_bytes(damage)
        datasets.load_dataset.cache_clear()
        assert len(datasets.load_dataset("folder", str(out)).train) == 13


def test_storage_that_cannot_be_written_is_read(loose, tmp_path, monkeypatch):
    out = packed(loose, tmp_path / "a")

    def refused(self, target):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refused)
    assert len(datasets.load_dataset("folder", str(out)).train) == 12
    assert not list(out.rglob("*index*"))


def test_a_truncated_or_compressed_archive_is_one_sentence(loose, tmp_path):
    out = packed(loose, tmp_path / "a")
    victim = tar_index.list_archives(out / "train")[0]
    content = victim.read_bytes()
    for damaged in (content[:1800], content[:700], b"\x1f\x8b" + content):
        victim.write_bytes(damaged)
        with pytest.raises(InputError, match=r"000000\.tar is not a whole, uncompressed tar archive"):
            tar_index.list_images(out / "train", (".png",))


def test_an_image_without_a_class_is_one_sentence(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "x.png")
    with pytest.raises(InputError, match=r"a\.tar: the class of x\.png is not known: .* no x\.cls"):
        tar_index.list_images(tmp_path, (".png",))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_is_one_sentence_and_not_left_out(kind, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.png", "ant/x.png")
        link = tarfile.TarInfo("ant/y.png")
        link.type, link.linkname = kind, "ant/x.png"
        tar.addfile(link)
    with pytest.raises(InputError, match=r"a\.tar: ant/y\.png is a link or has holes; pack it with tar --dereference"):
        tar_index.list_images(tmp_path, (".png",))


def test_archives_without_images_are_one_sentence(tmp_path):
    (tmp_path / "x.txt").write_text("no image")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "ant/x.txt")
    for _ in range(2):  # the second time by the index
        with pytest.raises(InputError, match=r"the archives in .* hold no images \(\.png\)"):
            tar_index.list_images(tmp_path, (".png",))


def test_a_bad_image_inside_is_named_and_replaced(loose, tmp_path):
    (loose / "train/bee/1.png").write_bytes(b"\x89PNG broken")
    source, issues = datasets.load_dataset("folder", str(packed(loose, tmp_path / "a"))).train, FileIssues()
    schedule = Schedule((BatchShape(8, 6),), np.zeros(4, np.int16), np.ones(1))
    assert len(list(augment.file_batches(source, schedule, augment.Augment(), True, 0, 0, 0, issues=issues))) == 4
    (name,) = issues.unreadable
    assert name.endswith("/bee/1.png")
    assert "/train/000005.tar@" in name


def test_archives_are_held_open_and_let_go(loose, tmp_path):
    source = datasets.load_dataset("folder", str(packed(loose, tmp_path / "a", shard=1))).train
    tar_index.open_archive.cache_clear()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in source.paths:
        decode(path)
    assert before < len(list(Path("/proc/self/fd").iterdir())) <= before + min(12, tar_index.MAX_OPEN)
    tar_index.open_archive.cache_clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_archive_whose_handle_is_stale_is_opened_again(loose, tmp_path, monkeypatch):
    from mixtune.data import decode as module

    source = datasets.load_dataset("folder", str(packed(loose, tmp_path / "a"))).train
    plain, real = decode(source.paths[0]).pixels, os.pread
    archive = tar_index.parse_address(source.paths[0]).archive
    handle = tar_index.open_archive(archive)  # held, so that its number is not used again

    def stale(file, size, start):
        if file == handle.fileno():
            raise OSError(116, "Stale file handle")
        return real(file, size, start)

    monkeypatch.setattr(os, "pread", stale)
    monkeypatch.setattr(module, "_RETRIES", (0.0, 0.0))
    assert np.array_equal(decode(source.paths[0]).pixels, plain)


def test_an_archive_is_not_closed_while_a_thread_reads_it(loose, tmp_path, monkeypatch):
    """Other threads may have it leave the cache between any two calls: its number would become another file's."""
    source = datasets.load_dataset("folder", str(packed(loose, tmp_path / "a"))).train
    plain, content = decode(source.paths[0]).pixels, tar_index.read_bytes(source.paths[0])
    read = os.pread

    def evicted(file, size, start):
        tar_index.open_archive.cache_clear()
        return read(file, size, start)

    monkeypatch.setattr(os, "pread", evicted)
    assert np.array_equal(decode(source.paths[0]).pixels, plain)
    assert tar_index.read_bytes(source.paths[0]) == content
