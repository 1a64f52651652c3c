"""Space: a search-space file: the task and budget of every trial, what is searched (``candidates``), and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixtune.errors import did_you_mean
from mixtune.regime import PUBLISHED, BatchShape, Budget, Regime, published
from mixtune.study import candidates
from mixtune.study.candidates import NEGLIGIBLE, Search
from mixtune.study.fidelity import Fidelity, Stage, stages
from mixtune.study.knobs import Suggests, holds
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

    gpus defaults to 1 where there are GPUs, else 0; cpus to an equal part of the cores, one trial per GPU or per core.
    """

    __pydantic_config__ = _FORBID

    cpus: int | None = None
    gpus: float | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"cpus must be at least 1, not {self.cpus}")
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            raise ValueError(f"gpus must be a share in [0, 1] or a whole number, not {self.gpus}")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once must be at least 1, not {self.at_once}")


@dataclass(frozen=True)
class Confirm:
    """What is trained again when the search is over, so that the winner is not the luckiest.

    The best ``leaders`` searched regimes and the best published one, with ``replicates`` other seeds each, judged as in
    the search: their mean decides the winner. Then the winner and all published regimes with ``final`` seeds each, on
    the whole training set, judged once on the test set. 0 leaves either out.
    """

    __pydantic_config__ = _FORBID

    leaders: int = 3
    replicates: int = 3
    final: int = 3

    def __post_init__(self) -> None:
        if self.leaders < 1 or self.replicates < 0 or self.final < 0:
            raise ValueError("leaders must be at least 1, replicates and final at least 0")


@dataclass(frozen=True)
class Space:
    """A search-space file. ``published`` regimes are tried first, then the regime files in ``known``.

    folds: 1 judges on a hold-out (``task.validation``); more is stratified cross-validation over the training set.
    objectives: of a study with several, in order: the score, the mean calibration error, the training compute.
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
    objectives: tuple[Literal["score", "calibration", "compute"], ...] = ("score",)
    fidelity: Fidelity = field(default_factory=Fidelity)
    folds: int = 1
    sampler: Named = Named("tpe")
    pruner: Named = Named("halving")
    confirm: Confirm = field(default_factory=Confirm)
    resources: Resources = field(default_factory=Resources)
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
        if not self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives must be different ones, not {list(self.objectives)}")
        if "score" not in self.objectives:
            raise ValueError("objectives must hold score, which names the winner")
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
            task, self.budget, self.evaluate, self.recipe, self.score, self.seed, threads, self.device, costs
        )

    def recipe_of(self, params: Mapping[str, Any]) -> Recipe:
        """The recipe of a point."""
        return candidates.with_settings(self.recipe, params)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The training runs of a trial that survives."""
        fidelity = self.fidelity if len(self.objectives) == 1 else Fidelity(rungs=1)
        return stages(fidelity, self.folds, self.evaluate.reports, self.pruner.name == "wilcoxon")

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
        plain = replace(self, trials=1, resources=Resources(), confirm=Confirm(), known=(), device="auto")
        data = essence(plain)
        for key in ("data", "workers"):
            data["task"].pop(key, None)
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


__all__ = ["NEGLIGIBLE", "Confirm", "Named", "Resources", "Search", "Space"]
