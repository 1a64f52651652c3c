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

from mixtune.cli import Parser, parse_args, python, run, shell, short
from mixtune.config import load_config
from mixtune.errors import InputError
from mixtune.secrets import MaskSecrets, masked

if TYPE_CHECKING:
    from mixtune.execution.estimate import Stage
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
        dest="found",
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
    """Parse, call, print."""
    args = parse_args(parser(), argv)
    logging.basicConfig(format="note: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(MaskSecrets())
    asked = {"trials": args.trials, "final.seeds": args.final}
    more = [f"{key}={value}" for key, value in asked.items() if value is not None]

    if args.address and (Path.home() / ".ray" / "auth_token").exists():
        # A cluster asks for the token by default, but Ray hands it out only when told to before it is imported.
        os.environ.setdefault("RAY_AUTH_MODE", "token")

    from mixtune.search.space import Space

    space = load_config(args.space, Space, [*args.assignments, *more])
    if args.proxy and args.found:
        raise InputError("--proxy searches, and --from names a study that was: give one of them")
    if not (args.proxy or args.found):
        places = _places(args, space.study)
        return _dry_run(args, [(space, places)]) if args.dry_run else _search(args, space, places, {}, args.measure)
    from mixtune.study.proxy import carried, on_proxy, to_follow

    whole, told = _places(args, f"{space.study}-carried"), False
    places = replace(whole, folder=Path(args.found).absolute() if args.found else whole.folder / "proxy")
    if args.proxy:
        stages = [(on_proxy(space, args.space), places), (to_follow(space, args.top), whole)]
        if args.dry_run:
            return _dry_run(args, stages)
        told = _tell_first(args, stages)
        if code := _search(args, *stages[0], {}, args.measure and not told, last=False):
            return code
    space, scores = carried(space, places.folder, args.top, args.storage)
    if args.dry_run:
        return _dry_run(args, [(space, whole)])
    return _search(args, space, whole, scores, args.measure and not told)


def _dry_run(args: argparse.Namespace, stages: Sequence[tuple[Space, StudyPaths]]) -> int:
    """Tell of the study, and of the one that follows where there is one."""
    from mixtune.execution.estimate import ahead
    from mixtune.profiling import preflight

    found = [_checked(args, space, there=args.measure) for space, _ in stages]
    (space, n, missed), *later = found
    say(preflight.plan(space, n, missed=missed) + "\n")
    for full, n_full, missed in later:
        what = f"{full.task.network}, {full.budget} at {full.base}, {n_full:,} training images{missed}"
        best = f"the {args.top} best found here"
        say(f"then {full.trials} runs on the whole task ({what}): published regimes, and {best}\n")
    if args.measure:
        ahead(_stages(found, stages), say, dry=True)
    else:
        say("hours are not known before steps are measured: --measure does that here; a search begins with it")
    return 0


def _tell_first(args: argparse.Namespace, stages: Sequence[tuple[Space, StudyPaths]]) -> bool:
    """Say what the proxy and the whole task will take, if neither has begun; whether it was said."""
    from mixtune.execution.estimate import ahead
    from mixtune.study.stores import begun
    from mixtune.tracking import mlflow_reader

    if args.resume or any(begun(*stage) for stage in stages):
        return False
    for _, places in stages:
        mlflow_reader.check(places.tracking_uri)
    ahead(_stages([_checked(args, space, there=True) for space, _ in stages], stages), say, args.measure)
    return True


def _checked(args: argparse.Namespace, space: Space, there: bool) -> tuple[Space, int, str]:
    """The space as trials have it, and ``preflight.expected_images``; with ``there`` the data must be, as for steps.

    Raises InputError for what a search of it would refuse.
    """
    from mixtune.profiling import preflight
    from mixtune.search.optuna_factories import check_named

    check_named(space)
    preflight.check_sizes(space, args.space)
    space = preflight.in_full(space)
    if there:
        return space, preflight.check_data(space, args.space), ""
    return space, *preflight.expected_images(space, args.space)


def _stages(found: Sequence[tuple[Space, int, str]], stages: Sequence[tuple[Space, StudyPaths]]) -> list[Stage]:
    from mixtune.execution.estimate import Stage

    titles = ("\nthe proxy", "\nthen the whole task") if len(stages) > 1 else ("",)
    known = zip(found, stages, titles, strict=True)
    return [Stage(space, n, places, title) for (space, n, _), (_, places), title in known]


def _search(
    args: argparse.Namespace,
    space: Space,
    places: StudyPaths,
    scores: Mapping[str, float],
    measure: bool,
    last: bool = True,
) -> int:
    """last: whether no other search follows, but what people do next."""
    from mixtune.study.run_study import run_study, table

    result = run_study(space, args.space, places, _draw, say, args.resume, scores, measure)
    say(f"\n{table(space, result)}\n")
    for title, command in _next_commands(places, space, result) if last else ():
        say(f"{title}\n  {command}")
    if result.interrupted:
        print("\ninterrupted; nothing that was finished is lost, and the same command goes on", file=sys.stderr)
        return 130
    if result.best is None:
        print(f"\nno trial of study {space.study} was completed; the reasons are printed above", file=sys.stderr)
        return 1
    return 0


def _places(args: argparse.Namespace, study: str) -> StudyPaths:
    from mixtune.search.paths import StudyPaths

    folder = Path(args.out or Path("studies") / study).absolute()
    return StudyPaths(folder, args.storage, args.tracking_uri, args.address)


def say(line: str) -> None:
    """To the console, at once."""
    print(masked(line), flush=True)


def _draw(uri: str, study: str, folder: Path) -> list[Path]:
    from analysis.pareto import draw_from_store

    return draw_from_store(uri, study, folder)


def _next_commands(places, space, result):  # type: ignore[no-untyped-def]
    from mixtune.search.final import Final
    from mixtune.tracking.views import address

    me, folder, study, workers = python(), places.folder, space.study, space.resources.workers
    resume = [me, "-m mixtune.search", shell("--space", folder / "space.yaml", "--out", folder)]
    for flag, value in (
        ("--storage", places.storage),
        ("--tracking-uri", places.tracking),
        ("--address", places.address),
    ):
        if value:
            resume.append(shell(flag, value))
    unfinished = result.remaining or result.interrupted
    yield (
        ("continue this study" if unfinished else "add trials to this study"),
        " ".join([*resume, *([] if unfinished else [f"--trials {len(result.outcomes) + 10}"])]),
    )
    if result.best is None:
        return
    if space.final is None:
        said = Final().cost(len(space.published), space.folds, space.trials)
        yield f"prove it on the test set ({said})", " ".join([*resume, f"--final {Final().seeds}"])
    launcher = f" -m torch.distributed.run --nproc-per-node {workers}" if workers > 1 else ""
    yield "train the best regime on its own", f"{me}{launcher} -m mixtune.train {shell('--regime', result.best_file)}"
    uri = places.tracking_uri
    if places.tracking is None:
        uri = f"sqlite:///{short(folder)}/mlflow.db"
    yield (
        "draw the figures again",
        f"{me} -m analysis.pareto {shell('--study', study, '--tracking-uri', uri, '--out', folder / 'figures')}",
    )
    if uri.startswith("sqlite"):
        page = address("http://127.0.0.1:5000", result.experiment, study)
        yield (
            f"browse it: start the server, then open {page}\n(MLflow opens its assistant beside it the first time; "
            "closed once, it stays closed)",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false "
            f"{me} -m mlflow server --workers 1 {shell('--backend-store-uri', uri)}",
        )
    else:
        yield "browse it", address(uri, result.experiment, study)


if __name__ == "__main__":
    run(main)
