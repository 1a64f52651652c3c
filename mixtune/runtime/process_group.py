"""Process group: the processes that train one network together, and what they exchange through torch.distributed.

The schedule is known before the run, so processes agree on every step without talking. Beside the gradients, which
``DistributedDataParallel`` averages, they exchange the partners of mixup, and results where these are reported. gloo
carries tensors on CPUs, NCCL those on GPUs. Nothing that travels is pickled, so nothing that arrives can execute.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixtune.errors import TrainingError
from mixtune.regime import BatchShape, Shard
from mixtune.runtime.device import available_cpus


class PeerLostError(TrainingError):
    """Another process of the group is gone."""


@contextmanager
def convert_peer_errors() -> Iterator[None]:
    """Raise PeerLostError where a collective in the block fails because another process ended."""
    try:
        yield
    except RuntimeError as err:
        if not isinstance(err, dist.DistError) and "gloo" not in str(err):  # gloo's are plain RuntimeErrors
            raise
        raise PeerLostError(
            f"another rank of this run ended or cannot be reached ({str(err).splitlines()[0]})"
        ) from err


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those of a run, and their collectives, which all of them must call.

    A group of one process calls nothing of torch.distributed. local_world_size: processes on this machine;
    is_local_main: whether this is the first of them.
    """

    rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    is_local_main: bool = True

    @property
    def shard(self) -> Shard:
        """Which images of a step are this process's. Raises ValueError for a rank outside [0, world_size)."""
        return Shard(self.rank, self.world_size)

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.world_size > 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that reports and writes files."""
        return self.rank == 0

    @property
    def cpus_per_process(self) -> int:
        """This process's share of the machine's CPU cores, at least one."""
        return max(1, available_cpus() // self.local_world_size)

    def view_slice(self, shape: BatchShape) -> slice:
        """Return which of the step's B*D views are this process's."""
        part = self.shard.part(shape.B)
        return slice(part.start * shape.D, part.stop * shape.D)

    def loss_weight(self, shape: BatchShape | None) -> float:
        """Return this process's share of the step's views: the weight of its mean loss in that of the whole step."""
        if not self.is_distributed or shape is None:
            return 1.0
        return self.shard.of(shape).views / shape.views

    def all_reduce(self, value: Tensor) -> Tensor:
        """Return the sum over processes, the same on all of them to the bit. May overwrite ``value``."""
        if self.is_distributed:
            with convert_peer_errors():
                dist.all_reduce(value)
        return value

    def all_gather(self, value: Tensor) -> Tensor:
        """Return the values of all processes, [world_size, *value.shape]."""
        if not self.is_distributed:
            return value[None]
        values = [torch.empty_like(value) for _ in range(self.world_size)]
        with convert_peer_errors():
            dist.all_gather(values, value.contiguous())
        return torch.stack(values)

    def all_gather_json(self, value: Any) -> list[Any]:
        """Return a plain value of every process, in the order of their ranks."""
        if not self.is_distributed:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.all_gather(torch.tensor([len(content)])).flatten().tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(content)] = content
        rows = self.all_gather(padded)
        return [json.loads(row[:length].numpy().tobytes()) for row, length in zip(rows, lengths, strict=True)]

    def gather_rows(self, part: Tensor, n: int) -> Tensor:
        """Return all n rows in their order, of which ``part`` are this process's."""
        if not self.is_distributed:
            return part
        rows = part.new_zeros((n, *part.shape[1:]))
        rows[self.shard.part(n)] = part
        return self.all_reduce(rows)

    def permute_views(self, views: Tensor, order: np.ndarray, shape: BatchShape | None) -> Tensor:
        """Return this process's part of ``step[order]``, where ``step`` are all views of a step of ``shape`` and
        ``views`` this process's. order: [B*D], the same in every process. Rows travel straight to where they are used.
        """
        if not self.is_distributed or shape is None:
            return views[torch.from_numpy(order).to(views.device, non_blocking=True)]
        bounds = np.array(self.shard.bounds(shape.B)) * shape.D
        owners = np.searchsorted(bounds, order, side="right") - 1
        wanted = [order[start:stop] for start, stop in itertools.pairwise(bounds)]  # by each process
        sources = [owners[start:stop] for start, stop in itertools.pairwise(bounds)]
        sent = [w[s == self.rank] - bounds[self.rank] for w, s in zip(wanted, sources, strict=True)]  # to each process
        own_sources = sources[self.rank]
        counts = np.bincount(own_sources, minlength=self.world_size).tolist()  # from each process
        outgoing = views[torch.from_numpy(np.concatenate(sent)).to(views.device)].contiguous()
        incoming = torch.empty((len(own_sources), *views.shape[1:]), dtype=views.dtype, device=views.device)
        with convert_peer_errors():
            dist.all_to_all_single(incoming, outgoing, counts, [len(s) for s in sent])
        # They arrive sorted by the process that had them; back to the order in which they are wanted.
        position = np.argsort(np.argsort(own_sources, kind="stable"), kind="stable")
        permuted = incoming[torch.from_numpy(position).to(views.device)]
        return permuted.contiguous(memory_format=torch.channels_last) if permuted.ndim == 4 else permuted

    def broadcast_flag(self, flag: bool) -> bool:
        """Return the first process's flag. Waits for all processes, but not for their devices."""
        if not self.is_distributed:
            return flag
        value = torch.tensor([flag], dtype=torch.uint8)
        with convert_peer_errors():
            dist.broadcast(value, 0)
        return bool(value.item())

    def broadcast_state(self, load: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Return in every process what ``load`` gives in the first: tensors and plain values."""
        if not self.is_distributed:
            return load()
        buffer = io.BytesIO()
        torch.save(load() if self.is_main else None, buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        with convert_peer_errors():
            dist.broadcast(length, 0)
            content = content if self.is_main else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
        state: dict[str, Any] | None = torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
        return state

    def average_buffers(self, network: nn.Module) -> None:
        """Replace floating-point buffers, such as running statistics of own images, by their mean over processes."""
        for buffer in network.buffers() if self.is_distributed else ():
            if buffer.is_floating_point():
                self.all_reduce(buffer).div_(self.world_size)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block in the first process of each machine, then in the others (one download serves them all)."""
        if not self.is_local_main:
            self.broadcast_flag(True)
        yield
        if self.is_local_main:
            self.broadcast_flag(True)


SINGLE_PROCESS = ProcessGroup()


def data_parallel(network: nn.Module, equal: bool = False) -> DistributedDataParallel:
    """Return a wrapper that averages gradients over processes while ``backward`` computes the next ones.

    All processes get the first one's weights and buffers, unless they are known to be ``equal``. Parameters whose
    ``requires_grad`` is off at this moment are left out, so a change of it needs a new wrapper.
    """
    with convert_peer_errors():
        parallel = DistributedDataParallel(network, init_sync=not equal, gradient_as_bucket_view=True)
    # Running statistics are averaged where they are used. (As an argument this is deprecated from torch 2.13 on.)
    parallel.broadcast_buffers = False
    return parallel
