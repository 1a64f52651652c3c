"""Say in lines for people what a study would try, what was measured, and what the study takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixtune.cli import format_duration
from mixtune.config import parse, read_yaml
from mixtune.errors import InputError
from mixtune.profiling.checks import budget_in_pixels, example_points
from mixtune.profiling.concurrency import Concurrency, Node, unused_gpus
from mixtune.profiling.forecast import Forecast, search_runs
from mixtune.profiling.resource_profile import ResourceProfile, gib, three_digits
from mixtune.regime import Schedule
from mixtune.search.space import Space


def dry_run_table(space: Space, n_train: int, sampled: int = 4, remark: str = "") -> str:
    """Return the published regimes and a few sampled ones: steps, epochs, cost against the base, dearest step.

    remark: on the number of images (``expected_images``).
    """
    budget = budget_in_pixels(space)
    lines = [
        f"{n_train:,} training images{remark}; base {space.base}, {space.budget}; equal {space.budget.spend}",
        "",
        f"{'regime':<11} {'steps':>9} {'epochs':>7} {'views':>8} {'compute':>8} {'peak':>14}  shapes SxBxD, % of steps",
    ]
    total = budget.epochs * n_train * space.base.pixels / space.base.B
    for name, params in example_points(space, sampled).items():
        regime = space.regime(params, name)
        try:
            schedule = Schedule.build(regime, budget, n_train, space.seed)
        except ValueError as err:
            lines.append(f"{name:<11} would be refused: {err}")
            continue
        dearest = max(schedule.shapes, key=lambda shape: shape.pixels)
        peak = f"{dearest} {dearest.pixels / space.base.pixels:.2f}x"
        lines.append(
            f"{name:<11} {len(schedule):>9,} {schedule.samples / n_train:>7.1f} {schedule.views / n_train:>7.1f}n "
            f"{schedule.pixels / total:>7.3f}x {peak:>14}  {regime}"
        )
    lines += ["", "epochs: passes over the training images; views: images through the network, n per training image;"]
    lines += ["compute: pixels of the whole run against the base; peak: the dearest step against a base step"]
    unpruned, expected = search_runs(space)
    runs = f"{unpruned:.3g} runs of the whole budget" + " if nothing is pruned" * (space.pruning.name != "none")
    if expected is not None and expected < unpruned:
        runs = f"{expected:.3g} runs of the whole budget if {space.pruning.name} keeps its share, {runs}"
    lines.append(f"search: {space.trials} trials, in all the compute of {runs}")
    if space.final is not None:
        lines.append(space.final.cost(len(space.published), space.folds, space.trials))
    if space.budget.amount is not None:
        lines.append(f"shown for one epoch of the base; the search spends {space.budget}")
    if space.budget.cost != "pixels":
        lines.append(
            f"counted in pixels here; the search first measures the {space.budget.cost} of a step of every shape"
        )
    return "\n".join(lines)


def forecast_lines(
    space: Space, forecast: Forecast, profile: ResourceProfile, free_disk: float, nodes: Sequence[Node]
) -> list[str]:
    """Return what was measured and what the study takes of these machines."""
    concurrency = forecast.concurrency
    shapes = [shape for shape in space.shapes() if profile.memory(shape) <= profile.available_memory]
    largest, dearest = max(shapes, key=profile.memory), max(shapes, key=profile.step_seconds)
    times = [f"{1000 * profile.step_seconds(shape):.3g} ms at {shape}" for shape in (space.base, dearest)]
    lines = [
        f"measured  {profile.measured_on}, on {profile.day}",
        f"memory    {gib(profile.memory(largest))} at the largest step, {largest}; a trial has "
        f"{gib(profile.available_memory)}",
        f"step      {times[0]}" + f"; the dearest takes {times[1]}" * (dearest != space.base),
        f"plan      {forecast.trials} trials, {concurrency}",
    ]
    if profile.packing:
        speeds = ", ".join(f"{count}: {speed:,.0f}" for count, speed in profile.packing.items())
        lines.append(f"          {concurrency.pack} trials share a GPU; steps per second by how many do: {speeds}")
    if unused := unused_gpus(concurrency, nodes):
        lines.append(f"          {unused}")
    if refused := forecast.refused:
        lines.append(f"          {len(refused)} of {forecast.candidates} candidates cannot be trained ({refused[0]})")
    hours = f"{occupied(concurrency, forecast.hours, forecast.longest_hours)} if nothing is pruned"
    if forecast.expected_hours is not None and forecast.expected_hours < forecast.hours:
        expected = occupied(concurrency, forecast.expected_hours, forecast.longest_hours)
        hours = f"{expected} if {space.pruning.name} keeps its share; {hours}"
    share = f"{100 * forecast.step_share:.0f} % of it steps, the rest evaluation and starting"
    lines.append(f"hours     {hours} ({share})")
    if space.final is not None:
        runs = sum(space.final.runs(len(space.published), space.folds))
        final_hours = runs * forecast.hours / (forecast.trials * space.folds)
        lines.append(f"final     {runs} runs of the whole budget more, {occupied(concurrency, final_hours)}")
    lines.append(f"disk      {gib(forecast.disk)} of weights and checkpoints at most; {gib(free_disk)} free")
    return lines


def occupied(concurrency: Concurrency, hours: float, longest: float = 0.0) -> str:
    """Return hours of trials as hours of the devices that they occupy, and how long they take by the clock."""
    return _sum_of_hours([(concurrency, hours, longest)])


def total_line(forecasts: Sequence[Forecast]) -> str:
    """Return the hours of studies that follow one another."""
    unpruned = _sum_of_hours([(f.concurrency, f.hours, f.longest_hours) for f in forecasts])
    expected = _sum_of_hours([(f.concurrency, _expected(f), f.longest_hours) for f in forecasts])
    text = unpruned if expected == unpruned else f"{expected} if the pruner keeps its share; {unpruned}"
    return f"in all    {text} if nothing is pruned"


def compare_with_forecast(path: Path, hours: float) -> str:
    """Return what the trials of a finished study took against the forecast in a file; empty where there is none."""
    try:
        forecast = parse(read_yaml(path), Forecast, path)
    except InputError:  # written by an earlier version
        return ""
    took = occupied(forecast.concurrency, hours)
    return f"the trials took {took}, {100 * (hours / _expected(forecast) - 1):+.0f} % against the plan"


def _expected(forecast: Forecast) -> float:
    return forecast.hours if forecast.expected_hours is None else forecast.expected_hours


def _sum_of_hours(parts: Sequence[tuple[Concurrency, float, float]]) -> str:
    """Return the sum over studies, each with its trials' hours and those of the longest trial."""
    amounts: dict[str, float] = {}
    clock = 0.0
    for concurrency, hours, longest in parts:
        unit, devices = ("GPU-hours", concurrency.gpus) if concurrency.gpus else ("core-hours", concurrency.cpus)
        amounts[unit] = amounts.get(unit, 0.0) + hours * concurrency.processes * devices / concurrency.pack
        clock += max(longest, hours / concurrency.at_once)
    text = " and ".join(f"{three_digits(amount)} {unit}" for unit, amount in amounts.items())
    return f"{text} in {format_duration(3600 * clock)}"
