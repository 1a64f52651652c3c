"""Space: a search-space file: the task and budget of every trial, what is searched (``candidates``), and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mixtune.errors import did_you_mean
from mixtune.evaluation.curve import Curve
from mixtune.evaluation.metrics import Direction
from mixtune.evaluation.score import Score, direction, objective
from mixtune.files import digest
from mixtune.optim.recipe import Recipe
from mixtune.regime import PUBLISHED, BatchShape, Budget, Regime, published
from mixtune.regime.files import load_regime
from mixtune.regime.rebase import rebased
from mixtune.search import candidates, grid
from mixtune.search.candidates import NEGLIGIBLE, Search
from mixtune.search.domains import Suggests, contains_value
from mixtune.search.fidelity import Fidelity, Stage, stages
from mixtune.search.final import Final
from mixtune.search.resources import Resources
from mixtune.search.timeouts import Timeouts
from mixtune.tasks.config import TaskConfig
from mixtune.training.checkpoint import non_default_fields
from mixtune.training.run import Evaluation, TrainingConfig

_FORBID = {"extra": "forbid"}


@dataclass(frozen=True)
class Named:
    """A sampler or pruner by name, with the options of Optuna's class."""

    __pydantic_config__ = _FORBID

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """A search-space file. ``published`` regimes are tried first, then the regime files in ``known``.

    proxy: what differs on a cheaper task that stands for this one (``study.proxy``), in the form of this file.
    folds: 1 judges on a hold-out (``task.validation``); more is stratified cross-validation over the training set.
    final: what is trained again once the search is over (``final``); absent, nothing is. pruner: halving, or none where
    there are several objectives, because nobody knows how to prune by those.
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
    pruner: Named | None = None
    resources: Resources = field(default_factory=Resources)
    limits: Timeouts = field(default_factory=Timeouts)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    proxy: dict[str, Any] = field(default_factory=dict)
    final: Final | None = None
    objectives: tuple[str, ...] = ("score",)

    def __post_init__(self) -> None:
        if not self.study or not all(c.isalnum() or c in "-_." for c in self.study) or self.study.startswith("."):
            raise ValueError(f"study names the folder: letters, digits, '-', '_' and '.', not {self.study!r}")
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, not {self.trials}")
        if self.folds < 1:
            raise ValueError(f"folds must be at least 1, not {self.folds}")
        if self.resources.folds_at_once > self.folds:
            raise ValueError(
                f"resources.folds_at_once is {self.resources.folds_at_once}, more than folds, {self.folds}: "
                "raise folds, or leave it out to train folds in turn"
            )
        if not self.objectives or len(set(self.objectives)) < len(self.objectives) or "score" not in self.objectives:
            raise ValueError(f"objectives must be different ones, score among them, not {list(self.objectives)}")
        try:
            _ = self.directions
        except ValueError as err:
            raise ValueError(f"objectives: {err}") from None
        if self.several and self.pruning.name != "none":
            raise ValueError(
                f"pruner {self.pruning.name} needs one objective, not {len(self.objectives)}; leave it out"
            )
        if self.several and self.sampler.name in ("cmaes", "gp"):
            raise ValueError(f"sampler {self.sampler.name} needs one objective; use tpe or nsga2")
        if self.sampler.name == "grid":
            most = grid.grid_size(self.search) + len(self.published) + len(self.known)
            if self.trials > most:
                raise ValueError(f"sampler grid: there are {most} regimes to try, so trials is at most {most}")
        if self.pruning.name == "wilcoxon" and self.folds < 2:
            raise ValueError("pruner wilcoxon compares folds: set folds to at least 2, for example folds: 5")
        self.training()  # checks that need several sections
        for name in self.published:
            if name not in PUBLISHED:
                raise ValueError(f"published: unknown regime {name!r}; {did_you_mean(name, PUBLISHED)}")
        if len(set(self.published)) < len(self.published):
            raise ValueError(f"published must list different regimes, not {list(self.published)}")

    @property
    def to_the_end(self) -> tuple[str, ...]:
        """The published regimes that may not be pruned: none where ``final`` trains them with fresh seeds anyway."""
        return () if self.final is not None and self.final.replicates else self.published

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
        # Without pruning every trial goes to the end, so that rungs would only add to its cost.
        fidelity = replace(self.fidelity, rungs=1) if self.several else self.fidelity
        return stages(fidelity, self.folds, self.evaluate.reports, self.paired)

    @property
    def several(self) -> bool:
        """Whether there are several objectives."""
        return len(self.objectives) > 1

    @property
    def pruning(self) -> Named:
        """The pruner, also where the file names none."""
        return self.pruner or Named("none" if self.several else "halving")

    @property
    def aim(self) -> str:
        """What is maximised, or which objectives there are."""
        if not self.several:
            return f"score: {self.score.describe(self.task.metrics)}"
        each = ", ".join(f"{way} {name}" for way, name in zip(self.directions, self.objectives, strict=True))
        return f"objectives: {each} (score: {self.score.describe(self.task.metrics)}); several run without pruning"

    @property
    def directions(self) -> list[Direction]:
        """Return which way every objective is better, in order. Raise ValueError where one is no objective."""
        return [direction(name, self.task.metrics) for name in self.objectives]

    def values(self, curve: Curve) -> list[float]:
        """Every objective's value, in order."""
        return [objective(name, curve, self.score) for name in self.objectives]

    @property
    def paired(self) -> bool:
        """Whether the pruner compares two trials fold by fold."""
        return self.pruning.name == "wilcoxon"

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
        # One that is named and is the default is the same space.
        pruner = None if self.pruner == Named("halving") else self.pruner
        plain = replace(self, pruner=pruner, trials=1, resources=resources, known=(), limits=Timeouts(), device="auto")
        plain = replace(plain, final=None, proxy={})
        data = non_default_fields(plain)
        for key in ("data", "workers"):
            data["task"].pop(key, None)
        # Studies that were begun when truncate was the default stay what they are.
        fidelity = non_default_fields(self.fidelity) | {"kind": self.fidelity.kind}
        data["fidelity"] = {k: v for k, v in fidelity.items() if v != "truncate"}
        if not data["fidelity"]:
            del data["fidelity"]
        if self.score.measure == "at_size":  # two names for one score
            data["score"]["measure"] = "top1"
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
            regime, trained = load_regime(path)
            if regime.base != self.base:
                regime = rebased(regime, self.base, stride)
            try:
                found[path] = self.point(regime, trained.get("recipe", {}))
            except ValueError as err:
                raise ValueError(f"known: {path}: {err}") from None
        return found

    def point(self, regime: Regime, trained: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The point of a regime on this base; settings of the recipe that are searched are those it was ``trained``
        with, where the space holds them, else this file's own.

        Raises ValueError when the space does not hold it.
        """
        point = candidates.point_of(self.search, regime)
        for name, domain in self.search.recipe.items():
            value = (trained or {}).get(name)
            if value is None or not contains_value(domain, value):
                value = getattr(self.recipe, name)
            if not contains_value(domain, value):
                raise ValueError(f"recipe.{name} is {value}, which search.recipe.{name} does not hold; add it there")
            point[f"recipe.{name}"] = value
        return point


__all__ = ["NEGLIGIBLE", "Named", "Resources", "Search", "Space"]
