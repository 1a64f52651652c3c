"""Shard: which images of a step belong to which rank; all ranks agree without communication."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mixtune.regime.shapes import BatchShape


@dataclass(frozen=True)
class Shard:
    """The part of ``rank`` among ``world`` ranks: of n images in order, those from n*rank/world to n*(rank+1)/world.

    The parts are consecutive, cover everything once and differ by at most one image. The B distinct images of a step
    are split, so that the D copies of an image stay on one rank and share its decode.
    Raise ValueError for a rank outside [0, world).
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank must lie in [0, {self.world}), not be {self.rank}")

    def part(self, n: int) -> slice:
        """Return this rank's part of n images."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def bounds(self, n: int) -> list[int]:
        """Return where the parts begin, and n: rank r has the images from bounds[r] to bounds[r + 1]. [world + 1]"""
        return [n * r // self.world for r in range(self.world + 1)]

    def of(self, shape: BatchShape) -> BatchShape:
        """Return this rank's part of a step of ``shape``."""
        part = self.part(shape.B)
        return BatchShape(shape.S, part.stop - part.start, shape.D)

    def check(self, shapes: Iterable[BatchShape]) -> None:
        """Raise ValueError when some shape has fewer images than there are ranks."""
        smallest = min(shapes, key=lambda s: s.B)
        if self.world > smallest.B:
            raise ValueError(f"a step of {smallest} has {smallest.B} images, too few for {self.world} ranks")


WHOLE = Shard()
