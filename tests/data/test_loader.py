"""The loader under faults: bad files, dead readers, early ends; its memory and its decodes."""

import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.data import augment, reader_pool
from mixtune.data.augment import Augment
from mixtune.data.file_issues import FileIssues
from mixtune.data.loader import memory_ahead
from mixtune.data.reader_tasks import pin
from mixtune.data.ring_buffer import Ring
from mixtune.data.sources import Files
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Schedule, Shard

SHAPES = (BatchShape(8, 6, 2), BatchShape(16, 4))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    return Files(tuple(str(p) for p in sorted(tmp_path.iterdir())), torch.arange(12))


def schedule(steps=12, shapes=SHAPES):
    return Schedule(shapes, np.arange(steps, dtype=np.int16) % len(shapes), np.ones(len(shapes)))


def batches(source, workers=0, start=0, notes=None):
    readers = reader_pool.take(workers)
    try:
        made = augment.file_batches(source, schedule(), Augment(), True, 3, start, readers, notes=notes)
        return [(x.clone(), y) for x, y in made]  # their memory is used again
    finally:
        reader_pool.release(readers)


def spoil(source, *numbers):
    for i in numbers:
        Path(source.paths[i]).write_bytes(b"\x89PNG broken")


def test_bad_files_are_replaced_alike_by_all_and_in_resumed_runs(files):
    clean = batches(files)
    spoil(files, 2, 3, 7)
    notes = FileIssues()
    here, there, resumed = batches(files, 0, notes=notes), batches(files, 2), batches(files, start=5)
    assert sorted(notes.unreadable) == [files.paths[i] for i in (2, 3, 7)]
    assert notes.lines()[0].startswith(
        "3 images cannot be read: others stand in for training, accuracies are without; for example "
    )
    order = list(schedule().sample_batches(12, 3))
    for t, ((x, y), (u, v), (plain, _)) in enumerate(zip(here, there, clean, strict=True)):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        D, drawn = schedule().shapes[schedule().index[t]].D, order[t].tolist()
        for place, sample in enumerate(drawn):
            following = drawn[place:] + drawn[:place]
            shown = next(i for i in following if i not in (2, 3, 7))
            assert y[place * D : place * D + D].tolist() == [shown] * D
            if shown == sample:
                assert torch.equal(x[place * D : place * D + D], plain[place * D : place * D + D])
    for (x, y), (u, v) in zip(here[5:], resumed, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_without_a_single_good_image_is_said(files, workers):
    spoil(files, *range(12))
    with pytest.raises(InputError, match="none of the 6 images of a step can be read"):
        batches(files, workers)


def test_readers_that_die_are_replaced_and_their_work_is_done_again(files, caplog):
    expected = batches(files)
    readers = reader_pool.Processes(2)
    next(augment.file_eval_batches(files, 16, 4, readers))  # they are there
    for child in _children(readers._launched[0].pid):
        os.kill(child, signal.SIGSTOP)  # so that they die with work in hand
        threading.Timer(1, os.kill, (child, signal.SIGKILL)).start()
    notes = FileIssues()
    found = [x.clone() for x, _ in augment.file_batches(files, schedule(), Augment(), True, 3, 0, readers, notes=notes)]
    assert all(torch.equal(x, y) for x, (y, _) in zip(found, expected, strict=True))
    assert notes.unreadable == {}
    assert notes.decodes == schedule().samples
    assert readers._deaths == 2
    assert len(readers._held) == 2
    assert re.search(r"that reads images died, at .*\.png or the \d after it; another takes its place", caplog.text)
    readers.close()


def inject(folder, monkeypatch, code):
    """Readers run this before anything else."""
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_file_that_readers_die_of_counts_as_unreadable_and_nothing_else_changes(
    files, workers, tmp_path_factory, monkeypatch
):
    killer = f"""
import os, signal
from mixtune.data import decode
begin = decode.begin
def dies(path, need):
    if path == {files.paths[7]!r}:
        os.kill(os.getpid(), signal.SIGKILL)
    return begin(path, need)
decode.begin = dies
"""
    inject(tmp_path_factory.mktemp("injected"), monkeypatch, killer)
    readers, notes = reader_pool.Processes(workers), FileIssues()
    found = [x.clone() for x, _ in augment.file_batches(files, schedule(), Augment(), True, 3, 0, readers, notes=notes)]
    assert notes.unreadable == {files.paths[7]: "the process that decoded it died, 2 times"}
    assert 3 <= readers._deaths <= 3 * workers  # of the piece, and twice of the file alone; others may be at it too
    readers.close()
    spoil(files, 7)
    assert all(torch.equal(x, y) for x, (y, _) in zip(found, batches(files), strict=True))


def test_readers_that_cannot_start_blame_no_file(files, tmp_path_factory, monkeypatch):
    inject(tmp_path_factory.mktemp("injected"), monkeypatch, "import os; os._exit(3)")
    notes = FileIssues()
    with pytest.raises(reader_pool.ReaderLostError, match=r"die again and again \(3 so far\)"):
        list(augment.file_batches(files, schedule(), Augment(), True, 3, 0, reader_pool.Processes(1), notes=notes))
    assert notes.unreadable == {}


def test_readers_end_with_their_process(files):
    readers = reader_pool.Processes(2)
    next(augment.file_batches(files, schedule(), Augment(), True, 3, 0, readers))
    (process,) = readers._launched
    readers.close()
    assert process.wait(timeout=120) == 0


def test_what_is_left_early_leaves_the_pool_as_it_was(files):
    readers = reader_pool.take(2)
    first = batches(files)
    for _ in range(3):
        made = augment.file_batches(files, schedule(), Augment(), True, 3, 0, readers)
        next(made)
        made.close()
    assert len(readers._spare) == 1  # one region, used again
    x = next(augment.file_batches(files, schedule(), Augment(), True, 3, 0, readers))[0]
    assert torch.equal(x, first[0][0])
    reader_pool.release(readers)


def test_one_decode_serves_all_copies(files):
    notes = FileIssues()
    batches(files, notes=notes)
    assert notes.decodes == schedule().samples < schedule().views


def test_memory_is_bounded_and_holds_what_is_ahead():
    shapes = (BatchShape(96, 1394), BatchShape(224, 256), BatchShape(256, 196))
    rng = np.random.default_rng(0)
    steps = Schedule(shapes, rng.integers(0, 3, 300).astype(np.int16), np.ones(3))
    largest = 3 * 1394 * 96**2
    images, size = memory_ahead(steps, 4)
    assert images == 2 * 1394
    assert 3 * largest <= size <= 2**30
    assert memory_ahead(steps, 4, limit=1) == (images, 3 * largest)
    assert memory_ahead(steps, 0) == (0, largest)
    assert memory_ahead(steps, 4, Shard(0, 2))[0] == images // 2


def test_blocks_of_a_ring_never_overlap():
    rng, ring, held = np.random.default_rng(0), Ring(100), []
    refused = 0
    for _ in range(5000):
        size = int(rng.integers(1, 60))
        if rng.random() < 0.5 and held:
            ring.give_back()
            held.pop(0)
        elif (begin := ring.take(size)) is not None:
            assert 0 <= begin <= 100 - size
            assert all(begin + size <= a or b <= begin for a, b in held)
            held.append((begin, begin + size))
        else:
            refused += 1
            assert held
    assert refused


def _children(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("room", [True, False])
def test_memory_that_cannot_be_pinned_leaves_no_error_for_the_next_kernel(room, monkeypatch):
    """A stand-in for CUDA's runtime, which keeps its last error until someone asks for it."""
    runtime = SimpleNamespace(cudaError=SimpleNamespace(success=0), last=0)

    def register(pointer, size, flags):
        runtime.last = 0 if room else 2
        return runtime.last

    def kernel(*_, **__):
        error, runtime.last = runtime.last, 0
        if error:
            raise RuntimeError("CUDA error: out of memory")

    runtime.cudaHostRegister = register
    for name, value in (("is_available", True), ("is_initialized", True), ("cudart", runtime)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    pixels = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(torch, "ones", kernel)
    assert pin(pixels) == room
    kernel()
