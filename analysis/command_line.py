"""Flags and flow that the analysis commands share: parse, read the study, draw, log, print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.study_runs import StudyRuns, read_study, tracking_uri
from mixtune.cli import Parser, parse_args, relative_to_cwd
from mixtune.tracking.mlflow_reader import log_figures


def study_parser(module: str, doc: str | None) -> Parser:
    """Return a parser with --study, --tracking-uri, --out and --log; the first line of ``doc`` describes it."""
    p = Parser(module, (doc or "").split("\n")[0])
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    p.add_argument("--out", metavar="FOLDER", help="where the files go (default: studies/NAME/figures)")
    p.add_argument("--log", action="store_true", help="also log the files to the study's parent run in MLflow")
    return p


def run_on_study(
    p: Parser, argv: Sequence[str] | None, draw: Callable[[StudyRuns, Path, Any], tuple[list[Path], list[str]]]
) -> int:
    """Parse the flags, read the study, draw, log and print; return the exit code.

    ``draw(study, folder, flags)`` returns the files that it wrote and the lines to print.
    """
    args = parse_args(p, argv)
    study = read_study(tracking_uri(args.tracking_uri, args.study), args.study)
    folder = Path(args.out) if args.out else Path("studies") / args.study / "figures"
    paths, lines = draw(study, folder, args)
    for line in lines:
        print(line)
    if args.log:
        log_figures(study.uri, study.parent, paths)
    for path in paths:
        print(relative_to_cwd(path))
    return 0
