"""Ring: which bytes of a region hold which of the steps that are made ahead."""

from __future__ import annotations

from collections import deque


class Ring:
    """Blocks of a region, taken and given back in the same order."""

    def __init__(self, size: int) -> None:
        self.size, self._blocks = size, deque[tuple[int, int]]()

    def take(self, size: int) -> int | None:
        """Where a block of this size begins; None while there is no room."""
        if not self._blocks:
            begin: int | None = 0 if size <= self.size else None
        else:
            first, end = self._blocks[0][0], self._blocks[-1][1]
            if end <= first:  # the blocks go round
                begin = end if first - end >= size else None
            else:
                begin = end if self.size - end >= size else 0 if first >= size else None
        if begin is not None:
            self._blocks.append((begin, begin + size))
        return begin

    def give_back(self) -> None:
        """The oldest block."""
        self._blocks.popleft()
