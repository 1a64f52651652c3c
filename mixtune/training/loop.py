"""Training loop: a generator of reports that knows neither Ray nor Optuna nor MLflow.

A trial of a search and a run on its own are the same code; on a CPU the same seed gives them the same network.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mixtune.errors import TrainingError
from mixtune.evaluation.curve import Curve
from mixtune.optim.recipe import Recipe
from mixtune.regime import Schedule
from mixtune.runtime import oom
from mixtune.tasks.base import Task
from mixtune.training.checkpoint import Checkpoint
from mixtune.training.step import Engine

CLOCK_STEPS = 10  # steps between two questions of all processes to the first one's clock


class TrainingDivergedError(TrainingError):
    """The loss or the weights are no longer finite."""


@dataclass(frozen=True)
class Report:
    """The state of a run at one of its report points.

    number: 1 to the number of reports; step: steps done; progress: share of the budget spent; loss: mean training loss
    since the last report; lr: of the last step; views_per_second: of training alone; seconds: since the start, with
    evaluation; curve: held-out results at every evaluation size; findings: number of image files that were odd, by
    kind.
    """

    number: int
    step: int
    progress: float
    loss: float
    lr: float
    views_per_second: float
    seconds: float
    curve: Curve
    findings: dict[str, int] = field(default_factory=dict)


def report_steps(schedule: Schedule, reports: int) -> list[int]:
    """Return after which steps to report: at equal shares of the budget, the last after the final step."""
    progress_after = np.append(schedule.progress[1:], 1.0)
    ends = [int(np.searchsorted(progress_after, k / reports - 1e-9)) + 1 for k in range(1, reports)]
    return sorted({*ends, len(schedule)})


def train(
    task: Task[Any],
    network: nn.Module,
    schedule: Schedule,
    recipe: Recipe,
    sizes: Sequence[int],
    reports: int,
    seed: int,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[int, int], None] | None = None,
    teacher: nn.Module | None = None,
    say: Callable[[str], None] = lambda _: None,
    judged: Sequence[int] | None = None,
) -> Iterator[Report]:
    """Train ``network`` in place through the whole schedule; yield a report at each of ``reports`` points.

    sizes: to evaluate at. judged: numbers of the reports to make, with the last one, where not all are wanted. teacher:
    for distillation. on_step(step, views): called after every step, with the steps done and the views of this one.
    say: called with how steps are computed.
    From an existing ``checkpoint`` the run goes on: it yields the reports before that again, so that the sequence is
    that of an unbroken run; so are the weights, on a CPU to the bit. In a group of several processes each calls this,
    all yield the same reports, and the first one writes the checkpoint.
    Raise TrainingDivergedError when the mean loss since the last report, or a weight, is not finite.
    """
    engine, group, n_steps = Engine(task, network, recipe, seed, teacher), task.group, len(schedule)
    B = np.array([shape.B for shape in schedule.shapes])[schedule.index]
    progress = np.append(schedule.progress, 1.0)  # share of the budget spent before each step, and after the last
    learning_rates = recipe.learning_rates(schedule.progress, B)
    points = enumerate(report_steps(schedule, reports), start=1)
    report_numbers = {step: number for number, step in points if judged is None or number in judged}

    done: list[Report] = []
    start, steps_since_report, seconds_before = 0, 0, 0.0  # seconds_before: in earlier processes of this run
    loss_sum = torch.zeros((), device=engine.device)  # of this process's parts since the last report
    if checkpoint and (state := group.broadcast_state(checkpoint.load)):
        engine.load_state_dict(state["engine"])
        start, steps_since_report, seconds_before = (state[key] for key in ("step", "steps", "seconds"))
        if group.is_main:  # the saved sum is that of all processes
            loss_sum.copy_(state["total"])
        task.file_issues.merge(state.get("found", ()))
        done = [Report(**(row | {"curve": Curve.from_rows(row["curve"], task.metrics)})) for row in state["reports"]]
        if start == n_steps:
            engine.adopt_average()
        yield from done

    start_time = time.perf_counter()

    def seconds() -> float:
        return seconds_before + time.perf_counter() - start_time

    def save(step: int, total_loss: Tensor) -> None:
        if checkpoint and group.is_main:
            checkpoint.save(
                {
                    "engine": engine.state_dict(),
                    "reports": [asdict(report) | {"curve": report.curve.rows()} for report in done],
                    "found": task.file_issues.rows(),
                    "step": step,
                    "steps": steps_since_report,
                    "seconds": seconds(),
                    "total": total_loss.cpu(),
                }
            )

    def too_large() -> str:
        fitting = {schedule.shapes[i] for i in schedule.index[: step - 1].tolist()} - {shape}
        return oom.step_too_large(shape, sorted(fitting), f"step {step} of {n_steps}")

    network.train()
    if start < n_steps:
        largest = max(schedule.shapes, key=lambda s: s.pixels)
        with oom.convert_out_of_memory(lambda: oom.step_too_large(largest, [], "captured")):
            engine.prepare(schedule, schedule.progress, start, say)
    batches = engine.batches(schedule, seed, start)
    views, clock = 0, time.perf_counter()  # of training since the last report, or since the start
    for step in range(start + 1, n_steps + 1):
        shape, lr = schedule.shapes[schedule.index[step - 1]], float(learning_rates[step - 1])
        with oom.convert_out_of_memory(too_large):
            loss_sum += engine.step(next(batches), lr, step - 1, float(progress[step - 1]), shape)
        steps_since_report, views = steps_since_report + 1, views + shape.views
        if on_step:
            on_step(step, shape.views)

        asks_clock = not group.is_distributed or step % CLOCK_STEPS == 0
        checkpoint_due = checkpoint is not None and asks_clock and group.broadcast_flag(checkpoint.due)
        if step not in report_numbers and not checkpoint_due:
            continue

        # Only from here on are values read from the device.
        engine.average_buffers()
        total_loss = group.all_reduce(loss_sum.clone())
        mean_loss = float(total_loss) / steps_since_report
        # The weights too, because a loss is from before its step's update: a checkpoint must not hold diverged weights.
        _check_finite("training loss", mean_loss, step, n_steps, lr)
        _check_finite("weights' norm", float(_norm(engine.evaluated_network)), step, n_steps, lr)
        if step not in report_numbers:
            save(step, total_loss)
            continue

        views_per_second = views / (time.perf_counter() - clock)
        curve = task.evaluate(engine.evaluated_network, sizes)
        # A resumed run need not read every file again: the larger count of each kind.
        issues = Counter(done[-1].findings if done else {}) | Counter(task.issue_counts())
        number, spent = report_numbers[step], float(progress[step])
        done.append(Report(number, step, spent, mean_loss, lr, views_per_second, seconds(), curve, dict(issues)))
        loss_sum.zero_()
        steps_since_report = 0
        save(step, loss_sum)
        if step == n_steps:
            engine.adopt_average()
        yield done[-1]
        views, clock = 0, time.perf_counter()


@torch.no_grad()
def _norm(network: nn.Module) -> Tensor:
    """Return the norm of all weights and statistics together."""
    return get_total_norm([t for t in network.state_dict().values() if t.is_floating_point()])


def _check_finite(name: str, value: float, step: int, n_steps: int, lr: float) -> None:
    if not math.isfinite(value):
        raise TrainingDivergedError(
            f"the {name} became {value} by step {step} of {n_steps} (lr {lr:.3g}); "
            "a lower recipe.lr or a longer recipe.warmup would help"
        )
