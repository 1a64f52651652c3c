"""mixtune.prepare: right files, whole files whatever kills it, nothing done twice."""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixtune import prepare
from mixtune.config import parse
from mixtune.data import datasets, manifest, prepare_images, prepared_folder
from mixtune.errors import InputError
from mixtune.profiling import checks
from mixtune.regime import BatchShape, Budget, published
from mixtune.search.space import Space
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.run import Evaluation, Run, TrainingConfig
from tests.test_full_disk import room_for

ROOT = Path(__file__).parents[1]


def write(folder, n=4, size=(90, 120)):
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            (folder / part / name).mkdir(parents=True)
            for i in range(n):
                rough = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                image = Image.fromarray(rough).resize(size[::-1], Image.Resampling.BICUBIC)
                image.save(folder / part / name / f"{i:03}.{('jpg', 'png')[i % 2]}")
    return folder


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(source, out, *more):
    return prepare.main(["--data", str(source), "--out", str(out), "--size", "32", "--workers", "1", *more])


def numbers(text):
    """Of a printed summary: how many images there are, and how many were encoded now."""
    return tuple(map(int, re.search(r"^images +(\d+)\b.*?\b(\d+) encoded", text, re.MULTILINE).groups()))


def encoded(capsys):
    return numbers(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["jpeg", "ppm"])
def test_a_prepared_folder_is_a_folder_of_smaller_images(kind, tmp_path, capsys):
    source, out = write(tmp_path / "a"), tmp_path / "b"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(source / "train/ant/small.jpg")
    run(source, out, "--format", kind)
    made, original = datasets.load_dataset("folder", str(out)), datasets.load_dataset("folder", str(source))
    assert made.train.labels.tolist() == original.train.labels.tolist()
    for new, old in zip(made.train.paths, original.train.paths, strict=True):
        with Image.open(new) as a, Image.open(old) as b:
            assert min(a.size) == min(37, *b.size)
            assert a.format == {"jpeg": "JPEG", "ppm": "PPM"}[kind]
            plain = np.asarray(b.convert("RGB").resize(a.size, Image.Resampling.BICUBIC)).astype(float)
            assert np.abs(np.asarray(a) - plain).mean() < (8 if kind == "jpeg" else 0.5)
    if kind == "jpeg":
        assert (out / "train/ant/small.jpg").read_bytes() == (source / "train/ant/small.jpg").read_bytes()
    assert encoded(capsys) == (17, 17)

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.*g") if p.name != "prepared.json"}
    run(source, out, "--format", kind)
    assert encoded(capsys) == (17, 0)
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_what_changed_or_was_damaged_is_made_again(tmp_path, capsys):
    source, out = write(tmp_path / "a"), tmp_path / "b"
    run(source, out)
    whole = tree(out)
    victim = out / "train/ant/000.jpg"
    victim.write_bytes(bytes(len(victim.read_bytes())))  # of the same length: only its checksum tells
    Image.new("RGB", (50, 50), (200, 0, 0)).save(source / "val/bee/000.jpg")
    capsys.readouterr()
    run(source, out, "--verify")
    assert encoded(capsys) == (16, 2)
    assert tree(out)["train/ant/000.jpg"] == whole["train/ant/000.jpg"]
    assert tree(out)["val/bee/000.jpg"] != whole["val/bee/000.jpg"]


def test_a_kill_at_any_moment_leaves_whole_files_and_the_same_command_ends_it(tmp_path, monkeypatch):
    source, out, plain = write(tmp_path / "a", n=150), tmp_path / "b", tmp_path / "c"
    run(source, plain)
    command = [sys.executable, "-m", "mixtune.prepare", "--data", str(source), "--out", str(out), "--size", "32"]
    process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, start_new_session=True)
    patience = time.monotonic() + 60
    while len(list(out.rglob("*.jpg"))) < 40 and time.monotonic() < patience:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    expected = tree(plain)
    left = {k: v for k, v in tree(out).items() if k.endswith(".jpg")}
    assert 40 <= len(left) < 600
    assert all(expected[k] == v for k, v in left.items())
    with pytest.raises(InputError, match=r"task\.data: .*/b\b.*mixtune\.prepare"):
        datasets.load_dataset("folder", str(out))
    with (out / manifest.MANIFEST_FILE).open("a") as file:
        file.write("train/ant/000.jpg\thalf a li")  # and what a power cut leaves of a line
    run(source, out)
    made = tree(out)
    assert {k: v for k, v in made.items() if k != manifest.MANIFEST_FILE} == {
        k: v for k, v in expected.items() if k != manifest.MANIFEST_FILE
    }
    listed = manifest.read_manifest(out)
    assert len(listed) == 600  # the line after the half one is whole
    for entry in listed.values():
        assert hashlib.sha256(made[entry.written]).hexdigest() == entry.checksum


def test_unreadable_images_are_counted_named_and_left_out(tmp_path, capsys):
    source, out = write(tmp_path / "a"), tmp_path / "b"
    (source / "train/bee/000.jpg").write_bytes(b"\xff\xd8broken")
    run(source, out)
    assert re.search(r"^left out 1 .*train/bee/000\.jpg", capsys.readouterr().out, re.MULTILINE)
    assert not (out / "train/bee/000.jpg").exists()
    assert len(datasets.load_dataset("folder", str(out)).train) == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "0"], "--size .*1.*4096.*0"),
        ([], "--size.*--space"),
        (["--size", "32", "--quality", "99"], "--quality .*1.*95.*99"),
        (["--size", "32", "--workers", "0"], "--workers .*1.*0"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare.main(["--data", str(write(tmp_path / "a", 1)), "--out", str(tmp_path / "b"), *flags])


def test_bad_folders_are_one_sentence(tmp_path):
    source, out = write(tmp_path / "a"), tmp_path / "b"
    with pytest.raises(InputError, match=r"--data .*none.*train/"):
        run(tmp_path / "none", out)
    with pytest.raises(InputError, match=r"--out .*/b"):
        run(source, source / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match=r"--out .*/full"):
        run(source, tmp_path / "full")
    run(source, out)
    with pytest.raises(InputError, match=r"--out .*/b.*'quality'"):
        run(source, out, "--quality", "50")


def test_a_space_says_its_largest_size():
    assert prepare.largest_size(str(ROOT / "search_spaces/imagenet.yaml")) == 288


def test_a_full_disk_is_one_sentence_and_the_same_command_ends_it(tmp_path):
    source, out, plain = write(tmp_path / "a"), tmp_path / "b", tmp_path / "c"
    run(source, plain)
    sizes = [e.bytes for e in manifest.read_manifest(plain).values()]
    with (
        room_for((min(sizes) + max(sizes)) // 2),
        pytest.raises(InputError, match=r"--out .*/b: .*File too large"),
    ):
        run(source, out)
    assert not list(out.rglob("*.part"))
    with pytest.raises(InputError, match=r"task\.data: .*/b\b.*mixtune\.prepare"):
        datasets.load_dataset("folder", str(out))
    run(source, out)
    assert tree(out) == tree(plain)


@pytest.mark.parametrize("left", [b"", b"\xff\x00garbage\n", b"a\tb\tc\tnumber\te\t\n", b"half a li"])
def test_a_damaged_list_is_made_again(left, tmp_path, capsys):
    source, out = write(tmp_path / "a"), tmp_path / "b"
    run(source, out)
    (out / manifest.MANIFEST_FILE).write_bytes(left)
    capsys.readouterr()
    run(source, out)
    assert encoded(capsys) == (16, 16)
    run(source, out)
    assert encoded(capsys) == (16, 0)


@pytest.mark.parametrize("left", ["", "[1, 2]", "{}", '{"size": "large"}'])
def test_a_damaged_state_is_one_sentence(left, tmp_path):
    source, out = write(tmp_path / "a", 1), tmp_path / "b"
    run(source, out)
    (out / prepared_folder.STATE_FILE).write_text(left)
    for act in (lambda: run(source, out), lambda: datasets.load_dataset("folder", str(out))):
        with pytest.raises(InputError, match=r"/b/prepared\.json\b"):
            act()


def test_a_source_that_vanishes_is_left_out_and_looked_for_again(tmp_path, monkeypatch, capsys):
    source, out = write(tmp_path / "a", 1), tmp_path / "b"
    there = list(prepare_images.find_loose_images(source))
    monkeypatch.setattr(
        prepare_images,
        "find_loose_images",
        lambda _, parts: [x for x in [*there, "train/ant/gone.jpg"] if x.startswith(tuple(parts))],
    )
    for now in (5, 1):
        run(source, out)
        out_text = capsys.readouterr().out
        assert numbers(out_text) == (5, now)
        assert re.search(r"^left out 1 .*train/ant/gone\.jpg", out_text, re.MULTILINE)


def test_what_could_not_be_read_is_looked_at_again_when_asked(tmp_path, capsys):
    source, out = write(tmp_path / "a", 2), tmp_path / "b"
    victim = source / "train/bee/000.jpg"
    content, when = victim.read_bytes(), victim.stat().st_mtime_ns
    for there, flags, line in ((bytes(len(content)), [], "^left out 1 "), (content, [], "^left out 1 "),
                               (content, ["--verify"], r"^images +8\b.*\b1 encoded")):  # fmt: skip
        victim.write_bytes(there)
        os.utime(victim, ns=(when, when))  # as storage that failed looks afterwards
        run(source, out, *flags)
        assert re.search(line, capsys.readouterr().out, re.MULTILINE)
    assert (out / "train/bee/000.jpg").exists()


def test_a_worker_that_is_killed_is_one_sentence(tmp_path):
    source, out = write(tmp_path / "a", n=150), tmp_path / "b"
    command = [sys.executable, "-m", "mixtune.prepare", "--data", str(source), "--out", str(out), "--size", "32"]
    process = subprocess.Popen([*command, "--workers", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    patience = time.monotonic() + 60
    while not list(out.rglob("*.jpg")) and time.monotonic() < patience:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (worker,) = (c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    assert process.wait(60) == 1
    last = process.stderr.read().splitlines()[-1]
    assert last.startswith("failed: ")
    assert "killed" in last


def test_encoders_end_when_the_command_is_killed(tmp_path):
    source, out = write(tmp_path / "a", n=150), tmp_path / "b"
    command = [sys.executable, "-m", "mixtune.prepare", "--data", str(source), "--out", str(out), "--size", "32"]
    process = subprocess.Popen([*command, "--workers", "2"], cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(members_of(process.pid)) >= 3
    os.kill(process.pid, signal.SIGKILL)  # of the command alone: it cannot end its encoders
    process.wait()
    deadline = time.monotonic() + 60
    while (left := members_of(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def members_of(session):
    """The processes of a session that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def test_sizes_beyond_those_it_was_prepared_for_are_refused(tmp_path):
    out = tmp_path / "b"
    run(write(tmp_path / "a"), out)
    settings = {"dataset": "folder", "network": "cifar_resnet8", "data": str(out), "workers": 0}
    for S, evaluated, who in ((40, 32, "regime fixed"), (32, 40, r"evaluate\.sizes")):
        task = ClassificationConfig(**settings)
        config = TrainingConfig(task, Budget(1), Evaluation((evaluated,)), threads=1, device="cpu")
        with pytest.raises(InputError, match=rf"{who}: 40 px .*32 px .*task\.data.*--size 40"):
            Run.prepare(published("fixed", BatchShape(S, 4), (S,), 4), config)
    space = {
        "study": "s", "task": settings, "base": {"S": 32, "B": 4}, "budget": {"epochs": 1}, "trials": 1,
        "evaluate": {"sizes": [32]}, "search": {"sizes": [24, 32, 40]},
    }  # fmt: skip
    with pytest.raises(InputError, match=r"f: search\.sizes: 40 px .*32 px"):
        checks.check_data(parse(space, Space, "f"), "f")
