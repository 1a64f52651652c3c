"""Outcome: a trial that has ended, as everyone but the storage sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtune.study.final import Repeat
from mixtune.training.curve import Curve


@dataclass(frozen=True)
class Outcome:
    """A finished trial as the study remembers it. ``score`` is None where there was no report."""

    number: int
    state: str
    score: float | None
    params: Mapping[str, Any]
    published: str
    reason: str
    curve: Curve | None
    proxy: float | None = None  # its score on the task that it was carried from
    repeat: Repeat | None = None

    @property
    def name(self) -> str:
        """What it is called in sentences: the published regime's name, or "searched" with its number."""
        return self.published or f"searched #{self.number}"
