"""Records the table that searches are compared on: regime -> curve at several shares of the budget, in both fidelities.

    python -m benchmarks.recorded --data FOLDER          two CPU cores, about an hour; the same command goes on

Every regime of ``recorded.yaml`` (the published ones, then points drawn evenly from the space) is trained on the whole
budget, judged on the way at 1/9 and 1/3 (truncate), and trained anew on 1/27, 1/9 and 1/3 of the budget (compress). One
seed each, on real images; what is written to benchmarks/results/recorded.json is what was measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import hardware
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import load_config, to_plain
from mixtune.files import atomic_write
from mixtune.search.domains import Uniform
from mixtune.search.space import Space
from mixtune.training.checkpoint import non_default_fields
from mixtune.training.run import Run

HERE = Path(__file__).parent
TABLE = HERE / "results" / "recorded.json"
TRUNCATED = (1, 3)  # of 9 reports: at 1/9 and 1/3 of the budget


def space_of(data: str | None = None) -> Space:
    """The table's space, with the data in ``data``."""
    return load_config(HERE / "recorded.yaml", Space, [] if data is None else [f"task.data={data}"])


def points(space: Space, rows: int) -> list[tuple[str, dict[str, Any]]]:
    """(published name or "", point) of every row."""
    known = [(name, space.published_params(name, 4)) for name in space.published]
    drawn = [("", space.suggest(Uniform((space.seed, i)))) for i in range(rows - len(known))]
    return [*known, *drawn][:rows]


def record(data: str, number: int, name: str, params: dict[str, Any]) -> dict[str, Any]:
    """Train one regime at every share, in both fidelities. top1 by size, and the score."""
    space = space_of(data)
    regime = space.regime(params, name)
    row: dict[str, Any] = {"row": number, "published": name, "params": params, "regime": str(regime)}
    row |= {"compress": {}, "truncate": {}}
    for share in space.fidelity.shares:
        one = f"1/{round(1 / share)}"
        whole = share == 1
        reports = replace(space.evaluate, reports=9 if whole else 1)
        training = replace(space.training(1), share=share, evaluate=reports, device="cpu")
        job = Run.prepare(regime, training)
        for report in job.reports(judged=(*TRUNCATED, 9) if whole else None):
            values = {
                "score": space.score.of(report.curve),
                "top1": [p.metrics["top1"] for p in report.curve.points],
                "seconds": round(report.seconds, 2),
            }
            if whole and report.number in TRUNCATED:
                row["truncate"][f"1/{9 // report.number}"] = values
            else:
                row["compress"][one] = values
    row["gmacs"] = [p.gmacs for p in report.curve.points]
    return row


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.recorded", (__doc__ or "").split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds cifar-10-batches-py")
    p.add_argument("--rows", type=int, default=128, metavar="N", help="regimes in the table (default: 128)")
    p.add_argument("--out", metavar="FILE", default=str(TABLE), help="the table (default: benchmarks/results/...)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Record what is missing."""
    args = parse_args(parser(), argv)
    out, space = Path(args.out).absolute(), space_of(args.data)
    wanted = points(space, args.rows)
    # What decides a row, and nothing that a later version may add to a space and leaves off.
    settings = to_plain(non_default_fields(replace(space, task=replace(space.task, data=None)).training()))
    rows: list[dict[str, Any]] = []
    if out.exists() and (old := json.loads(out.read_text()))["training"] == settings:
        rows = [r for r in old["rows"] if r["row"] < len(wanted) and r["params"] == wanted[r["row"]][1]]
    done, made_on = {r["row"] for r in rows}, hardware()
    missing = [(i, name, p) for i, (name, p) in enumerate(wanted) if i not in done]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(record, args.data, *m) for m in missing]):
            rows = sorted([*rows, future.result()], key=lambda r: int(r["row"]))
            content = {"training": settings, "hardware": made_on, "rows": rows}
            atomic_write(out, (json.dumps(content, indent=None).replace('{"row"', '\n{"row"') + "\n").encode())
            print(f"{len(rows)} of {args.rows}: {future.result()['regime']}", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
