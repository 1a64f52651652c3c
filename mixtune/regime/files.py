"""Regime files: readable YAML that loads to exactly the regime that was saved."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mixtune.config import parse, read_yaml
from mixtune.errors import InputError
from mixtune.regime.regime import Mixture, PhaseClock, Regime
from mixtune.regime.shapes import BatchShape

FORMAT_VERSION = 1
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the same text, ten times as fast where libyaml is there
_FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class _ShapeEntry:
    __pydantic_config__ = _FORBID

    S: int
    B: int
    p: float
    D: int = 1


@dataclass(frozen=True)
class _PhaseEntry:
    __pydantic_config__ = _FORBID

    mixture: tuple[_ShapeEntry, ...]
    share: float = 1.0
    p_of: Literal["steps", "samples"] = "steps"

    def to_mixture(self) -> Mixture:
        make = Mixture.of if self.p_of == "steps" else Mixture.of_samples
        return make([BatchShape(e.S, e.B, e.D) for e in self.mixture], [e.p for e in self.mixture])

    def __post_init__(self) -> None:
        self.to_mixture()  # so that bad shapes and probabilities are reported with this phase's key


@dataclass(frozen=True)
class _RegimeFile:
    __pydantic_config__ = _FORBID

    version: int
    base: BatchShape
    phases: tuple[_PhaseEntry, ...]
    name: str = ""
    source: str = ""
    clock: PhaseClock = "budget"
    training: dict[str, Any] = field(default_factory=dict)


def load_regime(path: str | Path) -> tuple[Regime, dict[str, Any]]:
    """Return the regime in a file, and its ``training`` section (how it was trained; empty where there is none).

    A phase with ``p_of: samples`` gives shares of the samples, as the MixSize authors' code counts; they are converted.
    Raise InputError naming the file and the key.
    """
    return regime_from_dict(read_yaml(path), path)


def regime_from_dict(data: Mapping[str, Any], source: str | Path) -> tuple[Regime, dict[str, Any]]:
    """Return what ``load_regime`` does, from a mapping; errors name ``source``."""
    if data.get("version") != FORMAT_VERSION:
        raise InputError(
            f"{source}: version must be {FORMAT_VERSION}, not {data.get('version')!r}; "
            "a regime file opens with 'version: 1' and holds base and phases"
        )
    file = parse(data, _RegimeFile, source)
    try:
        mixtures, shares = [ph.to_mixture() for ph in file.phases], [ph.share for ph in file.phases]
        return Regime.of(file.base, mixtures, shares, file.name, file.source, file.clock), file.training
    except ValueError as err:
        raise InputError(f"{source}: phases: {err}") from None


def regime_to_dict(regime: Regime, training: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the mapping that ``regime_from_dict`` reads."""
    phases = [
        {
            "share": ph.share,
            "mixture": [
                {"S": s.S, "B": s.B, "D": s.D, "p": p} for s, p in zip(ph.mixture.shapes, ph.mixture.p, strict=True)
            ],
        }
        for ph in regime.phases
    ]
    named = {k: v for k, v in (("name", regime.name), ("source", regime.source)) if v}
    base = {"S": regime.base.S, "B": regime.base.B, "D": regime.base.D}
    clock = {"clock": regime.clock} if regime.clock != "budget" else {}
    extra = {"training": dict(training)} if training else {}
    return {"version": FORMAT_VERSION, **named, "base": base, **clock, "phases": phases, **extra}


def save_regime(path: str | Path, regime: Regime, training: Mapping[str, Any] | None = None) -> None:
    """Write a regime file. ``load_regime`` returns an equal regime, to the bit."""
    data = regime_to_dict(regime, training)
    phases = data.pop("phases")
    end = {key: data.pop(key) for key in ("training",) if key in data}
    text = "# " + _wrapped(str(regime)) + _dump(data) + "phases:\n"
    for entry, phase in zip(phases, regime.phases, strict=True):
        # Written line by line for the comments: p counts steps, and readers of the papers look for samples.
        text += f"- share: {_dump(entry['share'])}  mixture:\n"
        for row, q in zip(entry["mixture"], phase.mixture.sample_shares, strict=True):
            text += f"  - {_dump(row)}".rstrip() + f"  # {100 * q:.3g} % of the samples\n"
    Path(path).write_text(text + (_dump(end) if end else ""), encoding="utf-8")


def _dump(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None)
    return str(text).removesuffix("...\n")


def _wrapped(text: str) -> str:
    return "\n# ".join(textwrap.wrap(text, 116)) + "\n"
