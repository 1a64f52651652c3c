"""Ranks: one run on several processes, each with its shard of every step, that learns what one device would.

The schedule is known before the run, so ranks agree on every step without talking. What they exchange is one sum of
gradients per step, the partners of mixup, and results where they are reported. torch.distributed alone: gloo on CPUs,
NCCL on GPUs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mixtune.errors import TrainingError
from mixtune.regime import WHOLE, BatchShape, Shard
from mixtune.runtime.device import available_cpus

T = TypeVar("T")


class PeerLostError(TrainingError):
    """Another rank of the run is gone."""


@contextmanager
def exchange() -> Iterator[None]:
    """What goes wrong in here is another rank's end."""
    try:
        yield
    except RuntimeError as err:  # gloo raises it plain, NCCL as dist.DistError
        raise PeerLostError(
            f"another rank of this run ended or cannot be reached ({str(err).splitlines()[0]})"
        ) from err


class Ranks:
    """This process's place among those of a run, and what they exchange. For a process alone all of it is nothing.

    local: ranks on this machine; first_here: whether this is the first of them.
    """

    def __init__(self, shard: Shard = WHOLE, local: int = 1, first_here: bool = True) -> None:
        self.shard, self.local, self.first_here = shard, local, first_here

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.shard.world == 1

    @property
    def first(self) -> bool:
        """Whether this rank is the one that reports and writes files."""
        return self.shard.rank == 0

    @property
    def cpus(self) -> int:
        """This rank's part of the machine's CPU cores, at least one."""
        return max(1, available_cpus() // self.local)

    def views(self, shape: BatchShape) -> slice:
        """Which of the step's B*D views are this rank's."""
        part = self.shard.part(shape.B)
        return slice(part.start * shape.D, part.stop * shape.D)

    def share(self, shape: BatchShape | None) -> float:
        """This rank's share of the step's views: the weight of its mean loss in that of the step."""
        if self.alone or shape is None:
            return 1.0
        return self.shard.of(shape).views / shape.views

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, in one exchange."""
        if self.alone:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._flat(gradients, lambda flat: flat)

    def average_buffers(self, network: nn.Module) -> None:
        """Give every rank the mean of their running statistics, which are of each rank's own images."""
        if not self.alone:
            self._flat([b for b in network.buffers() if b.is_floating_point()], lambda flat: flat / self.shard.world)

    def equalise(self, network: nn.Module) -> None:
        """Give every rank the first one's weights and buffers."""
        if not self.alone:
            with torch.no_grad():
                tensors = [t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]
            self._flat(tensors, lambda flat: flat, keep=self.first)

    @torch.no_grad()
    def _flat(self, tensors: list[Tensor], change: Callable[[Tensor], Tensor], keep: bool = True) -> None:
        """Sum tensors of one type over ranks in place; with ``keep`` False this rank adds zeros."""
        if not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        total = change(self.sum(flat if keep else torch.zeros_like(flat)))
        parts = total.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on all of them to the bit. May overwrite ``value``."""
        if not self.alone:
            with exchange():
                dist.all_reduce(value)
        return value

    def every(self, value: Tensor) -> Tensor:
        """The values of all ranks, [world, *value.shape]."""
        if self.alone:
            return value[None]
        with exchange():
            found = [torch.empty_like(value) for _ in range(self.shard.world)]
            dist.all_gather(found, value.contiguous())
        return torch.stack(found)

    def gather(self, value: Any) -> list[Any]:
        """A plain value of every rank, as JSON: nothing that travels can execute."""
        if self.alone:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = self.every(torch.tensor([len(content)])).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(content)] = content
        rows = self.every(padded)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def join(self, part: Tensor, n: int) -> Tensor:
        """All n rows, of which ``part`` are this rank's, in their order."""
        if self.alone:
            return part
        whole = part.new_zeros((n, *part.shape[1:]))
        whole[self.shard.part(n)] = part
        return self.sum(whole)

    def rows(self, mine: Tensor, order: np.ndarray, shape: BatchShape | None) -> Tensor:
        """This rank's part of ``step[order]``, where ``step`` has a row for each of the step's views and this rank
        holds ``mine`` of them. ``order``: [B*D], the same on every rank. Rows travel straight to who wants them.
        """
        if self.alone or shape is None:
            return mine[torch.from_numpy(order).to(mine.device, non_blocking=True)]
        bounds = np.array(self.shard.bounds(shape.B)) * shape.D
        owner = np.searchsorted(bounds, order, side="right") - 1
        rank, world = self.shard.rank, self.shard.world
        wanted = [order[bounds[r] : bounds[r + 1]] for r in range(world)]
        owners = [owner[bounds[r] : bounds[r + 1]] for r in range(world)]
        given = [w[o == rank] - bounds[rank] for w, o in zip(wanted, owners, strict=True)]  # to each rank
        taken = np.bincount(owners[rank], minlength=world).tolist()  # from each rank
        sent = mine[torch.from_numpy(np.concatenate(given)).to(mine.device)]
        got = torch.empty((len(wanted[rank]), *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
        with exchange():
            dist.all_to_all_single(got, sent.contiguous(), taken, [len(g) for g in given])
        # They come sorted by owner; back to the order in which they are wanted.
        place = np.argsort(np.argsort(owners[rank], kind="stable"), kind="stable")
        found = got[torch.from_numpy(place).to(mine.device)]
        return found.contiguous(memory_format=torch.channels_last) if found.ndim == 4 else found

    def agree(self, word: bool) -> bool:
        """The first rank's word, on every rank. Waits for all of them, but not for their devices."""
        if self.alone:
            return word
        said = torch.tensor([word], dtype=torch.uint8)
        with exchange():
            dist.broadcast(said, 0)
        return bool(said.item())

    def share_state(self, load: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """What ``load`` gives on the first rank, on every rank; nothing that travels can execute."""
        if self.alone:
            return load()
        state = load() if self.first else None
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        with exchange():
            dist.broadcast(size, 0)
            if not self.first:
                content = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(content, 0)
        found: dict[str, Any] | None = torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
        return found

    @contextmanager
    def first_here_first(self) -> Iterator[None]:
        """The first rank of each machine goes through alone, then the others (one download serves them all)."""
        if not self.first_here:
            self.agree(True)
        yield
        if self.first_here:
            self.agree(True)


ALONE = Ranks()
