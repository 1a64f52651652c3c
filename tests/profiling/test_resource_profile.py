import pickle

import pytest
import torch

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.profiling import resource_profile, step_benchmark
from mixtune.profiling.resource_profile import Footprint, Step, TooLargeError, measured
from mixtune.regime import BatchShape
from mixtune.runtime.memory import PeakMemory, available_memory
from mixtune.runtime.process_group import ProcessGroup
from mixtune.search.space import Space

MIB, GIB = 2**20, 2**30
CPU = torch.device("cpu")


def shape(pixels, S=32, D=1):
    return BatchShape(S, pixels // (S * S * D), D)


def made(steps, **changes):
    """A footprint whose steps are (shape, seconds, memory)."""
    settings = dict(place="here", key="k", device="cuda", room=80 * GIB, setup=1.0, weights=1e8)
    settings |= dict(judging={32: 1.0, 64: 4.0}, judging_memory=0.0, steps=tuple(Step(*s) for s in steps))
    return Footprint(**settings | changes)


@pytest.fixture
def config(tiny):
    return parse(tiny, Space, "f").training(1)


class Stand(step_benchmark.StepBenchmark):
    """A device of so many bytes, on which a step takes ``fixed`` and ``per_pixel`` bytes and 1 ns per pixel."""

    fixed, per_pixel, has, tried, now = 10 * MIB, 4096.0, 40 * MIB, [], 0.0

    def seconds(self, shape):
        Stand.tried.append(shape)
        Stand.now = self.fixed + self.per_pixel * shape.pixels
        if Stand.now > self.has:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1e-9 * shape.pixels


@pytest.fixture
def device(monkeypatch):
    """Stands in for a GPU: what is free, the peak since the last look, and running out."""
    Stand.tried, Stand.now = [], 0.0
    monkeypatch.setattr(resource_profile.step_benchmark, "StepBenchmark", Stand)
    monkeypatch.setattr(resource_profile, "room", lambda _: float(Stand.has))
    monkeypatch.setattr(PeakMemory, "bytes", lambda _: Stand.now)


def test_memory_lies_on_the_line_through_what_was_measured():
    found = made([(shape(k * 2**16), 1.0, GIB * (1 + k)) for k in (1, 2)])
    assert found.memory(shape(2 * 2**16)) == 3 * GIB
    assert found.memory(shape(4 * 2**16)) == pytest.approx(5 * GIB)
    assert found.memory(shape(2**16, S=16, D=4)) == pytest.approx(2 * GIB)
    assert made([(shape(2**16), 1.0, GIB)], judging_memory=2.0 * GIB).memory(shape(2**16)) == 2 * GIB


def test_seconds_are_measured_or_between_those_of_the_nearest_sizes():
    pixels = 2**18
    found = made([(shape(pixels, 16), 2.0, 1.0), (shape(pixels, 64), 4.0, 1.0), (shape(pixels // 2, 64), 9.0, 1.0)])
    assert found.seconds(shape(pixels, 64)) == 4
    assert found.seconds(BatchShape(40, 100)) == pytest.approx(3.0 * 40 * 40 * 100 / pixels)
    assert found.seconds(shape(4 * pixels, 16)) == pytest.approx(8.0)


def test_evaluation_takes_a_part_per_image_and_a_part_per_pixel():
    found = made([], judging={32: 1.0 + 32**2 / 1024, 64: 1.0 + 64**2 / 1024})
    assert found.evaluation([32, 64, 96]) == pytest.approx(sum(1 + S**2 / 1024 for S in (32, 64, 96)))


def test_real_steps_are_measured_once_and_kept(config, tmp_path, monkeypatch):
    path, shapes = tmp_path / "preflight.yaml", [BatchShape(8, 16), BatchShape(8, 32), BatchShape(24, 32)]
    found = measured(config, shapes, path)
    assert [s.shape for s in found.steps] == sorted(shapes, key=lambda s: s.pixels)
    assert found.seconds(shapes[2]) > found.seconds(shapes[0]) > 0
    assert 100 * MIB < found.memory(shapes[0]) < found.room
    assert set(found.judging) == {8, 12}
    assert found.weights == pytest.approx(4 * 78_000, rel=0.1)
    monkeypatch.setattr(resource_profile, "_measure", None)
    assert measured(config, shapes[:2], path) == found


def test_another_network_another_shape_or_a_damaged_file_is_measured_again(config, tmp_path, device, monkeypatch):
    monkeypatch.setattr(resource_profile.cache, "place", lambda *_: None)  # the study's own file alone
    path, shapes = tmp_path / "preflight.yaml", [BatchShape(8, 16), BatchShape(8, 32)]
    for change, tried in ((lambda: None, 2), (lambda: None, 0), (lambda: path.write_text("place: 1"), 2)):
        change()
        Stand.tried = []
        measured(config, shapes, path)
        assert len(Stand.tried) == tried
    Stand.tried = []
    measured(config, [*shapes, BatchShape(8, 48)], path)
    assert len(Stand.tried) == 3
    kept = path.read_text()
    path.write_text(kept.replace(resource_profile.step_benchmark.identity(config), "another"))
    Stand.tried = []
    measured(config, shapes, path)
    assert len(Stand.tried) == 2


def test_what_cannot_fit_is_told_without_being_tried(config, tmp_path, device):
    shapes = [BatchShape(8, B) for B in (16, 32, 64, 160, 320)]
    found = measured(config, shapes, tmp_path / "f.yaml")
    assert Stand.tried == shapes[:3]
    assert found.too_large == shapes[3]
    assert found.memory(shapes[4]) == pytest.approx(Stand.fixed + Stand.per_pixel * shapes[4].pixels)
    Stand.tried = []
    assert measured(config, shapes, tmp_path / "f.yaml") == found
    assert Stand.tried == []


def test_a_shape_that_runs_out_of_memory_bounds_the_larger_ones(config, tmp_path, device, monkeypatch):
    monkeypatch.setattr(resource_profile, "room", lambda _: 1e12)  # the line says that all fit
    shapes = [BatchShape(8, B) for B in (32, 64, 160)]
    found = measured(config, shapes, tmp_path / "f.yaml")
    assert Stand.tried == shapes
    assert found.too_large == shapes[2]
    assert found.memory(BatchShape(8, 200)) == float("inf")
    assert found.memory(BatchShape(8, 100)) < Stand.has


class Peer(ProcessGroup):
    """One of several ranks, the others of which do as it does."""

    is_distributed = True


@pytest.fixture
def peer():
    """One of several ranks, as far as it can see: torch's group has no other process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield Peer()
    torch.distributed.destroy_process_group()


def test_a_rank_that_runs_out_of_memory_names_the_shape_and_fresh_ones_stop_there(
    config, tmp_path, device, monkeypatch, peer
):
    monkeypatch.setattr(resource_profile, "room", lambda _: 1e12)
    monkeypatch.setattr(Stand, "judging", lambda self, S: 1.0)
    shapes = [BatchShape(8, B) for B in (32, 64, 160, 200)]
    with pytest.raises(TooLargeError, match=r"does not hold a step of 8x160 \(S x B x D\) in") as err:
        measured(config, shapes, tmp_path / "f.yaml", group=peer)
    too_large = pickle.loads(pickle.dumps(err.value)).shape  # as it comes from another process
    Stand.tried = []
    found = measured(config, shapes, tmp_path / "f.yaml", too_large=too_large, group=peer)
    assert Stand.tried == shapes[:2]
    assert (found.too_large, found.memory(shapes[3])) == (shapes[2], float("inf"))


def test_a_base_that_does_not_fit_at_all_is_one_sentence(config, tmp_path, device, monkeypatch):
    monkeypatch.setattr(Stand, "has", 1 * MIB)
    with pytest.raises(InputError, match=r"does not hold a step of 8x16 .* in 0\.000977 GiB; lower base\.B"):
        measured(config, [BatchShape(8, 16)], tmp_path / "f.yaml")


def test_a_peak_is_seen_after_it_is_over_and_forgotten_by_the_next():
    before = PeakMemory(CPU)
    block = torch.ones(256 * MIB, dtype=torch.uint8)
    with_block = before.bytes()
    del block
    assert before.bytes() >= with_block - MIB
    assert PeakMemory(CPU).bytes() < with_block - 200 * MIB


def test_the_room_is_the_machines_or_the_containers_if_that_is_less(tmp_path):
    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 64 kB\nMemAvailable:  8388608 kB\n")
    write("proc/self/status", "VmHWM:\t 99 kB\nVmRSS:\t  1048576 kB\n")
    assert available_memory(CPU, tmp_path) == 9 * GIB
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", f"{GIB}\n")
    assert available_memory(CPU, tmp_path) == 9 * GIB
    write("sys/fs/cgroup/memory.max", f"{4 * GIB}\n")
    assert available_memory(CPU, tmp_path) == 4 * GIB


@pytest.mark.gpu
def test_on_a_gpu_memory_grows_with_the_pixels_of_a_step(config, tmp_path):
    import dataclasses

    config = dataclasses.replace(config, device="cuda")
    shapes = [BatchShape(32, B) for B in (32, 128, 300)]
    found = measured(config, shapes, tmp_path / "f.yaml")
    assert found.device == "cuda"
    assert found.steps[0].memory < found.steps[2].memory < found.room
