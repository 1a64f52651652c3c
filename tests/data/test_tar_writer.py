"""Prepared archives hold the images of the prepared folder, each once, whatever was killed, damaged or replaced."""

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixtune import prepare
from mixtune.data import datasets, manifest, prepare_images, prepared_folder, tar_index, tar_writer
from mixtune.data.decode import decode
from mixtune.errors import InputError
from tests.data.test_datasets import write as write_classes
from tests.data.test_tar_index import CLASSES, packed
from tests.test_full_disk import room_for
from tests.test_prepare import write

ROOT = Path(__file__).parents[2]


def run(source, out, *more):
    datasets.load_dataset.cache_clear()
    tar_index.open_archive.cache_clear()
    return prepare.main(["--data", str(source), "--out", str(out), "--size", "32", "--workers", "1", *more])


def held(out):
    """What is in the archives: part, class, name and content of every image, in order."""
    return [
        (part, classes[kind], tar_index.parse_address(address).name, tar_index.read_bytes(address))
        for part in ("train", "val")
        for classes, images in [tar_index.list_images(out / part, prepare_images.IMAGE_EXTENSIONS)]
        for address, kind in images
    ]


def times(out):
    return {p.name: p.stat().st_mtime_ns for p in out.rglob("*.tar")}


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Images are encoded by a thread, which starts at once; tests/test_prepare.py has the processes."""
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", lambda workers, *_, **__: ThreadPoolExecutor(workers))


@pytest.fixture
def few(monkeypatch):
    """Archives of about six images, so that there are several."""

    def write_archives(out, images, target, _, known):
        return tar_writer.write_archives(out, images, target, 8 << 10, known)

    monkeypatch.setattr(prepare, "write_archives", write_archives)


@pytest.fixture
def loose(tmp_path):
    return write(tmp_path / "loose", n=6)


@pytest.fixture
def plain(loose, tmp_path):
    """The prepared folder, which is the oracle: its images by part, class, name and content."""
    out = tmp_path / "plain"
    run(loose, out)
    names = sorted(p.relative_to(out) for part in ("train", "val") for p in (out / part).rglob("*.jpg"))
    return [(p.parts[0], p.parts[1], "/".join(p.parts[1:]), (out / p).read_bytes()) for p in names]


def test_a_folder_is_packed_as_its_prepared_folder(loose, plain, few, tmp_path, capsys):
    out = tmp_path / "out"
    run(loose, out, "--archives")
    assert held(out) == plain
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".tar", ".tsv", ".json"}
    assert len(times(out)) >= 4
    archives = sorted(out.rglob("*.tar"))
    assert max(p.stat().st_size for p in archives) < 3 * 8 << 10
    with tarfile.open(archives[0]) as tar:  # as tar reads it
        assert [m.name for m in tar if m.isfile()] == [name for *_, name, _ in plain[: len(tar.getnames())]]
    made = datasets.load_dataset("folder", str(out))
    assert (len(made.train), made.prepared_for, made.names) == (12, 32, ("ant", "bee"))
    for entry in manifest.read_manifest(out).values():
        content = (
            (out / entry.written).read_bytes() if not entry.source else tar_index.read_bytes(f"{out}/{entry.written}")
        )
        assert hashlib.sha256(content).hexdigest() == entry.checksum

    before = times(out)
    run(loose, out, "--archives", "--verify")
    assert "of which 0 encoded now" in capsys.readouterr().out
    assert times(out) == before


@pytest.mark.parametrize("form", ["folders", "cls"])
@pytest.mark.parametrize("kind", ["jpeg", "ppm"])
def test_archives_become_archives_of_the_same_data_set(form, kind, tmp_path):
    source = packed(write_classes(tmp_path / "loose", n=4, classes=CLASSES), tmp_path / "packed", form)
    out = tmp_path / "out"
    run(source, out, "--format", kind)
    made, original = datasets.load_dataset("folder", str(out)), datasets.load_dataset("folder", str(source))
    assert made.names == original.names
    for here, there in ((made.train, original.train), (made.test, original.test)):
        assert here.labels.tolist() == there.labels.tolist()
        for new, old in zip(here.paths, there.paths, strict=True):
            assert tar_index.parse_address(new)
            if kind == "ppm":  # images of less than 37 px stay as they are
                assert np.array_equal(decode(new).pixels, decode(old).pixels)


def test_classes_and_names_are_kept_however_deep_and_equal_they_are(loose, tmp_path):
    (loose / "train/ant/more").mkdir()
    Image.new("RGB", (40, 40), (9, 99, 0)).save(loose / "train/ant/more/000.jpg")
    for name in ("tab\there.png", "line\nbreak.png", 'quote".png', "back\\slash.png", "\u2028.png", "\udcff.png"):
        Image.new("RGB", (40, 40), (9, 99, 0)).save(loose / "train/bee" / name)
    out = tmp_path / "out"
    run(loose, out, "--archives")
    made, original = datasets.load_dataset("folder", str(out)).train, datasets.load_dataset("folder", str(loose)).train
    assert sorted(made.labels.tolist()) == sorted(original.labels.tolist())
    assert len(made) == 12 + 7
    before = times(out)
    run(loose, out, "--archives")
    assert times(out) == before


def test_a_kill_leaves_whole_archives_and_each_image_is_there_once(tmp_path, capsys):
    source, out = write(tmp_path / "a", n=200), tmp_path / "out"
    run(source, tmp_path / "plain", "--format", "ppm", "--archives", "1")
    arguments = ["--data", str(source), "--out", str(out), "--size", "32", "--format", "ppm", "--archives", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mixtune.prepare", *arguments, "--workers", "1"], cwd=ROOT, start_new_session=True
    )
    patience = time.monotonic() + 60
    while not manifest.read_manifest(out) and time.monotonic() < patience:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = times(out)
    assert 1 <= len(left) < 6
    with pytest.raises(InputError, match="prepared only in part"):
        datasets.load_dataset("folder", str(out))
    capsys.readouterr()
    run(source, out, "--format", "ppm", "--archives", "1")
    assert "of which 800 encoded now" not in capsys.readouterr().out
    assert held(out) == held(tmp_path / "plain")
    assert not list(out.rglob("*.part"))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_round_the_list_makes_no_image_twice(moment, loose, plain, few, tmp_path, monkeypatch):
    real, calls = manifest.append_entries, []

    def killed(out, batch):
        calls.append(1)
        if len(calls) == 2:
            if moment == "after":
                real(out, batch)
            raise KeyboardInterrupt
        real(out, batch)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "append_entries", killed)
        with pytest.raises(KeyboardInterrupt):
            run(loose, out, "--archives")
    run(loose, out, "--archives")
    assert held(out) == plain


def test_a_damaged_archive_is_mended_and_the_others_stay(loose, plain, few, tmp_path, capsys):
    out = tmp_path / "out"
    run(loose, out, "--archives")
    before = times(out)
    victim = sorted(out.rglob("*.tar"))[1]
    content = bytearray(victim.read_bytes())
    content[700] ^= 1
    victim.write_bytes(content)
    capsys.readouterr()
    run(loose, out, "--archives")
    assert "of which 0 encoded now" in capsys.readouterr().out  # its size is right
    run(loose, out, "--archives", "--verify")
    assert held(out) == plain
    after = times(out)
    assert {name: before[name] for name in before if name != victim.name}.items() <= after.items()
    assert victim.name not in after  # a number is not used twice


@pytest.mark.parametrize("lost", ["a member", "the archive", "all"])
def test_a_damaged_list_makes_no_image_twice(lost, loose, plain, few, tmp_path):
    out = tmp_path / "out"
    run(loose, out, "--archives")
    file = out / manifest.MANIFEST_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    of = {"a member": 0, "the archive": next(i for i, x in enumerate(lines) if x.startswith(b"\t"))}
    i = of.get(lost, 0)
    file.write_bytes(b"" if lost == "all" else b"".join([*lines[:i], b"\xff\n", *lines[i + 1 :]]))
    run(loose, out, "--archives")
    assert held(out) == plain


def test_a_list_that_names_other_files_removes_none(loose, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other.jpg"
    run(loose, out)
    other.write_bytes(b"precious")
    gone = [
        manifest.ManifestEntry(f"train/{i}", "1-1", name, 1, "")
        for i, name in enumerate(("train/../../other.jpg", str(other)))
    ]
    manifest.append_entries(out, gone)
    run(loose, out)
    assert other.exists()


@pytest.mark.parametrize("form", [[], ["--archives"]])
def test_what_is_gone_or_became_unreadable_is_not_there_any_more(form, loose, few, tmp_path, capsys):
    out = tmp_path / "out"
    run(loose, out, *form)
    (loose / "train/ant/000.jpg").unlink()
    (loose / "train/bee/002.jpg").write_bytes(b"\xff\xd8 broken")
    for _ in range(2):
        run(loose, out, *form)
        assert len(datasets.load_dataset("folder", str(out)).train) == 10
        assert "left out 1 that cannot be read, for example train/bee/002.jpg (" in capsys.readouterr().out


def test_a_damaged_member_is_counted_and_named(loose, tmp_path, capsys):
    (loose / "train/bee/001.png").write_bytes(b"\x89PNG broken")
    source = tmp_path / "packed"
    for part in ("train", "val"):
        (source / part).mkdir(parents=True)
        with tarfile.open(source / part / "all.tar", "w") as tar:
            tar.add(loose / part, ".")
    out = tmp_path / "out"
    for _ in range(2):
        run(source, out)
        said = capsys.readouterr().out
        assert "left out 1 that cannot be read, for example train/all.tar@" in said
        assert "/bee/001.png (" in said
    assert "of which 0 encoded now" in said
    assert len(datasets.load_dataset("folder", str(out)).train) == 11


@pytest.fixture
def archive(loose, tmp_path):
    """The training images in one archive; gives a function that packs other ones in its place."""

    def pack(colour):
        Image.new("RGB", (64, 64), colour).save(loose / "train/ant/000.jpg")
        for part in ("train", "val"):
            (tmp_path / "packed" / part).mkdir(parents=True, exist_ok=True)
            fresh = tmp_path / "packed" / part / "fresh.part"
            with tarfile.open(fresh, "w") as tar:
                tar.add(loose / part, ".")
            fresh.replace(fresh.with_name("all.tar"))
        return tmp_path / "packed"

    return pack


def reds(out):
    """Of the first training image."""
    datasets.load_dataset.cache_clear()
    tar_index.open_archive.cache_clear()
    return int(decode(datasets.load_dataset("folder", str(out)).train.paths[0]).pixels[..., 0].mean())


def test_an_archive_that_was_replaced_since_is_prepared_again(archive, tmp_path):
    out = tmp_path / "out"
    for red in (200, 50):
        run(archive((red, 0, 0)), out)
        assert abs(reds(out) - red) < 4
        assert len(held(out)) == 24


def test_what_is_read_of_an_archive_has_the_stamp_of_its_listing(archive, tmp_path):
    source = archive((200, 0, 0))
    first = prepare_images.find_images(source)[0]
    handle = tar_index.open_archive(f"{source}/train/all.tar")  # as a process holds it that began before
    archive((50, 0, 0))
    made = prepare_images.encode_source(str(source), first, prepared_folder.PrepareTarget(32, "ppm"))
    assert made.content
    assert made.stamp == first.stamp != manifest.file_stamp(f"{source}/{first.name}")
    handle.close()
    tar_index.open_archive.cache_clear()


def test_storage_that_fails_meanwhile_leaves_no_stamp(tmp_path, monkeypatch):
    source = write(tmp_path / "small", n=1, size=(20, 20))

    def fails(_):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(tar_index, "read_bytes", fails)  # as a small JPEG is copied
    made = prepare_images.encode_source(
        str(source), prepare_images.find_images(source)[0], prepared_folder.PrepareTarget(32)
    )
    assert (made.stamp, made.content, made.reason) == ("", b"", "[Errno 116] Stale file handle")


def test_an_archive_that_is_replaced_meanwhile_is_not_called_complete(archive, tmp_path, monkeypatch):
    source, out, real = archive((200, 0, 0)), tmp_path / "out", manifest.append_entries

    def replaced(out, batch):
        real(out, batch)
        archive((50, 0, 0))

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "append_entries", replaced)
        with pytest.raises(InputError, match=r"train/all\.tar changed while it was read; run the same command"):
            run(source, out)
    with pytest.raises(InputError, match="prepared only in part"):
        datasets.load_dataset("folder", str(out))
    run(source, out)
    assert abs(reds(out) - 50) < 4


def test_a_full_disk_leaves_no_part_of_an_archive_and_the_same_command_ends_it(loose, plain, few, tmp_path):
    out = tmp_path / "out"
    with room_for(4 << 10), pytest.raises(InputError, match=r"out: cannot be written \(File too large"):
        run(loose, out, "--archives")
    assert not list(out.rglob("*.part"))
    assert not list(out.rglob("*.tar"))
    run(loose, out, "--archives")
    assert held(out) == plain


def test_bad_input_is_one_sentence(loose, tmp_path):
    with pytest.raises(InputError, match="--archives must be at least 1"):
        run(loose, tmp_path / "out", "--archives", "0")
    run(loose, tmp_path / "out", "--archives")
    with pytest.raises(InputError, match=r"was prepared with .*'archives': True"):
        run(loose, tmp_path / "out")
    (loose / "train/ant/001.png.jpg").write_bytes((loose / "train/ant/000.jpg").read_bytes())
    with pytest.raises(InputError, match=r"train/ant/001\.png and train/ant/001\.png\.jpg would get the same name"):
        run(loose, tmp_path / "other")
    (tmp_path / "broken/train").mkdir(parents=True)
    (tmp_path / "broken/val").mkdir()
    (tmp_path / "broken/train/a.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(InputError, match=r"--data: .*a\.tar is not a whole, uncompressed tar archive"):
        run(tmp_path / "broken", tmp_path / "third")
    (tmp_path / "broken/train/a.tar").unlink()
    (tmp_path / "broken/train/a.tar").symlink_to("nowhere.tar")
    with pytest.raises(InputError, match=r"--data: .*No such file or directory: .*a\.tar"):
        run(tmp_path / "broken", tmp_path / "third")
