"""Feasible: whether a candidate can meet the budget and fits into memory, before anything of it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mixtune.profiling.resource_profile import Footprint
from mixtune.regime import BatchShape, Regime
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

Refuse = Callable[[Regime, TrainingConfig], str]  # why a candidate cannot be trained; empty where it can be


@dataclass(frozen=True)
class Room:
    """The memory that each worker of a trial has, in bytes, and what was measured of that which a step takes."""

    footprint: Footprint
    bytes: float

    def lacking(self, shape: BatchShape, base: BatchShape) -> str:
        """Why a step of this shape does not fit, with the base batch whose step at this size would; empty when it does.

        The search for that batch takes a dozen looks at a line, not at a device.
        """
        if (needs := self.footprint.memory(shape)) <= self.bytes:
            return ""
        fits, fails = 0, base.B  # of base batches
        while fails - fits > 1:
            B = (fits + fails) // 2
            smaller = replace(shape, B=max(1, shape.B * B // base.B))
            fits, fails = (B, fails) if self.footprint.memory(smaller) <= self.bytes else (fits, B)
        where = "the GPU" if self.footprint.device == "cuda" else "the machine"
        has = f"a trial has {gib(self.bytes)} of {where}"
        said = (
            f"needs about {gib(needs)} and {has}" if needs < float("inf") else f"did not fit when it was tried ({has})"
        )
        helps = f"base.B {fits} would fit" if fits else "no batch would fit: leave the size out or take another network"
        return f"at {shape.S} px a batch of {shape.B * shape.D} {said}: {helps}"


def gib(size: float) -> str:
    """Bytes as people read them."""
    return f"{number(size / 2**30)} GiB" if size >= 2**27 else f"{number(size / 2**20)} MiB"


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def nothing(regime: Regime, training: TrainingConfig) -> str:
    """Nothing is refused."""
    return ""


def infeasible(space: Space, regime: Regime, training: TrainingConfig, n_train: int, room: Room | None = None) -> str:
    """Why a candidate cannot meet the budget at some fidelity, or does not fit into memory; empty when it can be run.

    Milliseconds: the schedules are made and nothing is trained.
    """
    for shape in regime.shapes if room else ():
        assert room is not None
        if said := room.lacking(shape, space.base):
            return said
    try:
        for share in sorted({stage.share for stage in space.stages}):
            replace(training, share=share).schedule(regime, n_train)
    except ValueError as err:
        return str(err)
    return ""
