"""Space: a search-space file: the task and budget of every trial, what is searched (``candidates``), and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixtune.errors import did_you_mean
from mixtune.regime import PUBLISHED, BatchShape, Budget, Regime, published
from mixtune.regime.files import load_regime
from mixtune.regime.rebase import rebased
from mixtune.study import candidates
from mixtune.study.candidates import NEGLIGIBLE, Search
from mixtune.study.fidelity import Fidelity, Stage, stages
from mixtune.study.knobs import Suggests, holds
from mixtune.study.limits import Limits
from mixtune.training.checkpoint import digest, essence
from mixtune.training.recipe import Recipe
from mixtune.training.run import Evaluation, TrainingConfig
from mixtune.training.score import Score
from mixtune.training.task import TaskConfig

_FORBID = {"extra": "forbid"}


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
    """A search-space file. ``published`` regimes are tried first, then the regime files in ``known``.

    folds: 1 judges on a hold-out (``task.validation``); more is stratified cross-validation over the training set.
    """

    __pydantic_config__ = _FORBID

    study: str
    task: TaskConfig
    base: BatchShape
    budget: Budget
    evaluate: Evaluation
    search: Search
    trials: int
    published: tuple[str, ...] = ("fixed", "mixsize_b", "mixsize_d", "multiscale", "gradual", "stepwise")
    known: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    score: Score = field(default_factory=Score)
    fidelity: Fidelity = field(default_factory=Fidelity)
    folds: int = 1
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
        if self.folds < 1:
            raise ValueError(f"folds must be at least 1, not {self.folds}")
        if self.pruner.name == "wilcoxon" and self.folds < 2:
            raise ValueError("pruner wilcoxon compares folds: set folds to at least 2, for example folds: 5")
        self.training()  # checks that need several sections
        for name in self.published:
            if name not in PUBLISHED:
                raise ValueError(f"published: unknown regime {name!r}; {did_you_mean(name, PUBLISHED)}")
        if len(set(self.published)) < len(self.published):
            raise ValueError(f"published must list different regimes, not {list(self.published)}")

    def training(self, threads: int | None = None, costs: dict[str, float] | None = None) -> TrainingConfig:
        """What every trial shares, beside its regime and what is searched of the recipe."""
        task = replace(self.task, folds=self.folds) if self.folds > 1 else self.task
        return TrainingConfig(
            task,
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

    def recipe_of(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a point."""
        return candidates.with_settings(self.recipe, params)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training runs of a trial that survives."""
        return stages(self.fidelity, self.folds, self.evaluate.reports, self.paired)

    @property
    def paired(self) -> bool:
        """Whether the pruner compares two trials fold by fold."""
        return self.pruner.name == "wilcoxon"

    @property
    def reports_on_the_way(self) -> bool:
        """Whether the first run of a trial is judged on the way."""
        return self.fidelity.kind == "truncate" and not self.paired

    def shapes(self) -> list[BatchShape]:
        """Every batch shape that a candidate of this space can have, the base included."""
        found = {self.base}
        low, high = self.search.splits
        for S in self.search.sizes:
            copies = range(self.base.resized(S, high).D, self.base.resized(S, low).D + 1)
            found |= {BatchShape(S, max(1, round(self.base.pixels / (S**2 * D))), D) for D in copies}
        return sorted(found)

    def digest(self) -> str:
        """Changes when the meaning of a score or a parameter does; not with the number of trials or the resources."""
        # Ranks without synchronised batch norms learn something else.
        resources = Resources(workers=1 if self.recipe.sync_bn else self.resources.workers)
        plain = replace(self, trials=1, resources=resources, known=(), limits=Limits(), device="auto")
        data = essence(plain)
        for key in ("data", "workers"):
            data["task"].pop(key, None)
        # Studies that were begun when truncate was the default stay what they are.
        fidelity = essence(self.fidelity) | {"kind": self.fidelity.kind}
        data["fidelity"] = {k: v for k, v in fidelity.items() if v != "truncate"}
        if not data["fidelity"]:
            del data["fidelity"]
        return digest(data)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """A candidate: the parameters of one trial."""
        return candidates.suggest(self.search, trial)

    def regime(self, params: Mapping[str, Any], name: str = "") -> Regime:
        """The candidate as a regime."""
        return candidates.regime_of(self.search, self.base, params, name)

    def published_params(self, name: str, stride: int) -> dict[str, Any]:
        """The point of the space that is the published regime. Raises ValueError when the space does not hold it."""
        try:
            return self.point(published(name, self.base, sorted(self.search.sizes), stride))
        except ValueError as err:
            raise ValueError(f"published: {err}") from None

    def known_points(self, stride: int) -> dict[str, dict[str, Any]]:
        """The points of the regime files in ``known``, carried to this base, by file.

        Raises InputError for a file that is none, ValueError for a regime that the space does not hold.
        """
        found = {}
        for path in self.known:
            regime, _ = load_regime(path)
            if regime.base != self.base:
                regime = rebased(regime, self.base, stride)
            try:
                found[path] = self.point(regime)
            except ValueError as err:
                raise ValueError(f"known: {path}: {err}") from None
        return found

    def point(self, regime: Regime) -> dict[str, Any]:
        """The point of a regime on this base, with the file's own recipe where settings of it are searched.

        Raises ValueError when the space does not hold it.
        """
        point = candidates.point_of(self.search, regime)
        for name, knob in self.search.recipe.items():
            value = getattr(self.recipe, name)
            if not holds(knob, value):
                raise ValueError(f"recipe.{name} is {value}, which search.recipe.{name} does not hold; add it there")
            point[f"recipe.{name}"] = value
        return point


__all__ = ["NEGLIGIBLE", "Named", "Resources", "Search", "Space"]
