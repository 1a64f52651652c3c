"""The training loop: a generator of reports that knows neither Ray nor Optuna nor MLflow.

So a trial of a search and a run on its own are the same code and, from the same seed, the same network.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

CLOCK_STEPS = 10  # steps between two looks at the first rank's clock


class TrainingDivergedError(TrainingError):
    """The loss is not finite any more."""


@dataclass(frozen=True)
class Report:
    """The state of a run at one of its report points.

    number: 1 to the number of reports; step: steps done; progress: share of the budget spent; loss: mean training loss
    since the last report; lr: of the last step; views_per_second: training only; seconds: since the start, evaluation
    included; curve: held-out results at every evaluation size; findings: what is odd about the data, counted by kind.
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


@torch.no_grad()
def _norm(network: nn.Module) -> Tensor:
    """Of all weights and statistics together."""
    return get_total_norm([t for t in network.state_dict().values() if t.is_floating_point()])


def report_steps(schedule: Schedule, reports: int) -> list[int]:
    """After which steps to report: equal shares of the budget lie between reports, the last is the final step."""
    after = np.append(schedule.progress[1:], 1.0)
    ends = [int(np.searchsorted(after, k / reports - 1e-9)) + 1 for k in range(1, reports)]
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
    """Train ``network`` in place through the whole schedule, evaluating at ``sizes`` at each of ``reports`` points.

    Where ``checkpoint`` exists the run goes on from it: the reports made so far are yielded again, so that the
    sequence is that of an unbroken run, and on a CPU the weights are too, to the bit. ``on_step(step, views)`` is
    called after every step, with the steps done and the images that one took. ``teacher``: for distillation.
    ``say`` is told how the steps are computed.
    Where the task has several ranks, each calls this, all get the same reports and the first writes the checkpoint.
    ``judged``: the numbers of the reports to make, the last among them, where not all are wanted.
    Raises TrainingDivergedError when the mean loss of a stretch, or a weight at its end, is not finite.
    """
    B = np.array([s.B for s in schedule.shapes])[schedule.index]
    before = schedule.progress
    rates = recipe.learning_rates(before, B)
    group = task.group
    engine = Engine(task, network, recipe, seed, teacher)
    points = report_steps(schedule, reports)
    numbers = {step: i for i, step in enumerate(points, start=1) if judged is None or i in judged}
    progress = np.append(before[1:], 1.0)

    start, steps, earlier = 0, 0, 0.0  # earlier: seconds before this process
    total = torch.zeros((), device=engine.device)  # summed on the device: nothing is read back between reports
    done: list[Report] = []
    state = group.broadcast_state(checkpoint.load) if checkpoint else None
    if state:
        engine.load_state_dict(state["engine"])
        start, steps, earlier = (state[k] for k in ("step", "steps", "seconds"))
        if group.is_main:  # it is summed over ranks
            total.copy_(state["total"])
        task.file_issues.merge(state.get("found", ()))
        done = [Report(**(r | {"curve": Curve.from_rows(r["curve"], task.metrics)})) for r in state["reports"]]
        if start == len(schedule):
            engine.finish()
        yield from done

    began = mark = time.perf_counter()

    def save(step: int, total: Tensor) -> None:
        if checkpoint and group.is_main:
            made = [dataclasses.asdict(r) | {"curve": r.curve.rows()} for r in done]
            spent = earlier + time.perf_counter() - began
            position = {"step": step, "steps": steps, "seconds": spent, "total": total.cpu()}
            found = task.file_issues.rows()
            checkpoint.save({"engine": engine.state_dict(), "reports": made, "found": found, **position})

    trained = 0  # views since the clock was last started
    network.train()
    if start < len(schedule):
        with oom.convert_out_of_memory(
            lambda: oom.step_too_large(max(schedule.shapes, key=lambda s: s.pixels), [], "captured")
        ):
            engine.prepare(schedule, before, start, say)

    def too_large() -> str:
        fit = {schedule.shapes[i] for i in schedule.index[: step - 1].tolist()} - {shape}
        return oom.step_too_large(shape, sorted(fit), f"step {step} of {len(schedule)}")

    batches = engine.batches(schedule, seed, start)
    for step in range(start + 1, len(schedule) + 1):
        shape = schedule.shapes[schedule.index[step - 1]]
        with oom.convert_out_of_memory(too_large):
            total += engine.train_on(next(batches), float(rates[step - 1]), step - 1, float(before[step - 1]), shape)
        steps, trained = steps + 1, trained + shape.views
        if on_step:
            on_step(step, shape.views)
        # Clocks differ between processes: they ask the first one now and then.
        asks = not group.is_distributed or step % CLOCK_STEPS == 0
        due = checkpoint is not None and asks and group.broadcast_flag(checkpoint.due)

        if step in numbers or due:
            engine.settle()
            summed = group.all_reduce(total.clone())
            mean = float(summed) / steps
            # The loss of a step is from before its update: that a checkpoint never replaces good weights by bad ones.
            for what, value in (("training loss", mean), ("weights' norm", float(_norm(engine.judged)))):
                if not math.isfinite(value):
                    raise TrainingDivergedError(
                        f"the {what} became {value} by step {step} of {len(schedule)} "
                        f"(lr {rates[step - 1]:.3g}); a lower recipe.lr or a longer recipe.warmup would help"
                    )
        if step in numbers:
            speed = trained / (time.perf_counter() - mark)
            curve = task.evaluate(engine.judged, sizes)
            seconds = earlier + time.perf_counter() - began
            place, lr = float(progress[step - 1]), float(rates[step - 1])
            # A run that went on from a checkpoint need not meet every file again.
            found = collections.Counter(done[-1].findings if done else {}) | collections.Counter(task.issue_counts())
            done.append(Report(numbers[step], step, place, mean, lr, speed, seconds, curve, dict(found)))
            total.zero_()
            steps = 0
            save(step, total)
            if step == len(schedule):
                engine.finish()
            yield done[-1]
            mark, trained = time.perf_counter(), 0
        elif due:
            save(step, summed)
