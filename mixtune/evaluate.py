"""Evaluate a trained network at any sizes: python -m mixtune.evaluate --weights FOLDER

FOLDER is what mixtune.train --out wrote (weights and how they were trained). A weight file on its own needs a search
space that says what it was trained on: --weights FILE --space search_spaces/cifar10.yaml
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixtune.cli import Parser, parse_args, relative_to_cwd, run_command
from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve, write_csv
from mixtune.regime.files import load_regime
from mixtune.train import training_settings


def parser() -> Parser:
    """The command's flags."""
    p = Parser("mixtune.evaluate", __doc__.split("\n")[0])
    p.add_argument("--weights", required=True, metavar="PATH", help="a folder of mixtune.train, or a weight file")
    p.add_argument("--space", metavar="FILE", help="take task and sizes from this search space")
    p.add_argument("--sizes", metavar="S,S,...", help="inference sizes in pixels (default: those of the training)")
    p.add_argument("--test", action="store_true", help="on the test set (default: the hold-out of the training set)")
    p.add_argument(
        "--recalibrate",
        action="store_true",
        help="choose batch-norm statistics per size, on other images (default: as in training)",
    )
    p.add_argument("--mirror", action="store_true", help="test-time augmentation: mean over the image and its mirror")
    p.add_argument("--latency", type=int, metavar="BATCH", help="measure latency and peak memory in batches of this")
    p.add_argument("--corruptions", type=int, metavar="S", help="also under corruptions, at this size")
    p.add_argument("--out", metavar="FOLDER", help="write curve.csv, corruptions.csv and curve.png (all of it) here")
    p.add_set()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, evaluate, print."""
    args = parse_args(parser(), argv)
    from mixtune.training.run_folder import judged_on

    given = Path(args.weights)
    trained: dict[str, Any] = {}
    path = given
    if given.is_dir():
        path = given / "weights.safetensors"
        trained = load_regime(given / "regime.yaml")[1]
        if not args.test and judged_on(given) == "test":
            raise InputError(
                f"--weights {given}: was trained on the whole training set, so its hold-out would be images it has "
                "seen; judge it on the test set with --test"
            )
    if not args.space and not trained:
        raise InputError(f"--weights {given}: say what it was trained on with --space FILE (or name a run's folder)")
    source = args.space or f"{given / 'regime.yaml'}: training"

    from mixtune.evaluation.bn_recalibration import Recalibration
    from mixtune.evaluation.corruptions import robustness
    from mixtune.evaluation.latency import with_cost
    from mixtune.regime import BatchShape
    from mixtune.tasks.base import check_shapes, make_task
    from mixtune.training.run import TrainingConfig

    config = parse(training_settings(trained, args.space, args.assignments), TrainingConfig, source)
    sizes = _sizes(args.sizes) if args.sizes else config.evaluate.sizes
    recalibration = config.evaluate.recalibrate or (Recalibration() if args.recalibrate else None)
    task_config = dataclasses.replace(config.task, weights=None)
    task = make_task(task_config, "test" if args.test else "validation", config.device, recalibration)
    sizes_by_source = {f"--sizes {args.sizes}" if args.sizes else source: sizes}
    if args.corruptions is not None:
        sizes_by_source[f"--corruptions {args.corruptions}"] = (args.corruptions,)
    task.check_sizes(sizes_by_source)
    for flag, wanted in sizes_by_source.items():
        try:
            check_shapes([BatchShape(S, 1) for S in wanted], config.task)
        except ValueError as err:
            raise InputError(f"{flag}: {err}") from None
    try:
        network = task.network(0)
    except ValueError as err:
        raise InputError(f"{source}: {err}") from None
    task.load_weights(network, path)
    try:
        evaluated = task.mirrored(network) if args.mirror else network
    except InputError as err:
        raise InputError(f"--mirror: {err}") from None
    curve = task.evaluate(evaluated, sizes)
    if args.latency is not None:
        if args.latency < 1:
            raise InputError(f"--latency must be at least 1 image, not {args.latency}")
        curve = with_cost(curve, evaluated, args.latency, task.device)

    print(f"{config.task.network} on {config.task.dataset}, {'test set' if args.test else 'hold-out'}, {task.device}")
    columns = "".join(f" {f'{metric.label} {metric.unit}'.strip():>8}" for metric in curve.metrics)
    print(f"{'px':>5}{columns} {'GMACs':>9}" + _extra_head(args))
    for p in curve.points:
        values = "".join(f" {metric.shown(p.metrics[metric.name]):>8}" for metric in curve.metrics)
        line = f"{p.S:>5}{values} {p.gmacs:>9.4g}"
        line += f" {1e3 * p.latency:>9.3f}" if p.latency is not None else ""
        line += f" {p.memory / 2**20:>8.3g}" if p.memory is not None else ""
        line += f"  {task.chosen[p.S][0]}" if recalibration else ""
        print(line)
    if args.corruptions and recalibration and args.corruptions not in sizes:
        task.evaluate(evaluated, [args.corruptions])  # chooses the statistics at this size
    rows = robustness(task, evaluated, args.corruptions) if args.corruptions else []
    if rows:
        primary = curve.primary
        name = f"{primary.label} {primary.unit}".strip()
        print(f"\n{name} at {args.corruptions} px under corruptions of severity 1 to 5")
        for family in dict.fromkeys(r["family"] for r in rows):
            shown = [primary.shown(float(r[primary.name])) for r in rows if r["family"] == family]
            print(f"  {family:<11}" + "".join(f"{value:>8}" for value in shown))
    if args.out:
        folder = Path(args.out)
        _write(folder, curve, rows, {} if args.latency is None else {"batch": args.latency})
        print(f"written to {relative_to_cwd(folder)}")
    return 0


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(sorted({int(s) for s in text.split(",")}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise InputError(f"--sizes must be positive whole numbers with commas between, such as 24,32, not {text!r}")
    return sizes


def _extra_head(args: Any) -> str:
    if args.latency is None:
        return ""
    return f"  ms/image peak MiB (batch {args.latency})"


def _write(folder: Path, curve: Curve, corruptions: Sequence[dict[str, Any]], measured: dict[str, int]) -> None:
    """measured: the batch that latency and memory are of, where they were measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder / "curve.csv", [row | measured for row in curve.rows()])
        if corruptions:
            write_csv(folder / "corruptions.csv", corruptions)
        _draw(curve, corruptions).savefig(folder / "curve.png", dpi=150)
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written to ({err.strerror}); name another folder") from None


def _draw(curve: Curve, corruptions: Sequence[dict[str, Any]]) -> Any:
    """Return a figure of the primary metric and, where the task measures it, calibration error against image size, and
    of the primary metric against the corruptions' severity.
    """
    from matplotlib.figure import Figure

    primary, calibration = curve.primary, [metric for metric in curve.metrics if metric.name == "ece"]
    drawn = [primary, *calibration]
    columns = len(drawn) + bool(corruptions)
    figure = Figure(figsize=(4 * columns, 3.2), layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False)[0]
    sizes = list(curve.sizes)
    for panel, metric in zip(panels, drawn, strict=False):
        values = [metric.scale * value for value in curve.by_size(metric.name).values()]
        panel.plot(sizes, values, "o-", color="#0072B2")
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(S) for S in sizes])
        panel.minorticks_off()
        panel.set(xlabel="image size, px", ylabel=metric.axis)
    above = panels[0].secondary_xaxis("top")
    above.set_xticks(sizes, [f"{p.gmacs:.2g}" for p in curve.points], fontsize=7)
    above.minorticks_off()
    above.set_xlabel("GMACs per image", fontsize=8)
    if corruptions:
        colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito's
        families = list(dict.fromkeys(r["family"] for r in corruptions))
        clean, name, scale = curve.by_size(), primary.name, primary.scale
        for family, colour, marker in zip(families, colours, "os^vPX", strict=False):
            rows = [r for r in corruptions if r["family"] == family]
            x, y = [r["severity"] for r in rows], [scale * r[name] for r in rows]
            if rows[0]["S"] in clean:
                x, y = [0, *x], [scale * clean[rows[0]["S"]], *y]
            panels[-1].plot(x, y, marker=marker, ms=4, color=colour, label=family)
        label = f"at {corruptions[0]['S']} px: {primary.axis}"
        panels[-1].set(xlabel="severity of the corruption (0: none)", ylabel=label)
        panels[-1].legend(fontsize=7, frameon=False)
    for panel in panels:
        panel.grid(axis="y", lw=0.4, color="0.9")
    return figure


if __name__ == "__main__":
    run_command(main)
