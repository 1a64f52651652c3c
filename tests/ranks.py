"""Runs a function on several ranks: real processes that meet over loopback and talk through gloo."""

import multiprocessing
import traceback

from mixtune.runtime.process_group import ProcessGroup
from mixtune.runtime.rendezvous import join_group, open_store

HOST = "127.0.0.1"
CONTEXT = multiprocessing.get_context("forkserver")  # a fork of a process that has its imports and no threads
CONTEXT.set_forkserver_preload(["tests.training.warm"])


def on_ranks(world, function, *arguments):
    """What ``function(group, *arguments)`` gives on each rank; the function must be importable, its values plain."""
    _store, port = open_store(HOST)
    pipes, processes = [], []
    for rank in range(world):
        here, there = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_run, args=(there, port, rank, world, function, arguments), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    results = [_receive(pipe) for pipe in pipes]
    for process in processes:
        process.join(20)
    for result in results:
        if isinstance(result, str) and result.startswith("Traceback"):
            raise AssertionError(result)
    return results


def _receive(pipe):
    try:
        return pipe.recv() if pipe.poll(120) else "Traceback: a rank did not answer"
    except EOFError:
        return None  # the process died, as some are meant to


def _run(pipe, port, rank, world, function, arguments):
    import torch

    torch.set_num_threads(1)
    try:
        group = ProcessGroup(rank, world, world, rank == 0)
        result = function(join_group(HOST, port, group, HOST), *arguments)
    except BaseException:
        result = traceback.format_exc()
    pipe.send(result)
