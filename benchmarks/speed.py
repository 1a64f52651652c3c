"""The tables of speeds in docs/, from benchmarks/results: what was measured, and what was not, which is said.

python -m benchmarks.speed
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.readme import write
from mixtune.cli import Parser, parse_args, run_command

# By result file: the command, and its ratios with their goals and aims, in the order in which it writes them.
Goals = dict[str, tuple[str, tuple[tuple[str, float, float], ...]]]
STEPS: Goals = {
    "cpu_loop": (
        "cpu_loop --data FOLDER",
        (
            ("CPU: plain PyTorch loop, a DataLoader per size / engine, time to the same steps", 1.5, 3),
            ("CPU: share of a trial's wall time outside its steps and evaluations", 0.10, 0.05),
            ("CPU: random-order mixture / the same steps sorted by shape", 1.03, 1.01),
        ),
    ),
    "warm_start_cpu": (
        "warm_start --data FOLDER",
        (("CPU: warm start of a trial whose shapes were seen / cold start", 0.2, 0.05),),
    ),
    "warm_start_cuda": ("warm_start", (("GPU: the same", 0.2, 0.05),)),
    "gpu_step": (
        "gpu_step",
        (
            ("GPU: ResNet-44, 32x64 mixture, eager bf16 step / engine's captured step", 5, 8),
            ("GPU: random-order mixture / the same steps sorted by shape", 1.03, 1.01),
            ("GPU: slowest / fastest shape of a constant-budget regime", 1.05, 1.02),
            ("GPU: ResNet-50 at 224, the engine's images/s / (copy bandwidth / 346 MB)", 0.45, 0.60),
        ),
    ),
    "packing": (
        "packing",
        (
            ("GPU: 8 trials packed in one process / 1 trial, steps per second", 2.7, 5),
            ("GPU: 8 packed trials / a process per trial, as under Ray with fractional GPUs", 15, 30),
        ),
    ),
}
SEARCH: Goals = {
    "overhead": (
        "overhead",
        (
            ("Ray Tune, Optuna and MLflow per trial, 200 trials of a few milliseconds, in ms", 100, 50),
            ("their share of the wall time of 60 s trials, in %", 0.2, 0.1),
            ("cost per trial in the second half of 1,000 trials / in the first half", 1.25, 1),
            ("growth of the driver's memory from trial 200 to 1,000, in KiB per trial", 100, 20),
        ),
    ),
    "parallel": (
        "parallel",
        (
            ("throughput of two workers / one, on two cores", 1.6, 1.9),
            ("the same / what two bare processes reach over one", 0.9, 1),
            ("two workers' idle time under asynchronous pruning, in %", 10, 3),
        ),
    ),
}
# By block: its rows, and how they were measured.
BLOCKS: dict[str, tuple[Goals, str]] = {
    "speed": (STEPS, "Medians of 5, both sides in one run,"),
    "costs": (SEARCH, "Real studies through the real chain,"),
}


def table(block: str, results: Path = RESULTS) -> str:
    """The table of a block in Markdown."""
    rows, how = BLOCKS[block]
    lines = ["| ratio | goal | aim | measured | command: `python -m benchmarks.` |", "|---|--:|--:|--:|---|"]
    notes = set()
    for name, (command, goals) in rows.items():
        path = results / f"{name}.json"
        made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
        missing: list[dict[str, Any]] = [{}] * (
            len(goals) - len(made["rows"])
        )  # all of them, or those after a part that failed
        for (what, goal, aim), row in zip(goals, made["rows"] + missing, strict=True):
            sign = "≤" if aim < goal else "≥"
            found = f"{row['ratio']:.3g}" if row else "not measured"
            lines.append(f"| {what} | {sign} {goal:g} | {aim:g} | {found} | `{command}` |")
        if "hardware" in made:
            on = made["hardware"]
            notes.add(f"{on['cpu']}" + (f", {on['gpu']}" if on["gpu"] != "none" else "") + f", torch {on['torch']}")
    where = "; ".join(sorted(notes)) or "no machine yet"
    return "\n".join(lines) + f"\n\n{how} on {where}; every measurement is in `benchmarks/results`.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables into docs/."""
    parse_args(Parser("benchmarks.speed", __doc__.split("\n")[0]), argv)
    for block in BLOCKS:
        write(block, table(block))
        print(table(block))
    return 0


if __name__ == "__main__":
    run_command(main)
