"""Space: what a study searches, read from YAML. A candidate is a point of fixed length; ``regime`` makes it a Regime.

One weight per candidate size, ``split`` and ``growth``: no conditional names, so that multivariate sampling,
importances and seeding with the published regimes all work. S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from mixtune.errors import did_you_mean
from mixtune.regime import PUBLISHED, BatchShape, Budget, Mixture, Regime, published
from mixtune.study.limits import Limits
from mixtune.training.checkpoint import digest, essence
from mixtune.training.recipe import Recipe
from mixtune.training.run import Evaluation, TrainingConfig
from mixtune.training.score import Score
from mixtune.training.task import TaskConfig

Growth = Literal["none", "gradual", "stepwise"]
NEGLIGIBLE = 0.05  # a weight below this is none: otherwise no candidate would ever leave a size out
# Where the published regimes lie in the space; what is not named here has split 1 and no growth.
_SPLIT = {"mixsize_d": 0.0, "mixsize_bd": 0.5}
_GROWTH: dict[str, Growth] = {"gradual": "gradual", "stepwise": "stepwise"}
_FORBID = {"extra": "forbid"}


class Suggests(Protocol):
    """The part of an Optuna trial that the space uses."""

    def suggest_float(self, name: str, low: float, high: float) -> float:
        """A number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Range:
    """A number to be searched from ``low`` to ``high``; equal bounds fix it."""

    __pydantic_config__ = _FORBID

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low must be at most high, and both finite; got low {self.low:g}, high {self.high:g}")


@dataclass(frozen=True)
class Search:
    """What is searched. sizes: candidates; split: 1 grows batches, 0 adds copies; growth: the order of sizes.

    growth "none" draws sizes at random throughout; "gradual" trains one size after the other, smallest first;
    "stepwise" first the sizes below the base, then the others. All spend the same share of compute on each size.
    """

    __pydantic_config__ = _FORBID

    sizes: tuple[int, ...]
    split: Range = Range(0.0, 1.0)
    growth: tuple[Growth, ...] = ("none", "gradual", "stepwise")

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes must be different positive image sizes, not {list(self.sizes)}")
        if not (self.split.low >= 0 and self.split.high <= 1):
            raise ValueError(f"split must lie in [0, 1], not from {self.split.low:g} to {self.split.high:g}")
        if not self.growth or len(set(self.growth)) < len(self.growth):
            raise ValueError(f"growth must list different ways to grow, not {list(self.growth)}")


@dataclass(frozen=True)
class Named:
    """A sampler or pruner by name, with the options of Optuna's class."""

    __pydantic_config__ = _FORBID

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and how many run at once (default: as many as fit). ``gpus`` may be a share of one.

    workers: processes that share every step of a trial (ranks), on one node or several; cpus and gpus are then of each
    of them, and gpus 0 or 1. gpus defaults to 1 where there are GPUs, else 0; cpus to an equal part of the cores, one
    trial per GPU or per core. pack: trials that share a GPU inside one process; by default as many as a short
    measurement finds useful, and 1 where gpus is given.
    """

    __pydantic_config__ = _FORBID

    cpus: int | None = None
    gpus: float | None = None
    at_once: int | None = None
    pack: int | None = None
    workers: int = 1

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


@dataclass(frozen=True)
class Space:
    """A search-space file: the task and budget of every trial, what is searched, and how."""

    __pydantic_config__ = _FORBID

    study: str
    task: TaskConfig
    base: BatchShape
    budget: Budget
    evaluate: Evaluation
    search: Search
    trials: int
    published: tuple[str, ...] = ("fixed", "mixsize_b", "mixsize_d", "multiscale", "gradual", "stepwise")
    recipe: Recipe = field(default_factory=Recipe)
    score: Score = field(default_factory=Score)
    sampler: Named = Named("tpe")
    pruner: Named = Named("halving")
    resources: Resources = field(default_factory=Resources)
    limits: Limits = field(default_factory=Limits)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.study or not all(c.isalnum() or c in "-_." for c in self.study) or self.study.startswith("."):
            raise ValueError(f"study names the folder: letters, digits, '-', '_' and '.', not {self.study!r}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, not {self.trials}")
        self.training()  # checks that need several sections
        for name in self.published:
            if name not in PUBLISHED:
                raise ValueError(f"published: unknown regime {name!r}; {did_you_mean(name, PUBLISHED)}")
        if len(set(self.published)) < len(self.published):
            raise ValueError(f"published must list different regimes, not {list(self.published)}")

    def training(self, threads: int | None = None, costs: dict[str, float] | None = None) -> TrainingConfig:
        """What every trial shares, beside its regime."""
        return TrainingConfig(
            self.task,
            self.budget,
            self.evaluate,
            self.recipe,
            self.score,
            self.seed,
            threads,
            self.device,
            costs,
            self.resources.workers,
        )

    def shapes(self) -> list[BatchShape]:
        """Every batch shape that a candidate of this space can have, the base included."""
        found = {self.base}
        for S in self.search.sizes:
            fewest = self.base.resized(S, self.search.split.high).D
            most = self.base.resized(S, self.search.split.low).D
            found |= {BatchShape(S, max(1, round(self.base.pixels / (S**2 * D))), D) for D in range(fewest, most + 1)}
        return sorted(found)

    def digest(self) -> str:
        """Changes when the meaning of a score or a parameter does; not with the number of trials or the resources."""
        # Ranks without synchronised batch norms learn something else.
        resources = Resources(workers=1 if self.recipe.sync_bn else self.resources.workers)
        data = essence(replace(self, trials=1, resources=resources, limits=Limits(), device="auto"))
        for key in ("data", "workers"):
            data["task"].pop(key, None)
        return digest(data)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """A candidate: the parameters of one trial."""
        params: dict[str, Any] = {f"w_{S}": trial.suggest_float(f"w_{S}", 0.0, 1.0) for S in self.search.sizes}
        params["split"] = trial.suggest_float("split", self.search.split.low, self.search.split.high)
        params["growth"] = trial.suggest_categorical("growth", list(self.search.growth))
        return params

    def regime(self, params: Mapping[str, Any], name: str = "") -> Regime:
        """The candidate as a regime: compute shares proportional to the weights, negligible ones left out."""
        weights = {S: float(params[f"w_{S}"]) for S in sorted(self.search.sizes)}
        kept = {S: w for S, w in weights.items() if w >= NEGLIGIBLE}
        if not kept:  # all negligible: the largest stands for the mixture
            S = max(weights, key=lambda S: weights[S])
            kept = {S: 1.0}
        parts = {S: (self.base.resized(S, float(params["split"])), w) for S, w in kept.items()}
        match params["growth"]:
            case "gradual":
                groups = [[part] for part in parts.values()]
            case "stepwise":
                small = [part for S, part in parts.items() if S < self.base.S]
                large = [part for S, part in parts.items() if S >= self.base.S]
                groups = [group for group in (small, large) if group]
            case _:
                groups = [list(parts.values())]
        mixtures = [Mixture.of([s for s, _ in group], [w for _, w in group]) for group in groups]
        return Regime.of(self.base, mixtures, [sum(w for _, w in group) for group in groups], name, "mixtune search")

    def published_params(self, name: str, stride: int) -> dict[str, Any]:
        """The point of the space that is the published regime. Raises ValueError when the space does not hold it."""
        regime = published(name, self.base, sorted(self.search.sizes), stride)
        missing = sorted(set(regime.sizes) - set(self.search.sizes))
        if missing:
            raise ValueError(
                f"published: {name} at base {self.base.S} px trains on {', '.join(map(str, regime.sizes))} px; add "
                f"{', '.join(map(str, missing))} to search.sizes or leave {name} out"
            )
        split, growth = _SPLIT.get(name, 1.0), _GROWTH.get(name, "none")
        if not self.search.split.low <= split <= self.search.split.high or growth not in self.search.growth:
            raise ValueError(
                f"published: {name} has split {split:g} and growth {growth}, which search.split and search.growth do "
                f"not allow; widen them or leave {name} out"
            )
        shares = dict.fromkeys(self.search.sizes, 0.0)
        for phase in regime.phases:
            for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
                shares[shape.S] += phase.share * p
        top = max(shares.values())
        return {**{f"w_{S}": share / top for S, share in shares.items()}, "split": split, "growth": growth}
