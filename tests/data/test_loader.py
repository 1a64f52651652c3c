"""The loader: its batches against a plain loop, bad files, faults and early ends, threads left behind, memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.data import augment, loader
from mixtune.data.augment import Augment
from mixtune.data.file_issues import FileIssues
from mixtune.data.image_views import make_views
from mixtune.data.loader import THREAD_NAME, MemoryAhead, memory_ahead
from mixtune.data.sources import Files
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Schedule, Shard

pytestmark = pytest.mark.arithmetic

SHAPES = (BatchShape(8, 6, 2), BatchShape(16, 4))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    return Files(tuple(str(p) for p in sorted(tmp_path.iterdir())), torch.arange(12))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert decoding_threads() == []


def decoding_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def schedule(steps=12, shapes=SHAPES):
    return Schedule(shapes, np.arange(steps, dtype=np.int16) % len(shapes), np.ones(len(shapes)))


def batches(source, workers=0, start=0, issues=None):
    pairs = augment.file_batches(source, schedule(), Augment(), True, 3, start, workers, issues=issues)
    return [(x.clone(), y) for x, y in pairs]  # their memory is used again


def spoil(source, *numbers):
    for i in numbers:
        Path(source.paths[i]).write_bytes(b"\x89PNG broken")


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("bad", [(), (2, 3, 7)])
def test_batches_are_those_of_a_plain_loop(files, workers, bad):
    """The oracle makes one image after the other, without threads, chunks or reused memory."""
    spoil(files, *bad)
    made = iter(batches(files, workers))
    for step in loader.training_steps(schedule(), len(files), seed=3):
        x, y = next(made)
        for row, position in enumerate(step.positions):
            following = np.roll(step.samples, -position)
            sample = next(i for i in following if i not in bad)
            views = np.zeros((1, step.D, step.S, step.S, 3), np.uint8)
            result = make_views([files.paths[sample]], step.random_crops.subset(slice(row, row + 1)), views)
            assert not result.unreadable
            rows = slice(row * step.D, (row + 1) * step.D)
            assert torch.equal(x[rows].permute(0, 2, 3, 1), torch.from_numpy(views[0]))
            assert y[rows].tolist() == [sample] * step.D
    assert next(made, None) is None


def test_bad_files_are_named_and_resumed_runs_replace_them_alike(files):
    spoil(files, 2, 3, 7)
    issues = FileIssues()
    whole, resumed = batches(files, 2, issues=issues), batches(files, start=5)
    assert sorted(issues.unreadable) == [files.paths[i] for i in (2, 3, 7)]
    assert issues.lines()[0].startswith("3 images cannot be read")
    for (x, y), (u, v) in zip(whole[5:], resumed, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_without_a_readable_image_is_an_input_error(files, workers):
    spoil(files, *range(12))
    with pytest.raises(InputError, match=r"task\.data: none of the 6 images .*\.png"):
        batches(files, workers)


@pytest.mark.parametrize("workers", [1, 4])
def test_an_exception_in_a_thread_ends_the_loader_and_is_raised(files, workers, monkeypatch):
    def fail(paths, *args):
        if files.paths[7] in paths:
            raise MemoryError("no room for an image")
        return make_views(paths, *args)

    monkeypatch.setattr(loader, "make_views", fail)
    with pytest.raises(MemoryError, match="no room for an image"):
        batches(files, workers)


def test_a_loader_that_is_left_early_ends_its_threads(files):
    expected = batches(files)[0][0]
    for _ in range(3):
        iterator = augment.file_batches(files, schedule(), Augment(), True, 3, 0, 2)
        assert torch.equal(next(iterator)[0], expected)
        assert decoding_threads()
        iterator.close()
        assert decoding_threads() == []


def test_thousands_of_loaders_leave_no_descriptor(files):
    before = list(Path("/proc/self/fd").iterdir())
    steps = schedule(1)
    for _ in range(300):
        list(augment.file_batches(files, steps, Augment(), True, 3, 0, 2))
        next(augment.file_eval_batches(files, 8, 4, 2))
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


RUN = """
import sys, time
import numpy as np, torch
from mixtune.data import augment
from mixtune.data.sources import Files
from mixtune.regime import BatchShape, Schedule
paths = tuple(sys.argv[1:])
steps = Schedule((BatchShape(16, 4),), np.zeros(10**6, np.int16), np.ones(1))
for x, y in augment.file_batches(Files(paths, torch.arange(len(paths))), steps, augment.Augment(), True, 0, 0, 3):
    print("batch", flush=True)
    time.sleep(0.05)
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_ends_a_process_that_loads(files, sent, code):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *files.paths],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == b"batch\n"
    start = time.monotonic()
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert time.monotonic() - start < 30  # the rest of the schedule would take hours
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no other process was started


def test_decoding_threads_leave_the_number_of_torchs_threads_alone(files):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches(files, workers=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_one_decode_serves_all_copies(files):
    issues = FileIssues()
    batches(files, issues=issues)
    assert issues.decodes == schedule().samples < schedule().views


def test_memory_is_bounded_and_holds_what_is_ahead():
    shapes = (BatchShape(96, 1394), BatchShape(224, 256), BatchShape(256, 196))
    rng = np.random.default_rng(0)
    steps = Schedule(shapes, rng.integers(0, 3, 300).astype(np.int16), np.ones(3))
    largest = 3 * 1394 * 96**2
    ahead = memory_ahead(steps, 4)
    assert ahead.nbytes == ahead.steps * largest <= 2**30
    images = np.array([s.B for s in steps])
    windows = [images[i : i + ahead.steps - 1].sum() for i in range(300 - ahead.steps)]
    assert min(windows) >= 2 * 1394  # twice the largest batch, beside the step in use
    assert memory_ahead(steps, 4, limit=1) == (3, 3 * largest)
    assert memory_ahead(steps, 0) == (1, largest)
    assert memory_ahead(steps, 4, Shard(0, 2)).nbytes <= ahead.nbytes / 2
    small = Schedule((BatchShape(8, 16),), np.zeros(300, np.int16), np.ones(1))
    assert 512 <= 16 * memory_ahead(small, 1).steps <= 512 + 3 * 16


@pytest.mark.parametrize("steps_ahead", [1, 2, 3])
def test_memory_of_a_step_is_not_used_again_before_the_next_is_asked_for(files, steps_ahead):
    steps = list(loader.training_steps(schedule(), len(files), seed=3))
    largest = max(step.nbytes for step in steps)
    ahead = MemoryAhead(steps_ahead, steps_ahead * largest)
    views = loader.load_views(files.paths, iter(steps), 2, ahead, FileIssues())
    expected = [x for x, _ in batches(files)]
    for (pixels, _, _), x in zip(views, expected, strict=True):
        time.sleep(0.01)  # time for the threads to write where they must not
        assert torch.equal(pixels.permute(0, 3, 1, 2), x)


@pytest.mark.parametrize("room", [True, False])
def test_memory_that_cannot_be_page_locked_is_ordinary(room, monkeypatch):
    """A stand-in for torch with CUDA, which raises when the system locks no more pages."""
    empty, calls = torch.empty, []

    def allocate(*shape, pin_memory=False, **options):
        calls.append(pin_memory)
        if pin_memory and not room:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", allocate)
    assert loader._allocate(MemoryAhead(3, 60), page_locked=True).shape == (3, 20)
    assert calls == ([True] if room else [True, False])
