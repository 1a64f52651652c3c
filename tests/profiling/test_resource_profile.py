"""What is measured of memory and time, on a stand-in for a GPU and on this machine."""

import dataclasses

import pytest
import torch

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.profiling import resource_profile
from mixtune.profiling.resource_profile import MeasuredStep, ResourceProfile, benchmark_shapes, measure_profile
from mixtune.profiling.step_benchmark import StepBenchmark
from mixtune.regime import BatchShape
from mixtune.runtime.memory import PeakMemory
from mixtune.runtime.process_group import ProcessGroup
from mixtune.search.space import Space

MIB, GIB = 2**20, 2**30


def shape(pixels, S=32, D=1):
    return BatchShape(S, pixels // (S * S * D), D)


def make_profile(steps, **changes):
    """A profile whose steps are (shape, seconds, memory)."""
    settings = dict(measured_on="here", day="today", device="cuda", available_memory=80 * GIB, setup=1.0, weights=1e8)
    settings |= dict(evaluation={32: 1.0, 64: 4.0}, evaluation_memory=0.0)
    return ResourceProfile(**settings | {"steps": tuple(MeasuredStep(*s) for s in steps)} | changes)


@pytest.fixture
def config(tiny):
    return parse(tiny, Space, "f").training(1)


class FakeDevice(StepBenchmark):
    """A device of so many bytes, on which a step takes ``fixed`` and ``per_pixel`` bytes and 1 ns per pixel."""

    fixed, per_pixel, memory, tried, used = 10 * MIB, 4096.0, 40 * MIB, [], 0.0

    def step_seconds(self, shape):
        FakeDevice.tried.append(shape)
        FakeDevice.used = self.fixed + self.per_pixel * shape.pixels
        if FakeDevice.used > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1e-9 * shape.pixels


@pytest.fixture
def device(monkeypatch):
    """Stands in for a GPU: what is free, the peak since the last look, and running out."""
    FakeDevice.tried, FakeDevice.used = [], 0.0
    monkeypatch.setattr(resource_profile, "StepBenchmark", FakeDevice)
    monkeypatch.setattr(resource_profile, "available_memory", lambda _: float(FakeDevice.memory))
    monkeypatch.setattr(PeakMemory, "bytes", lambda _: FakeDevice.used)


def test_memory_lies_on_the_line_through_what_was_measured_and_never_below_it():
    profile = make_profile([(shape(k * 2**16), 1.0, GIB * (1 + k)) for k in (1, 2)])
    assert profile.memory(shape(4 * 2**16)) == pytest.approx(5 * GIB)
    assert profile.memory(shape(2**16, S=16, D=4)) == pytest.approx(2 * GIB)
    assert make_profile([(shape(2**16), 1.0, GIB)], evaluation_memory=2.0 * GIB).memory(shape(2**16)) == 2 * GIB
    uneven = make_profile([(shape(k * 2**16), 1.0, m * GIB) for k, m in ((1, 2), (2, 2.5), (4, 5))])
    assert all(uneven.memory(step.shape) >= step.memory * (1 - 1e-12) for step in uneven.steps)
    falling = make_profile([(shape(k * 2**16), 1.0, m * GIB) for k, m in ((1, 3), (2, 2))])
    assert falling.memory(shape(8 * 2**16)) == pytest.approx(3 * GIB)


def test_seconds_are_measured_or_between_those_of_the_nearest_sizes():
    pixels = 2**18
    steps = [(shape(pixels, 16), 2.0, 1.0), (shape(pixels, 64), 4.0, 1.0), (shape(pixels // 2, 64), 9.0, 1.0)]
    profile = make_profile(steps)
    assert profile.step_seconds(shape(pixels, 64)) == 4
    assert profile.step_seconds(BatchShape(40, 100)) == pytest.approx(3.0 * 40 * 40 * 100 / pixels)
    assert profile.step_seconds(shape(4 * pixels, 16)) == pytest.approx(8.0)


def test_evaluation_takes_a_part_per_image_and_a_part_per_pixel():
    profile = make_profile([], evaluation={32: 1.0 + 32**2 / 1024, 64: 1.0 + 64**2 / 1024})
    assert profile.evaluation_seconds([32, 64, 96]) == pytest.approx(sum(1 + S**2 / 1024 for S in (32, 64, 96)))


def test_the_shapes_to_measure_are_the_base_parts_of_it_and_the_ends(tiny):
    space = parse(tiny, Space, "f")
    measured, shapes = benchmark_shapes(space), space.shapes()
    parts = {space.base, BatchShape(8, 16), BatchShape(8, 8)}
    assert parts <= set(measured) <= parts | set(shapes)
    for key in ("S", "B"):
        assert {getattr(s, key) for s in measured} >= {pick(getattr(s, key) for s in shapes) for pick in (min, max)}


def test_real_steps_are_measured(config):
    shapes = [BatchShape(8, 16), BatchShape(24, 32), BatchShape(8, 32)]
    profile = measure_profile(config, shapes)
    assert [s.shape for s in profile.steps] == sorted(shapes, key=lambda s: s.pixels)
    assert profile.step_seconds(shapes[1]) > profile.step_seconds(shapes[0]) > 0
    assert 100 * MIB < profile.memory(shapes[0]) < profile.available_memory
    assert set(profile.evaluation) == {8, 12}
    assert profile.weights == pytest.approx(4 * 78_000, rel=0.1)


def test_what_cannot_fit_is_known_without_being_tried(config, device):
    shapes = [BatchShape(8, B) for B in (16, 32, 64, 160, 320)]
    profile = measure_profile(config, shapes)
    assert FakeDevice.tried == shapes[:3]
    assert profile.memory(shapes[4]) == pytest.approx(FakeDevice.fixed + FakeDevice.per_pixel * shapes[4].pixels)
    assert not profile.memory_exceeded(shapes[2], shapes[0])
    assert profile.memory_exceeded(shapes[3], shapes[0])


def test_a_shape_that_runs_out_of_memory_bounds_the_larger_ones(config, device, monkeypatch):
    monkeypatch.setattr(resource_profile, "available_memory", lambda _: 1e12)  # the line says that all fit
    shapes = [BatchShape(8, B) for B in (32, 64, 160)]
    profile = measure_profile(config, shapes)
    assert FakeDevice.tried == shapes
    for B, fits in ((64, True), (150, True), (160, False), (200, False)):
        assert bool(profile.memory_exceeded(BatchShape(8, B), shapes[0])) != fits


class Peer(ProcessGroup):
    """One of several ranks, the others of which do as it does."""

    is_distributed = True


@pytest.fixture
def peer():
    """One of several ranks, as far as it can see: torch's group has no other process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield Peer()
    torch.distributed.destroy_process_group()


def test_ranks_that_run_out_of_memory_name_the_shape(config, device, peer, monkeypatch):
    """Those that have enough wait for the others, so that none can go on."""
    monkeypatch.setattr(resource_profile, "available_memory", lambda _: 1e12)
    monkeypatch.setattr(FakeDevice, "evaluation_seconds", lambda self, S: 1.0)
    shapes = [BatchShape(8, B) for B in (32, 64, 160)]
    with pytest.raises(InputError, match=r"base: .* 8x160 .*base\.B"):
        measure_profile(config, shapes, peer)
    assert [s.shape for s in measure_profile(config, shapes[:2], peer).steps] == shapes[:2]


def test_a_base_that_does_not_fit_at_all_is_one_sentence(config, device, monkeypatch):
    monkeypatch.setattr(FakeDevice, "memory", 1 * MIB)
    with pytest.raises(InputError, match=r"base: .* 8x16 .* 1 MiB.*base\.B"):
        measure_profile(config, [BatchShape(8, 16)])


@pytest.mark.gpu
def test_on_a_gpu_memory_grows_with_the_pixels_of_a_step(config):
    shapes = [BatchShape(32, B) for B in (32, 128, 300)]
    profile = measure_profile(dataclasses.replace(config, device="cuda"), shapes)
    assert profile.device == "cuda"
    assert profile.steps[0].memory < profile.steps[2].memory < profile.available_memory
