"""Run: one training run from its description, the same for a trial of a search and for a run on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mixtune.errors import InputError
from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.evaluation.score import Score
from mixtune.files import atomic_write, digest
from mixtune.models import registry
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Regime, Schedule
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks.base import Judge, Task, check_shapes, make_task
from mixtune.tasks.config import TaskConfig
from mixtune.training.checkpoint import Checkpoint, non_default_fields
from mixtune.training.loop import Report, train


@dataclass(frozen=True)
class Evaluation:
    """How a network is evaluated: at ``sizes`` in pixels, ``reports`` times, at equal shares of the budget.

    recalibrate: choose batch-norm statistics per size (``bn_recalibration``); absent, the running ones are used.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    sizes: tuple[int, ...]
    reports: int = 4
    recalibrate: Recalibration | None = None

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes must be different positive image sizes, not {list(self.sizes)}")
        if self.reports < 1:
            raise ValueError(f"reports must be at least 1, not {self.reports}")


@dataclass(frozen=True)
class TrainingConfig:
    """Everything but the regime that determines a run's results. On a CPU, equal configurations give equal weights.

    threads: CPU threads of torch (they determine the order of floating-point sums); None takes all cores.
    ranks: processes that share each step; without recipe.sync_bn they determine what a batch norm sees.
    share: of the budget to spend, with the whole schedule compressed into it (a lower fidelity).
    costs: measured cost of a step by shape ("16x32" or "16x32x2"), for a budget in GMACs or seconds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    task: TaskConfig
    budget: Budget
    evaluate: Evaluation
    recipe: Recipe = field(default_factory=Recipe)
    score: Score = field(default_factory=Score)
    seed: int = 0
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    costs: dict[str, float] | None = None
    ranks: int = 1
    share: float = 1.0

    def cost(self, shape: BatchShape) -> float:
        """Return the cost of a step in the budget's unit. Raise ValueError for a shape that was not measured."""
        if self.budget.cost == "pixels":
            return float(shape.pixels)
        costs = self.costs or {}
        if str(shape) not in costs:
            raise ValueError(f"costs: no {self.budget.cost} were measured for a step of {shape}")
        return costs[str(shape)]

    def schedule(self, regime: Regime, n_train: int) -> Schedule:
        """Return every step of the run. Raise ValueError when the regime cannot meet the budget."""
        cost = None if self.budget.spend == "epochs" else self.cost
        return Schedule.build(regime, self.budget, n_train, self.seed, cost, share=self.share)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if self.ranks < 1:
            raise ValueError(f"ranks must be at least 1, not {self.ranks}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], not {self.share!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        self.score.check(self.evaluate.sizes, self.task.metrics)


@dataclass(frozen=True, eq=False)
class Run:
    """A run that is ready to start: its task, network (trained in place) and schedule."""

    task: Task[Any]
    network: nn.Module
    schedule: Schedule
    config: TrainingConfig
    recipe: Recipe
    teacher: nn.Module | None = None
    judge: Judge = "validation"

    @classmethod
    def prepare(
        cls, regime: Regime, config: TrainingConfig, judge: Judge = "validation", group: ProcessGroup = SINGLE_PROCESS
    ) -> Run:
        """Load the data, check the regime against it and build network and schedule.

        group: of the processes that train together, each of which calls this and then ``reports``. Raise InputError for
        missing data, a size off the network's stride, a batch larger than the data set, one with fewer images than
        processes, or a budget below one step.
        """
        config = replace(config, ranks=group.world_size)
        torch.set_num_threads(config.threads or group.cpus_per_process)
        try:
            group.shard.check(regime.shapes)
        except ValueError as err:
            raise InputError(f"regime {regime.name or regime}: {err}") from None
        with group.local_main_first():
            task = make_task(config.task, judge, config.device, config.evaluate.recalibrate, group)
        wanted = {f"regime {regime.name or regime}": regime.sizes, "evaluate.sizes": config.evaluate.sizes}
        task.check_sizes(wanted)
        try:
            check_shapes(regime.shapes, config.task, task.n_train)
            schedule = config.schedule(regime, task.n_train)
        except ValueError as err:
            raise InputError(f"regime {regime.name or regime}: {err}") from None
        recipe = config.recipe.scaled(regime.base.B)
        try:
            task.check_recipe(config.task, recipe)
            network = task.network(config.seed, recipe.dropout, recipe.drop_path)
            if recipe.zero_gamma is not None:
                registry.set_zero_gamma(network, recipe.zero_gamma)
            registry.layer_groups(network, recipe.groups)
            for S in (min(*regime.sizes, *config.evaluate.sizes), max(*regime.sizes, *config.evaluate.sizes)):
                task.check_size(S)
        except ValueError as err:
            raise InputError(f"{config.task.network}: {err}") from None
        return cls(task, network, schedule, config, recipe, task.teacher(recipe), judge)

    def reports(
        self,
        checkpoint: Path | None = None,
        every: float = 300.0,
        on_step: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] = lambda _: None,
        judged: Sequence[int] | None = None,
    ) -> Iterator[Report]:
        """Train; yield a report at each report point. The network is trained when the iterator ends.

        checkpoint: a file to write at every report and ``every`` so many seconds; from an existing one the run goes on
        and yields its earlier reports again. on_step, say, judged: see ``loop.train``. Raise InputError for a damaged
        file or one of another run.
        """
        c = self.config
        kept = Checkpoint(checkpoint, c.task.network, self.identity, every) if checkpoint else None
        sizes, reports = c.evaluate.sizes, c.evaluate.reports
        return train(
            self.task,
            self.network,
            self.schedule,
            self.recipe,
            sizes,
            reports,
            c.seed,
            kept,
            on_step,
            self.teacher,
            say,
            judged,
        )

    @property
    def identity(self) -> str:
        """A digest of regime, task, recipe, evaluation, seed and judge: equal for runs with the same results."""
        settings = non_default_fields(self.config)
        for section, key in (("task", "data"), ("task", "workers")):
            settings[section].pop(key, None)
        for key in ("threads", "device", "score", "costs"):
            settings.pop(key, None)
        if self.recipe.sync_bn:
            settings.pop("ranks", None)
        shapes = [str(s) for s in self.schedule.shapes]
        return digest(settings, shapes, self.schedule.index.tolist(), self.task.n_train, self.judge)

    def save_weights(self, path: Path) -> None:
        """Write the network's parameters and buffers as safetensors, in which nothing can execute.

        Raise InputError when the file cannot be written; an earlier one is intact then.
        """
        from safetensors.torch import save

        state = {k: v.contiguous() for k, v in self.network.state_dict().items()}
        atomic_write(path, save(state, metadata=self.task.weights_header()))
