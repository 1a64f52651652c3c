"""The README's table of fixed size against MixSize: python -m benchmarks.evidence

Made from benchmarks/results/*.json, which ``benchmarks.regimes`` writes; a plan without results is named as such.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.readme import write
from benchmarks.regimes import PLANS, Plan, jobs
from benchmarks.verdict import verdict
from mixtune.cli import Parser, parse_args, run_command
from mixtune.files import digest
from mixtune.training.checkpoint import non_default_fields

WHAT = {
    "cpu": "a small network on two CPU cores",
    "gpu": "ResNet-44 on all of CIFAR-10 as in MixSize (the paper: 92.84 fixed, 94.30 B+, 94.37 D+ at 32 px)",
    "gpu60": "the same in 60 epochs instead of 200",
}
COMMAND = {name: f"python -m benchmarks.regimes {name} --data FOLDER" for name in PLANS}
COMMAND |= {name: f"{COMMAND[name]} --minutes 9" for name in ("gpu", "gpu60")}


def _cell(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def rows(plan: Plan, runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown rows: top-1 in % by size, mean and deviation over seeds, and the verdict against the first regime."""
    sizes = [str(S) for S in plan.sizes]
    yield "| regime | batch norm | epochs | " + " | ".join(f"{S} px" for S in sizes) + " | mean | mean, against fixed |"
    yield "|---|---|--:|" + "--:|" * (len(sizes) + 1) + "---|"
    for spend in plan.spend:
        means: dict[tuple[str, str], dict[int, float]] = {}
        for regime in plan.regimes:
            for kind in ("running", "calibrated"):
                mine = sorted(
                    (r for r in runs if (r["regime"], r["spend"]) == (regime, spend)), key=lambda r: int(r["seed"])
                )
                if not mine:
                    continue
                by_size = [[100 * r["top1"][kind][S] for r in mine] for S in sizes]
                mean = {r["seed"]: statistics.mean(100 * r["top1"][kind][S] for S in sizes) for r in mine}
                means[regime, kind] = mean
                base = means.get((plan.regimes[0], kind), {})
                pairs = [mean[s] - base[s] for s in sorted(base) if s in mean]
                against = "" if regime == plan.regimes[0] or not pairs else verdict(pairs)
                shown = regime if len(plan.spend) == 1 else f"{regime}, equal {spend}"
                cells = " | ".join(_cell(v) for v in [*by_size, list(mean.values())])
                yield f"| {shown} | {kind} | {mine[0]['epochs']:.1f} | {cells} | {against} |"


def section(name: str, path: Path) -> Iterator[str]:
    """One plan's part of the block: its table and what it was made with, or that it was not measured."""
    plan = PLANS[name]
    data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"plan": None, "runs": []}
    if data["plan"] != digest(non_default_fields(plan)) or not data["runs"]:
        runs = len(jobs(plan))
        yield (
            f"Not measured yet: {WHAT[name]}, {runs} runs; `{COMMAND[name]}` measures it, and continues when it is run "
            "again."
        )
        return
    yield from rows(plan, data["runs"])
    made, n = data["hardware"], len({r["seed"] for r in data["runs"]})
    minutes = sum(r["seconds"] for r in data["runs"]) / 60 / (plan.processes * plan.packed)
    missing = len(jobs(plan)) - len(data["runs"])
    images = f"{plan.samples:,} training images of CIFAR-10" if plan.samples else "CIFAR-10"
    where = made["gpu"] if made["gpu"] != "none" else made["cpu"]
    yield ""
    yield (
        f"Top-1 on the test set in %, mean ± deviation over {n} seeds: {plan.network}, {images}, {plan.epochs:g} "
        f"epochs at {plan.base} or the same {' or '.join(plan.spend)}, {minutes:.0f} minutes of training on {where}, "
        f'torch {made["torch"]}. Differences are paired by seed. Batch norm: "running" evaluates with the running '
        'statistics; "calibrated" measures the statistics again at each test size, and uses them where they raise '
        f"the accuracy on training images that were held back. Made by `{COMMAND[name]}`, then "
        f"`python -m benchmarks.evidence`. Every run is in `benchmarks/results/{name}.json`."
        + (f" {missing} runs are still missing." if missing else "")
    )


def block(results: Path = RESULTS) -> str:
    """The README's block."""
    lines: list[str] = []
    for name in WHAT:
        lines += [*section(name, results / f"{name}.json"), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the block into the README and print it."""
    parse_args(Parser("benchmarks.evidence", (__doc__ or "").split("\n")[0]), argv)
    write("evidence", block())
    print(block(), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
