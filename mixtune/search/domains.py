"""Domains: what a parameter may be. A single value is fixed, ``{low: 0, high: 1}`` is a range, a list is a choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import BeforeValidator

Value = bool | int | float | str
_FORBID = {"extra": "forbid"}


class Suggests(Protocol):
    """The part of an Optuna trial that a space uses."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


@dataclass(frozen=True)
class Range:
    """A number to be searched from ``low`` to ``high``, evenly or evenly in its logarithm (``log: true``)."""

    __pydantic_config__ = _FORBID

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low must be at most high, and both finite; got low {self.low:g}, high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a range in the logarithm starts above 0, not at {self.low:g}")


class Uniform:
    """Draws evenly from every domain, as random search does (the part of an Optuna trial that a space uses)."""

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(seed)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return a number in [low, high]."""
        if log:
            return float(np.exp(self._rng.uniform(np.log(low), np.log(high))))
        return float(self._rng.uniform(low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""
        return choices[int(self._rng.integers(len(choices)))]


def _choices(given: Any) -> tuple[Value, ...]:
    """Return the values of a list, or a single value as a choice of one. Raises ValueError."""
    values = given if isinstance(given, (list, tuple)) else [given]
    if not values or any(not isinstance(v, (bool, int, float, str)) for v in values):
        raise ValueError(f"give a value, a list of values or {{low: ..., high: ...}}, not {given!r}")
    if len({(type(v), v) for v in values}) < len(values):
        raise ValueError(f"the values of a list must differ, not {list(values)}")
    return tuple(values)


def as_domain(given: Any) -> Any:
    """Return a Range for a mapping, a tuple for everything else. Raises ValueError in one sentence."""
    if isinstance(given, Range | tuple):
        return given
    if isinstance(given, dict):
        unknown = set(given) - {"low", "high", "log"}
        if unknown or not {"low", "high"} <= set(given):
            raise ValueError(f"a range is {{low: ..., high: ...}}, with log: true if wanted, not {given!r}")
        if any(isinstance(given[k], bool) or not isinstance(given[k], (int, float)) for k in ("low", "high")):
            raise ValueError(f"low and high must be numbers, not {given['low']!r} and {given['high']!r}")
        return Range(**given)
    return _choices(given)


Domain = Annotated[Any, BeforeValidator(as_domain)]  # Range | tuple[Value, ...] after reading
Domains = Range | tuple[Value, ...]


def suggest_value(trial: Suggests, name: str, domain: Domains) -> Value:
    """Return the parameter's value in this trial. A fixed value is a choice of one and listed among the parameters."""
    if isinstance(domain, Range):
        return trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    value: Value = trial.suggest_categorical(name, list(domain))
    return value


def contains_value(domain: Domains, value: Value) -> bool:
    """Return whether the parameter can take this value."""
    if isinstance(domain, Range):
        return isinstance(value, (int, float)) and domain.low <= value <= domain.high
    return value in domain


def extreme_values(domain: Domains) -> tuple[Value, ...]:
    """Return the values to check a domain with: a range's ends, or every choice."""
    return (domain.low, domain.high) if isinstance(domain, Range) else domain


def shown(domain: Domains) -> str:
    """Return ``0..1``, ``1`` or ``none | gradual``, for people."""
    if isinstance(domain, Range):
        return f"{domain.low:g}..{domain.high:g}"
    return " | ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in domain)
