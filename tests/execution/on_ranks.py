"""What the ranks of test_ranks.py do. Imports little, because every rank is a process that imports it."""

import os
import signal
import time
from pathlib import Path

import torch

from mixtune.errors import InputError
from mixtune.execution.trial import trial_results
from mixtune.profiling import resource_profile
from mixtune.regime import BatchShape


def dies_once(here, config, notes):
    """A trial whose second rank is killed after the first report, the first time."""
    for result in trial_results(here, config):
        with Path(notes).open("a") as file:
            file.write(f"{here.shard.rank} {result['number']} {result['seconds']!r}\n")
        yield result
        if here.shard.rank == 1 and len(Path(notes).read_text().split("\n")) <= 3:
            os.kill(os.getpid(), signal.SIGKILL)


def dies(here):
    yield 1
    if not here.first:
        os.kill(os.getpid(), signal.SIGKILL)
    here.agree(True)


def refuses(here):
    if not here.first:
        raise InputError("task.data: nothing there")
    here.agree(True)
    yield 1


def pids(here):
    own = torch.tensor([os.getpid()])
    yield [int(pid) for pid in here.join(here.every(own)[here.shard.part(2)].flatten().double(), 2)]
    time.sleep(600)


def short_of_memory(config, shapes, here):
    """Measure where the second rank has too little memory for the base."""

    class Short(resource_profile.StepBenchmark):
        def step_seconds(self, shape):
            if here.shard.rank == 1 and shape == BatchShape(8, 32):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().step_seconds(shape)

    resource_profile.StepBenchmark = Short  # in this rank's process
    return resource_profile.measure_profile(config, shapes, here)


def loses_its_device_once(here, pids):
    """The second rank's first process meets an illegal access."""
    with Path(pids).open("a") as file:
        file.write(f"{here.shard.rank} {os.getpid()}\n")
    yield 1
    here.agree(True)
    if not here.first and [line[0] for line in Path(pids).read_text().splitlines()].count("1") == 1:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    here.agree(True)
    yield 2
