"""Search for the best size regime: python -m mixtune.search --space search_spaces/digits.yaml

Running the same command again continues the study. --dry-run shows what would be tried and needs no data; with
--measure it also says what that would cost. --proxy searches on a cheaper task first (the file's section proxy), then
trains the best regimes on the whole one; --from does the latter with a study that is there.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixtune.cli import Parser, parse_args, python_command, relative_to_cwd, run_command, shell_line
from mixtune.config import load_config
from mixtune.errors import InputError
from mixtune.secrets import MaskSecrets, masked

if TYPE_CHECKING:
    from mixtune.execution.estimate import StudyToRun
    from mixtune.search.paths import StudyPaths
    from mixtune.search.space import Space


def parser() -> Parser:
    """The command's flags: where and how much, never what is searched."""
    p = Parser("mixtune.search", __doc__.split("\n")[0])
    p.add_argument("--space", required=True, metavar="FILE", help="search space (YAML)")
    p.add_argument("--out", metavar="FOLDER", help="the study's folder (default: studies/NAME)")
    p.add_argument("--trials", type=int, metavar="N", help="trials in all (default: the file's)")
    p.add_argument(
        "--final", type=int, metavar="N", help="then train leaders again, and finalists with N seeds: test set"
    )
    p.add_argument("--storage", metavar="URL", help="Optuna storage (default: study.journal in the folder)")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow tracking store (default: mlflow.db in the folder)")
    p.add_argument("--address", metavar="HOST:PORT", help="an existing Ray cluster (default: this machine)")
    p.add_argument("--resume", action="store_true", help="only go on with a study that is there, never begin one")
    p.add_argument(
        "--proxy",
        action="store_true",
        help="search on the file's proxy first, then train the best regimes on the whole task",
    )
    p.add_argument(
        "--from",
        dest="proxy_folder",
        metavar="FOLDER",
        help="instead of searching, train the best regimes of the study in this folder on the whole task",
    )
    p.add_argument("--top", type=int, default=3, metavar="N", help="how many regimes those are (default: 3)")
    p.add_argument("--dry-run", action="store_true", help="print the regimes that would be tried, and stop")
    p.add_argument(
        "--measure", action="store_true", help="measure steps anew; with --dry-run to say what it would cost"
    )
    p.add_set()
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print; return the exit code."""
    args = parse_args(parser(), argv)
    logging.basicConfig(format="note: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskSecrets())
    flags = {"trials": args.trials, "final.seeds": args.final}
    assignments = [f"{key}={value}" for key, value in flags.items() if value is not None]

    if args.address and (Path.home() / ".ray" / "auth_token").exists():
        # A cluster asks for the token by default, but Ray hands it out only when told to before it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    from mixtune.search.space import Space

    space = load_config(args.space, Space, [*args.assignments, *assignments])
    if args.proxy and args.proxy_folder:
        raise InputError("--proxy searches, and --from names a study that was: give one of them")
    if args.proxy or args.proxy_folder:
        return _search_by_proxy(args, space)
    paths = _paths(args, space.study)
    if args.dry_run:
        return _dry_run(args, [(space, paths)])
    return _search(args, space, paths, {}, args.measure)


def _search_by_proxy(args: argparse.Namespace, space: Space) -> int:
    """Search on the proxy, unless that is done, and train its best regimes on the full task."""
    from mixtune.study.proxy import expected_full_space, full_space, proxy_space

    full_paths, forecast_written = _paths(args, f"{space.study}-carried"), False
    folder = Path(args.proxy_folder).absolute() if args.proxy_folder else full_paths.folder / "proxy"
    proxy_paths = replace(full_paths, folder=folder)
    if args.proxy:
        studies = [(proxy_space(space, args.space), proxy_paths), (expected_full_space(space, args.top), full_paths)]
        if args.dry_run:
            return _dry_run(args, studies)
        forecast_written = _forecast_both(args, studies)
        if code := _search(args, *studies[0], {}, args.measure and not forecast_written, last=False):
            return code
    space, scores = full_space(space, folder, args.top, args.storage)
    if args.dry_run:
        return _dry_run(args, [(space, full_paths)])
    return _search(args, space, full_paths, scores, args.measure and not forecast_written)


def _dry_run(args: argparse.Namespace, studies: Sequence[tuple[Space, StudyPaths]]) -> int:
    """Print what the study would try, and the one that follows where there is one."""
    from mixtune.execution.estimate import forecast_studies
    from mixtune.profiling.messages import dry_run_table

    checked = [_checked(args, space, needs_data=args.measure) for space, _ in studies]
    (space, n_train, remark), *later = checked
    say(dry_run_table(space, n_train, remark=remark) + "\n")
    for full, n_full, remark in later:
        task = f"{full.task.network}, {full.budget} at {full.base}, {n_full:,} training images{remark}"
        best = f"the {args.top} best found here"
        say(f"then {full.trials} runs on the whole task ({task}): published regimes, and {best}\n")
    if args.measure:
        forecast_studies(_to_run(checked, studies), say, dry_run=True)
    else:
        say("hours are not known before steps are measured: --measure does that here; a search begins with it")
    return 0


def _forecast_both(args: argparse.Namespace, studies: Sequence[tuple[Space, StudyPaths]]) -> bool:
    """Print what the proxy and the full task will take, if neither has begun; return whether it was printed."""
    from mixtune.execution.estimate import forecast_studies
    from mixtune.study.stores import study_exists
    from mixtune.tracking import mlflow_reader

    if args.resume or any(study_exists(*study) for study in studies):
        return False
    for _, paths in studies:
        mlflow_reader.check(paths.tracking_uri)
    checked = [_checked(args, space, needs_data=True) for space, _ in studies]
    forecast_studies(_to_run(checked, studies), say, args.measure)
    return True


def _checked(args: argparse.Namespace, space: Space, needs_data: bool) -> tuple[Space, int, str]:
    """Return the space as trials have it, its number of training images, and a remark where those are not there yet.

    Raises InputError for what a search of it would refuse; with ``needs_data`` also where the data are missing.
    """
    from mixtune.profiling import checks
    from mixtune.search.optuna_factories import check_named

    check_named(space)
    checks.check_sizes(space, args.space)
    space = checks.with_absolute_paths(space)
    if needs_data:
        return space, checks.check_data(space, args.space), ""
    return space, *checks.expected_images(space, args.space)


def _to_run(checked: Sequence[tuple[Space, int, str]], studies: Sequence[tuple[Space, StudyPaths]]) -> list[StudyToRun]:
    from mixtune.execution.estimate import StudyToRun

    titles = ("\nthe proxy", "\nthen the whole task") if len(studies) > 1 else ("",)
    rows = zip(checked, studies, titles, strict=True)
    return [StudyToRun(space, paths, n_train, title) for (space, n_train, _), (_, paths), title in rows]


def _search(
    args: argparse.Namespace,
    space: Space,
    paths: StudyPaths,
    proxy_scores: Mapping[str, float],
    remeasure: bool,
    last: bool = True,
) -> int:
    """Run a study and print its end; return the exit code. last: no other study follows, so print what can be next."""
    from mixtune.study.run_study import run_study, table

    result = run_study(space, args.space, paths, _draw, say, args.resume, proxy_scores, remeasure)
    say(f"\n{table(space, result)}\n")
    for title, command in _next_commands(paths, space, result) if last else ():
        say(f"{title}\n  {command}")
    if result.interrupted:
        print("\ninterrupted; nothing that was finished is lost, and the same command goes on", file=sys.stderr)
        return 130
    if result.best is None:
        print(f"\nno trial of study {space.study} was completed; the reasons are printed above", file=sys.stderr)
        return 1
    return 0


def _paths(args: argparse.Namespace, study: str) -> StudyPaths:
    from mixtune.search.paths import StudyPaths

    folder = Path(args.out or Path("studies") / study).absolute()
    return StudyPaths(folder, args.storage, args.tracking_uri, args.address)


def say(line: str) -> None:
    """Print a line at once, without secrets."""
    print(masked(line), flush=True)


def _draw(uri: str, study: str, folder: Path) -> list[Path]:
    from analysis.pareto import draw_from_store

    return draw_from_store(uri, study, folder)


def _next_commands(paths, space, result):  # type: ignore[no-untyped-def]
    """Yield what a person may want to do next, as a title and a command."""
    from mixtune.search.final import Final
    from mixtune.tracking.views import address

    me, folder, study, workers = python_command(), paths.folder, space.study, space.resources.workers
    resume = [me, "-m mixtune.search", shell_line("--space", folder / "space.yaml", "--out", folder)]
    for flag, value in (
        ("--storage", paths.storage),
        ("--tracking-uri", paths.tracking),
        ("--address", paths.address),
    ):
        if value:
            resume.append(shell_line(flag, value))
    unfinished = result.remaining or result.interrupted
    yield (
        ("continue this study" if unfinished else "add trials to this study"),
        " ".join([*resume, *([] if unfinished else [f"--trials {len(result.outcomes) + 10}"])]),
    )
    if result.best is None:
        return
    if space.final is None:
        cost = Final().cost(len(space.published), space.folds, space.trials)
        yield f"prove it on the test set ({cost})", " ".join([*resume, f"--final {Final().seeds}"])
    launcher = f" -m torch.distributed.run --nproc-per-node {workers}" if workers > 1 else ""
    yield (
        "train the best regime on its own",
        f"{me}{launcher} -m mixtune.train {shell_line('--regime', result.best_file)}",
    )
    uri = paths.tracking_uri
    if paths.tracking is None:
        uri = f"sqlite:///{relative_to_cwd(folder)}/mlflow.db"
    yield (
        "draw the figures again",
        f"{me} -m analysis.pareto {shell_line('--study', study, '--tracking-uri', uri, '--out', folder / 'figures')}",
    )
    if uri.startswith("sqlite"):
        page = address("http://127.0.0.1:5000", result.experiment, study)
        yield (
            f"browse it: start the server, then open {page}\n(MLflow opens its assistant beside it the first time; "
            "closed once, it stays closed)",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
            f"{me} -m mlflow server --workers 1 {shell_line('--backend-store-uri', uri)}",
        )
    else:
        yield "browse it", address(uri, result.experiment, study)


if __name__ == "__main__":
    run_command(main)
