"""What the ranks of test_ranks.py do. Imports little, because every rank is a process that imports it."""

import os
import signal
import time
from pathlib import Path

import torch

from mixtune.errors import InputError
from mixtune.execution.trial import trial_reports
from mixtune.profiling import resource_profile
from mixtune.regime import BatchShape


def dies_once(group, spec, notes):
    """A trial whose second rank is killed after the first report, the first time."""
    for result in trial_reports(group, spec):
        with Path(notes).open("a") as file:
            file.write(f"{group.rank} {result['number']} {result['seconds']!r}\n")
        yield result
        if group.rank == 1 and len(Path(notes).read_text().split("\n")) <= 3:
            os.kill(os.getpid(), signal.SIGKILL)


def dies(group):
    yield 1
    if not group.is_main:
        os.kill(os.getpid(), signal.SIGKILL)
    group.broadcast_flag(True)


def refuses(group):
    if not group.is_main:
        raise InputError("task.data: nothing there")
    group.broadcast_flag(True)
    yield 1


def pids(group):
    own = torch.tensor([os.getpid()])
    yield [int(pid) for pid in group.gather_rows(group.all_gather(own)[group.shard.part(2)].flatten().double(), 2)]
    time.sleep(600)


def short_of_memory(config, shapes, group):
    """Measure where the second rank has too little memory for the base."""

    class Short(resource_profile.StepBenchmark):
        def step_seconds(self, shape):
            if group.rank == 1 and shape == BatchShape(8, 32):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step_seconds(shape)

    resource_profile.StepBenchmark = Short  # in this rank's process
    return resource_profile.measure_profile(config, shapes, group)


def loses_its_device_once(group, pids):
    """The second rank's first process meets an illegal access."""
    with Path(pids).open("a") as file:
        file.write(f"{group.rank} {os.getpid()}\n")
    yield 1
    group.broadcast_flag(True)
    if not group.is_main and [line[0] for line in Path(pids).read_text().splitlines()].count("1") == 1:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    group.broadcast_flag(True)
    yield 2
