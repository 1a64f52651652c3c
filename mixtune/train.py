"""Train one regime on its own: python -m mixtune.train --regime FILE

A regime file that a search wrote knows how it was trained, so it needs nothing else and gives the trial's score again;
where that is a mean over folds, all of them are trained (--set task.fold=2 trains one).
Any other regime file takes the task, budget and recipe of a search space: --space search_spaces/cifar10.yaml.
On several GPUs: torchrun --nproc-per-node 8 -m mixtune.train --regime FILE
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtune.cli import Parser, ProgressBar, parse_args, relative_to_cwd, run_command
from mixtune.config import override, parse, read_yaml
from mixtune.errors import InputError
from mixtune.regime.files import load_regime

if TYPE_CHECKING:
    from mixtune.runtime.process_group import ProcessGroup
    from mixtune.tasks.config import TaskConfig
    from mixtune.training.loop import Report
    from mixtune.training.run import Run

CHECKPOINT = "checkpoint.pt"
# What a search space says of each run, beside what it searches.
SECTIONS = ("task", "budget", "recipe", "evaluate", "score", "seed", "device")


def parser() -> Parser:
    """The command's flags."""
    p = Parser("mixtune.train", __doc__.split("\n")[0])
    p.add_argument("--regime", required=True, metavar="FILE", help="regime file (YAML)")
    p.add_argument("--space", metavar="FILE", help="take task, budget, recipe and evaluation from this search space")
    p.add_argument("--seed", type=int, help="first seed (default: the one in the file, else 0)")
    p.add_argument("--seeds", type=int, default=1, metavar="N", help="train N times, and give mean and deviation")
    p.add_argument(
        "--test",
        action="store_true",
        help="train on the whole training set and evaluate on the test set (default: hold out the validation part)",
    )
    p.add_argument(
        "--out",
        metavar="FOLDER",
        help="write weights, curve, regime and a checkpoint here; the same command again goes on from that",
    )
    p.add_argument("--find-rate", action="store_true", help="only try learning rates, and say which one to take")
    p.add_set()
    return p


def settings(file: Mapping[str, Any], space: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The sections that describe a run, from a regime file's ``training`` or from a search space."""
    sections = {k: v for k, v in read_yaml(space).items() if k in SECTIONS} if space else dict(file)
    return override(sections, assignments)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, print; under torchrun together with the other ranks, of which the first prints and writes."""
    args = parse_args(parser(), argv)

    from mixtune.runtime.rendezvous import torchrun_group

    with torchrun_group() as group, contextlib.redirect_stdout(sys.stdout if group.is_main else io.StringIO()):
        return _train(args, group)


def _train(args: argparse.Namespace, group: ProcessGroup) -> int:
    regime, trained = load_regime(args.regime)
    if not args.space and not trained:
        raise InputError(
            f"{args.regime}: has no training section (no search wrote it); say what to train with --space FILE"
        )
    if args.seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {args.seeds}")
    data = settings(trained, args.space, args.assignments)
    if args.seed is not None:
        data["seed"] = args.seed

    import torch

    from mixtune.evaluation.curve import mean_curve
    from mixtune.training.fine_tuning import find_rate
    from mixtune.training.run import Run, TrainingConfig
    from mixtune.training.run_folder import save_run

    source = args.space or f"{args.regime}: training"
    first = parse(data, TrainingConfig, source)
    world = group.world_size
    if first.device != "cpu" and 0 < torch.cuda.device_count() < group.local_world_size:
        raise InputError(
            f"torchrun --nproc-per-node {group.local_world_size}: each rank needs a GPU of its own, and there are "
            f"{torch.cuda.device_count()}; start as many ranks, or train on CPUs with --set device=cpu"
        )
    out = Path(args.out) if args.out else None
    if out:
        _writable(out)
    print(f"regime   {regime}")
    if first.ranks != world and not first.recipe.sync_bn and not args.space:
        print(
            f"note     trained on {first.ranks} rank{'s' * (first.ranks > 1)}, whose batch norms saw their own part of "
            f"each step; on {world} the results differ (they would not with recipe.sync_bn)"
        )
    # A trial of a study with folds was judged on all of them.
    chosen = args.test or args.find_rate or any(a.startswith("task.fold=") for a in args.assignments)
    folds = [first.task.fold] if chosen else list(range(first.task.folds))
    by_size: dict[int, list[float]] = {}
    for seed in range(first.seed, first.seed + args.seeds):
        curves = []
        for fold in folds:
            config = parse(data | {"seed": seed}, TrainingConfig, source)
            config = replace(config, task=replace(config.task, fold=fold))
            job = Run.prepare(regime, config, "test" if args.test else "validation", group)
            if seed == first.seed and fold == folds[0]:
                shared = f"{job.task.n_train} images, {_judged(config.task, args.test)}"
                print(f"task     {config.task.network} on {config.task.dataset}, {shared}")
                epochs = job.schedule.samples / job.task.n_train
                many = f", {world} ranks" if world > 1 else ""
                print(f"steps    {len(job.schedule)} ({epochs:.1f} epochs) on {job.task.device}{many}")
                if loader := job.task.describe_loader(job.schedule):
                    print(f"loader   {loader}")
            print(f"seed     {seed}" + (f", fold {fold}" if len(folds) > 1 else ""), flush=True)
            if args.find_rate:
                found = find_rate(job.task, job.network, job.schedule, job.recipe, seed)
                print(f"rate     {found.suggestion:.3g}, where the loss falls fastest ({len(found.rates)} rates tried)")
                return 0
            folder = (out if args.seeds == 1 else out / f"seed{seed}") if out else None
            folder = folder / f"fold{fold}" if folder and len(folds) > 1 else folder
            report = _reported(job, folder / CHECKPOINT if folder else None, group)
            curves.append(report.curve)
            if folder and group.is_main:
                save_run(folder, regime, job, report)
        whole = mean_curve(curves)
        if len(folds) > 1:
            described = first.score.describe(whole.metrics)
            print(f"score    {first.score.of(whole)!r}  ({described}, mean over {len(folds)} folds)")
        for S, value in whole.by_size().items():
            by_size.setdefault(S, []).append(value)
    primary = first.task.metrics.primary
    unit = f", {primary.unit}" if primary.unit else ""
    print(f"{primary.label}{unit}" + (f", mean and deviation over {args.seeds} seeds" if args.seeds > 1 else ""))
    for S, values in sorted(by_size.items()):
        spread = f" ± {primary.shown(statistics.stdev(values))}" if len(values) > 1 else ""
        print(f"  {S:4d} px  {primary.shown(statistics.mean(values), 4)}{spread}")
    if out:
        print(f"written to {relative_to_cwd(out)}")
    return 0


def _judged(task: TaskConfig, test: bool) -> str:
    if test:
        return "test set"
    return f"folds of {task.folds}" if task.folds > 1 else f"hold-out of {100 * task.validation:g} %"


def _reported(job: Run, kept: Path | None, group: ProcessGroup) -> Report:
    """Train, print how it goes, and give the last report. ``kept``: the checkpoint."""
    from mixtune.training.fine_tuning import standardised_accuracy

    if kept and kept.exists():
        print(f"resuming {relative_to_cwd(kept)}", flush=True)
    primary = job.task.metrics.primary
    bar = ProgressBar(len(job.schedule), stream=sys.stderr if group.is_main else io.StringIO())
    for report in job.reports(kept, on_step=bar.step, say=lambda text: print(f"engine   {text}", flush=True)):
        bar.clear()
        speed = f"{report.views_per_second:,.0f} views/s"
        values = "  ".join(f"{S} px {primary.shown(value)}" for S, value in report.curve.by_size().items())
        done = f"{100 * report.progress:3.0f} %"
        print(f"  {done}  loss {report.loss:.4f}  {speed}  {primary.label} {values}", flush=True)
    for line in job.task.file_issues.lines():
        print(f"images   {line}")
    score = job.config.score
    print(f"score    {score.of(report.curve)!r}  ({score.describe(report.curve.metrics)})")
    S, quality = report.curve.best.S, max(report.curve.qualities)
    minutes = report.seconds / 60
    per_time = f"standardised accuracy sqrt({primary.label} at {S} px / min)"
    rate = standardised_accuracy(quality, minutes)
    print(f"time     {minutes:.2f} min of training and evaluation; {per_time} {rate:.3f}")
    return report


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written to ({err.strerror}); name another folder") from None


if __name__ == "__main__":
    run_command(main)
