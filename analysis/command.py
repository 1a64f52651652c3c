"""What the analysis commands share: their flags, reading the study, writing, logging and printing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.runs import StudyRuns, read_study, store
from mixtune.cli import Parser, parse_args, short
from mixtune.tracking.mlflow_reader import log_figures


def parser(module: str, doc: str | None) -> Parser:
    """A parser with --study, --tracking-uri, --out and --log."""
    p = Parser(module, (doc or "").split("\n")[0])
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    p.add_argument("--out", metavar="FOLDER", help="where the files go (default: studies/NAME/figures)")
    p.add_argument("--log", action="store_true", help="also log the files to the study's parent run in MLflow")
    return p


def perform(
    p: Parser, argv: Sequence[str] | None, draw: Callable[[StudyRuns, Path, Any], tuple[list[Path], list[str]]]
) -> int:
    """Parse, read, draw, log, print: ``draw(study, folder, flags)`` returns the files and lines to say."""
    args = parse_args(p, argv)
    study = read_study(store(args.tracking_uri, args.study), args.study)
    folder = Path(args.out) if args.out else Path("studies") / args.study / "figures"
    paths, said = draw(study, folder, args)
    for line in said:
        print(line)
    if args.log:
        log_figures(study.uri, study.parent, paths)
    for path in paths:
        print(short(path))
    return 0
