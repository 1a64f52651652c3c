"""Which fidelity ranks regimes as the whole budget does: Spearman's correlation on the recorded table.

python -m benchmarks.fidelity      writes the README's block from benchmarks/results/recorded.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.readme import write
from benchmarks.recorded import TABLE
from mixtune.cli import Parser, parse_args, run_command


def correlations(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation with the score at the whole budget, by fidelity and share."""
    from scipy import stats

    whole = [r["compress"]["1/1"]["score"] for r in rows]
    found: dict[str, dict[str, float]] = {}
    for kind in ("compress", "truncate"):
        shares = [s for s in rows[0][kind] if s != "1/1"]
        found[kind] = {s: float(stats.spearmanr([r[kind][s]["score"] for r in rows], whole)[0]) for s in shares}
    return found


def table() -> str:
    """The README's block."""
    data = json.loads(TABLE.read_text(encoding="utf-8"))
    found, made = correlations(data["rows"]), data["hardware"]
    shares = list(found["compress"])
    lines = [
        "| rank correlation with the whole budget | " + " | ".join(f"{s} of the budget" for s in shares) + " |",
        "|---|" + "--:|" * len(shares),
    ]
    for kind, by_share in found.items():
        cells = " | ".join(f"{by_share[s]:.2f}" if s in by_share else "not measured" for s in shares)
        lines.append(f"| {kind} | {cells} |")
    task, budget = data["training"]["task"], data["training"]["budget"]
    lines += [
        "",
        f"Spearman's coefficient over {len(data['rows'])} regimes (the published ones and random points), one seed "
        f"each: {task['network']} on {task['samples']:,} images of CIFAR-10, {budget['epochs']:g} epochs, on "
        f"{made['cpu']}, torch {made['torch']}. Recorded by `python -m benchmarks.recorded --data FOLDER`.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the block and print it."""
    parse_args(Parser("benchmarks.fidelity", (__doc__ or "").split("\n")[0]), argv)
    write("fidelity", table())
    print(table())
    return 0


if __name__ == "__main__":
    run_command(main)
