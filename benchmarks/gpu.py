"""Everything that has to be measured on a GPU, in one command: the tests that need one, then each benchmark.

    python -m benchmarks.gpu                     # tests, warm_start, gpu_step, packing: an estimated 15 minutes
    python -m benchmarks.gpu --data FOLDER       # and ResNet-44 on CIFAR-10 (FOLDER holds cifar-10-batches-py), 9 more

A part that fails or takes too long does not keep the others from being measured. Needs torch, torchvision, timm, numpy,
pyyaml, pydantic and pytest; no Ray, Optuna or MLflow. Results are written to benchmarks/results as they are made;
``python -m benchmarks.speed`` puts them into docs/, where the project is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.readme import ROOT
from benchmarks.speed import table
from mixtune.cli import Parser, parse_args, run_command
from mixtune.errors import InputError
from mixtune.runtime.device import pick_device

# What is run, and after how many minutes it is given up.
PARTS: dict[str, tuple[list[str], float]] = {
    "tests": (["pytest", "-m", "gpu", "-q", "--no-showlocals", "tests/training"], 6),
    "warm_start": (["benchmarks.warm_start", "--device", "cuda"], 5),
    "gpu_step": (["benchmarks.gpu_step"], 8),
    "packing": (["benchmarks.packing"], 8),
    "regimes": (["benchmarks.regimes", "gpu60", "--minutes", "9"], 12),
}


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.gpu", (__doc__ or "").split("\n")[0])
    p.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"some of: {', '.join(PARTS)}")
    p.add_argument("--data", metavar="FOLDER", help="holds cifar-10-batches-py; without it, regimes are left out")
    p.add_argument("--out", metavar="FOLDER", help="copy the results there as well, after each part")
    return p


def perform(words: Sequence[str], minutes: float) -> str:
    """Run a module; "done", or what became of it."""
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, start_new_session=True)  # noqa: S603 (ours)
    try:
        code = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"given up after {minutes:g} minutes"
    return "done" if code == 0 else f"FAILED with exit code {code}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts, print what became of them and the table."""
    args = parse_args(parser(), argv)
    chosen = args.parts or [name for name in PARTS if name != "regimes" or args.data]
    if "regimes" in chosen and not args.data:
        raise InputError("regimes train on CIFAR-10: say with --data FOLDER where it is")
    pick_device("cuda")
    outcomes = {}
    for name in chosen:
        words, minutes = PARTS[name]
        began = time.monotonic()
        print(f"\n{name}: python -m {' '.join(words)}", flush=True)
        data = ["--data", str(Path(args.data).absolute())] if name == "regimes" else []
        outcomes[name] = perform([*words, *data], minutes)
        print(f"{name}: {outcomes[name]} ({time.monotonic() - began:.0f} s)", flush=True)
        if args.out:
            shutil.copytree(RESULTS, args.out, dirs_exist_ok=True)
    print(f"\n{table('speed')}")
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome}")
    return 0 if set(outcomes.values()) == {"done"} else 1


if __name__ == "__main__":
    run_command(main)
