"""What a trial takes of the machines, as a space file asks for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and how many run at once (default: as many as fit). ``gpus`` may be a share of one.

    workers: processes that share every step of a trial (ranks), on one node or several; cpus and gpus are then of each
    of them, and gpus 0 or 1. gpus defaults to 1 where there are GPUs, else 0; cpus to an equal part of the cores, one
    trial per GPU or per core. pack: trials that share a GPU inside one process; by default as many as a short
    measurement finds useful, and 1 where gpus is given. folds_at_once: folds of a trial that train at the same time,
    each on workers of its own; 1 trains them in turn.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    cpus: int | None = None
    gpus: float | None = None
    at_once: int | None = None
    pack: int | None = None
    workers: int = 1
    folds_at_once: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if self.workers > 1 and self.gpus not in (None, 0, 1):
            raise ValueError(
                f"gpus must be 0 or 1 where a trial has several workers, each with its own, not {self.gpus}"
            )
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ValueError(f"gpus must be a share in [0, 1] or a whole number, not {self.gpus}")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once must be at least 1, not {self.at_once}")
        if self.pack is not None and self.pack < 1:
            raise ValueError(f"pack must be at least 1, not {self.pack}")
        if self.folds_at_once < 1:
            raise ValueError(f"folds_at_once must be at least 1, not {self.folds_at_once}")
        if self.folds_at_once > 1 and (self.pack or 1) > 1:
            raise ValueError(
                "pack has trials share a process and folds_at_once gives every fold its own: leave one of them out"
            )

    @property
    def processes(self) -> int:
        """How many processes a trial has, each with these cpus and gpus."""
        return self.workers * self.folds_at_once
