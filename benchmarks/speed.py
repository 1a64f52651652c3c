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
            ("CPU: time of a plain PyTorch loop with a DataLoader per size / time of mixtune, same steps", 1.5, 3),
            ("CPU: share of a trial's wall time that is neither steps nor evaluation", 0.10, 0.05),
            ("CPU: time of a mixture in random order / time of the same steps sorted by shape", 1.03, 1.01),
        ),
    ),
    "warm_start_cpu": (
        "warm_start --data FOLDER",
        (("CPU: start of a trial in a process that has trained its shapes / start in a new process", 0.2, 0.05),),
    ),
    "warm_start_cuda": ("warm_start", (("GPU: the same ratio", 0.2, 0.05),)),
    "gpu_step": (
        "gpu_step",
        (
            (
                "GPU: ResNet-44, mixture at base 32x64: time of an eager bf16 step / of a step as a CUDA graph",
                5,
                8,
            ),
            ("GPU: time of a mixture in random order / time of the same steps sorted by shape", 1.03, 1.01),
            ("GPU: time of the slowest / of the fastest shape, all shapes of equal compute", 1.05, 1.02),
            ("GPU: ResNet-50 at 224 px: share of the bandwidth limit (346 MB per image)", 0.45, 0.60),
        ),
    ),
    "packing": (
        "packing",
        (
            ("GPU: steps per second of 8 trials in one process / of 1 trial", 2.7, 5),
            ("GPU: steps per second of 8 trials in one process / of 8 processes with a share of the GPU each", 15, 30),
        ),
    ),
}
SEARCH: Goals = {
    "overhead": (
        "overhead",
        (
            ("time per trial of Ray Tune, Optuna and MLflow, in ms (200 trials of a few milliseconds)", 100, 50),
            ("their share of the wall time of trials of 60 s, in %", 0.2, 0.1),
            ("time per trial in the second half of 1,000 trials / in the first half", 1.25, 1),
            ("growth of the driver's memory from trial 200 to 1,000, in KiB per trial", 100, 20),
        ),
    ),
    "parallel": (
        "parallel",
        (
            ("throughput of two workers / one, on two cores", 1.6, 1.9),
            ("that ratio / the same ratio of two processes without Ray", 0.9, 1),
            ("idle time of two workers with asynchronous pruning, in %", 10, 3),
        ),
    ),
}
# By block: its rows, and how they were measured.
BLOCKS: dict[str, tuple[Goals, str]] = {
    "speed": (STEPS, "Medians of 5. Both sides were measured in one run,"),
    "costs": (SEARCH, "Measured on complete studies,"),
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
    return "\n".join(lines) + f"\n\n{how} on {where}. Every measurement is in `benchmarks/results`.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the tables into docs/."""
    parse_args(Parser("benchmarks.speed", __doc__.split("\n")[0]), argv)
    for block in BLOCKS:
        write(block, table(block))
        print(table(block))
    return 0


if __name__ == "__main__":
    run_command(main)
