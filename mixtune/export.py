"""Write a regime or a trained network in another form: python -m mixtune.export --regime FILE --timm

A regime is written for timm's train.py (--timm), for another base shape (--base 224x256 --stride 32 --out FILE), or all
published ones as files (--published FOLDER). A network that mixtune.train wrote is picked by need and written for use:
--run FOLDER --at-most '1.5 GMACs' --network FOLDER.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mixtune.cli import Parser, parse_args, path_assignment, python_command, run_command, shell_line
from mixtune.errors import InputError, did_you_mean
from mixtune.regime import BatchShape, Budget
from mixtune.regime.catalogue import published_run_length, write_published
from mixtune.regime.files import load_regime, save_regime
from mixtune.regime.rebase import rebased
from mixtune.regime.timm_flags import timm_flags


def parser() -> Parser:
    """The command's flags."""
    p = Parser("mixtune.export", __doc__.split("\n")[0])
    p.add_argument("--regime", metavar="FILE", help="regime file (YAML)")
    p.add_argument("--timm", action="store_true", help="print the flags of timm's train.py that train this regime")
    p.add_argument("--epochs", type=float, help="timm: budget in epochs of the base shape (default: 90 or 200)")
    p.add_argument("--samples", type=int, help="timm: training images (default: ImageNet's or CIFAR's)")
    p.add_argument("--spend", choices=("compute", "epochs"), default="compute", help="timm: what the budget counts")
    p.add_argument("--processes", type=int, default=1, help="timm: processes (GPUs) that share each batch")
    p.add_argument("--spread", type=float, default=0.65, help="timm: spread of a sliding window (default timm's 0.65)")
    p.add_argument("--random-mix", type=float, default=0.1, help="timm: its random mix (default timm's 0.1)")
    p.add_argument("--base", metavar="SxB[xD]", help="re-base: the new base shape, for example 224x256")
    p.add_argument("--stride", type=int, default=32, help="re-base: sizes become multiples of this (default 32)")
    p.add_argument("--out", metavar="FILE", help="re-base: the regime file to write")
    p.add_argument("--published", metavar="FOLDER", help="write every published regime as a file into this folder")
    p.add_argument("--run", metavar="FOLDER", action="append", help="a run of mixtune.train --out (may be repeated)")
    p.add_argument("--network", metavar="FOLDER", help="write the run's network into this folder")
    p.add_argument("--formats", default="safetensors,torch", metavar="F,F", help="of safetensors, torch, onnx, mlflow")
    p.add_argument("--register", metavar="NAME", help="register the network in MLflow under this name, alias best")
    p.add_argument("--tracking-uri", metavar="URI", help="--register: the MLflow store")
    at_most, at_least = "'1.5 GMACs', '3 ms', '512 MiB', or a metric: 'ece 5 %%'", "'76 %%', or by name: 'top5 93 %%'"
    p.add_argument("--at-most", action="append", default=[], metavar="COST", help=at_most)
    p.add_argument("--at-least", action="append", default=[], metavar="METRIC", help=at_least)
    return p


def export_network(args: argparse.Namespace) -> int:
    """Pick network and size by need, and write it where ``--network`` says."""
    from mixtune.deploy import formats
    from mixtune.deploy import network as deployed
    from mixtune.deploy.pick import Need, pick
    from mixtune.training.run_folder import FinishedRun

    runs = [FinishedRun.read(Path(folder)) for folder in args.run]
    metrics = runs[0].config.task.metrics
    needs = [Need.parse("at most", text, metrics) for text in args.at_most]
    needs += [Need.parse("at least", text, metrics) for text in args.at_least]
    names = args.formats.split(",")
    if args.register and not (args.network and args.tracking_uri):
        raise InputError("--register NAME needs --network FOLDER, and --tracking-uri to say which MLflow store")
    if args.register and "torch" not in names:
        names.append("torch")  # what is served is made of it
    for name in names:
        if name not in formats.WRITERS:
            raise InputError(f"--formats: unknown format {name!r}; {did_you_mean(name, formats.WRITERS)}")
    run_, point = pick(runs, needs)
    criteria = " and ".join(map(str, needs)) or f"the best {metrics.primary.label}"
    measured = f" and {1000 * point.latency:.3g} ms" if point.latency is not None else ""
    primary = metrics.primary
    value = f"{primary.label} {primary.shown(point.metrics[primary.name])} {primary.unit}".strip()
    print(f"{criteria}: {run_.folder} at {point.S} px, {value}, {point.gmacs:.4g} GMACs{measured}")
    if args.network:
        network, chosen, around = deployed.restore(run_, point.S)
        print(f"batch-norm statistics: {chosen[point.S]}")
        about = deployed.description(run_, point, chosen, around, needs)
        for path in formats.save_format(network, Path(args.network), run_.curve.sizes, names, about):
            print(f"wrote {path}")
        if "mlflow" in names:
            print(f"serve it:\n  {_serve(Path(args.network) / 'mlflow')}")
        if args.register:
            from mixtune.deploy.serving import register

            model = register(Path(args.network), about, args.tracking_uri, args.register)
            print(f"registered {model}; serve it:\n  {_serve(model, args.tracking_uri)}")
    return 0


def _serve(model: str | Path, store: str = "") -> str:
    """Return the command that serves a model on this machine; it can be pasted into a fresh shell."""
    uri = shell_line(f"MLFLOW_TRACKING_URI={store}") + " " if store else ""
    command = shell_line("-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--port", "5001")
    return f"{path_assignment()}{uri}{python_command()} {command}"


def shape(text: str) -> BatchShape:
    """``224x256`` or ``224x256x1`` as a batch shape. Raises InputError."""
    if not re.fullmatch(r"\d+x\d+(x\d+)?", text):
        raise InputError(f"--base {text}: expected size x batch, for example 224x256")
    try:
        return BatchShape(*(int(part) for part in text.split("x")))
    except ValueError as err:
        raise InputError(f"--base {text}: {err}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    args = parse_args(parser(), argv)
    if args.run:
        return export_network(args)
    if args.network or args.at_most or args.at_least:
        raise InputError("--network, --at-most and --at-least need --run FOLDER, a run of mixtune.train --out")
    if (args.published is None) == (args.regime is None):
        raise InputError("give either --regime FILE with --timm or --base, or --published FOLDER, or --run FOLDER")
    if args.published is not None:
        print(f"wrote {len(write_published(args.published))} regimes into {args.published}")
        return 0
    if args.timm == (args.base is not None) or (args.base is None) != (args.out is None):
        raise InputError("--regime FILE needs either --timm, or --base with --out")
    regime, _ = load_regime(args.regime)
    try:
        if args.base:
            moved = rebased(regime, shape(args.base), args.stride)
            save_regime(args.out, moved)  # not its training section: that describes runs at the old base
            print(f"wrote {args.out}: {moved}\n{moved.source}")
        else:
            n, usual = published_run_length(regime.base)
            n, epochs = args.samples or n, args.epochs or usual
            flags = timm_flags(regime, Budget(epochs, args.spend), n, args.processes, args.spread, args.random_mix)
            print(
                f"# {regime.name or regime}: {flags.steps:,} steps for {epochs:g} epochs of {n:,} images "
                f"at {regime.base} (equal {args.spend}); timm gives {100 * flags.deviation:.2f} % of them other sizes"
            )
            print(shell_line(*flags.flags))
    except ValueError as err:
        raise InputError(f"{args.regime}: {err}") from None
    return 0


if __name__ == "__main__":
    run_command(main)
