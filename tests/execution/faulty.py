"""A trial whose worker fails in every way that a worker can, by its number.

Imports little, because every worker that is killed is followed by one that imports it.
"""

import ctypes
import os
import signal
from pathlib import Path

CURVE = [{"S": 8, "gmacs": 0.1, "top1": 0.5, "top5": 0.9, "loss": 1.0, "ece": 0.1}]


def stuck_in_c_code():
    """For ever, deaf to signals, with the interpreter's lock, and at no cost: it waits for a lock that it has."""
    mutex = ctypes.create_string_buffer(64)  # zeros are an open one
    lock = ctypes.PyDLL(None).pthread_mutex_lock
    lock(mutex)
    lock(mutex)


def trial(config):
    from ray import tune

    number = int(config["folder"][-4:])
    (Path(config["folder"]) / "pids").open("a").write(f"{os.getpid()}\n")
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        stuck_in_c_code()
    if number == 6:
        os.kill(os.getpid(), signal.SIGSTOP)
    if number == 2:
        raise RuntimeError("CUDA out of memory")
    if number == 3:
        return
    tune.report({"number": 1, "last": False, "score": 0.3, "progress": 0.5, "curve": CURVE})
    if number == 7 and not Path(config["checkpoint"]).exists():
        Path(config["checkpoint"]).parent.mkdir(exist_ok=True)
        Path(config["checkpoint"]).write_text("state")
        os.kill(os.getpid(), signal.SIGKILL)
    tune.report({"number": 2, "last": True, "score": 0.5, "progress": 1.0, "curve": CURVE})


def loses_its_gpu(config):
    """The first attempt's process has a GPU that fails at every step after the first report."""
    import torch

    from mixtune.execution import ray_tune
    from mixtune.training.step import Engine

    attempts = Path(config["folder"]) / "pids"
    attempts.open("a").write(f"{os.getpid()}\n")
    before, reported = Engine.step, []

    def step(self, *arguments):
        if reported:
            raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
        return before(self, *arguments)

    if len(attempts.read_text().split()) == 1:
        Engine.step = step
    ray_tune.train_and_report(config, lambda result: (reported.append(result), ray_tune.tune.report(result)))
