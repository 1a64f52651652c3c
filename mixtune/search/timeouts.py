"""The time limits of a trial, and how often one whose worker died is started again."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """What is done about trials that hang or whose worker dies. Absent: trials may take as long as they like.

    minutes: that a worker may spend on a trial, its data and evaluation included; silent_minutes: that may pass without
    a step or a report (longer than an evaluation; reports alone count where a worker's folder is not the driver's);
    retries: how often a trial goes on from its checkpoint, in a new process, after its worker died (killed, out of host
    memory, its node lost) or lost a device or a file; a repeat of one also after a lack of memory.
    A trial that raises anything else, diverges or exceeds a limit is not tried again: it would do the same.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    minutes: float | None = None
    silent_minutes: float | None = None
    retries: int = 1

    def __post_init__(self) -> None:
        for name in ("minutes", "silent_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a number of minutes above 0, not {value}")
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, not {self.retries}")
