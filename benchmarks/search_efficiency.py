"""How much training a search needs to reach a value: random search, Optuna alone, Ray's ASHA, and mixtune.

    python -m benchmarks.search_efficiency                  about ten minutes on one core; trains nothing
    python -m benchmarks.search_efficiency --alternatives   what mixtune's defaults were chosen from; as long again

All search the space of the recorded table and are answered by it (``contest``, ``simulated``). Cost is training compute
in whole budgets. A value is the score that the best 5, 2 or 1 % of the space have on the whole budget, fixed before any
search; it is reached when a network that was trained on the whole budget scores it.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from benchmarks.common import RESULTS, conclude, quartiles_of
from benchmarks.contest import LIMIT, TOP, Contest, SearchMethod, mixtune_search, optuna_alone, ray_asha
from benchmarks.readme import write
from benchmarks.recorded import TABLE
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import to_plain
from mixtune.search.fidelity import Fidelity
from mixtune.search.final import Final
from mixtune.search.space import Named

HEADLINE, AT_ONCE = 0.01, 4
RANDOM, MIXTUNE = "random search, whole budget", "mixtune"
TO_THE_END = "mixtune, no final: published regimes trained to the end"
ALONE = "mixtune, without the published regimes"
TWO_AT_A_RUNG = "no promotion before 2 were at a rung"
# How the tables name searches that the results name otherwise.
SHOWN = {
    TO_THE_END: "mixtune without `final`",
    ALONE: "mixtune without published regimes",
    TWO_AT_A_RUNG: "`bootstrap_count: 2`",
}

Searches = Mapping[str, tuple[SearchMethod, Mapping[str, Any]]]
SEARCHES: Searches = {
    MIXTUNE: (mixtune_search, {"final": Final()}),  # which trains the published regimes, so the search may prune them
    TO_THE_END: (mixtune_search, {}),
    ALONE: (mixtune_search, {"published": ()}),
    f"mixtune, {AT_ONCE} trials at once": (partial(mixtune_search, at_once=AT_ONCE), {"final": Final()}),
    "Optuna: TPE and successive halving": (optuna_alone, {}),
    "Ray: OptunaSearch and ASHA": (ray_asha, {}),
}


def _halving(**options: Any) -> Named:
    return Named("halving", options)


# Each changes one thing of the first, which is the table's own space.
CHANGES: dict[str, dict[str, Any]] = {
    "compress, 4 rungs; halving; TPE": {},
    TWO_AT_A_RUNG: {"pruner": _halving(bootstrap_count=2)},
    "compress, 3 rungs": {"fidelity": Fidelity("compress", 3, 3)},
    "truncate": {"fidelity": Fidelity("truncate"), "pruner": _halving(reduction_factor=3)},
    "whole budget only": {"fidelity": Fidelity("compress", 1, 3), "pruner": Named("none")},
    "random sampler": {"sampler": Named("random")},
    "TPE begins after 5 trials": {"sampler": Named("tpe", {"n_startup_trials": 5})},
}
# Without the published regimes, so that the search itself is seen.
ALTERNATIVES: Searches = {name: (mixtune_search, {"published": (), **changed}) for name, changed in CHANGES.items()}


def costs(found: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median and quartiles of the budgets by value; an infinite one is written as None."""
    named = dict(zip((f"{100 * top:g} %" for top in TOP), found, strict=True))
    return {top: {k: _plain(v) for k, v in quartiles_of(each).items() if k != "values"} for top, each in named.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return round(value, 3) if math.isfinite(value) else None


def rows_of(by_search: Mapping[str, Sequence[Sequence[float]]], ours: Sequence[str]) -> list[dict[str, Any]]:
    """What ``conclude`` wants: ratios of median costs to reach the headline's part of the space."""
    at = TOP.index(HEADLINE)
    median = {name: statistics.median(found[at]) for name, found in by_search.items()}

    def row(other: str, own: str, at_least: float, aim: float) -> dict[str, Any]:
        ratios = quartiles_of([median[other] / cost for cost in by_search[own][at]])
        what = f"{other} / {own}: compute to reach the best {100 * HEADLINE:g} % of the space"
        return {
            "what": what,
            "ratio": median[other] / median[own],
            "at_least": at_least,
            "aim": aim,
            "quartiles": [_plain(q) for q in ratios["quartiles"]],
        }

    rivals = [name for name in by_search if name.startswith(("Optuna", "Ray"))]
    return [
        *(row(RANDOM, own, 5.0, 12.0) for own in ours),
        *(row(rival, own, 1.0, 2.0) for rival in rivals for own in ours),
    ]


def table(settings: Mapping[str, Any]) -> list[str]:
    """Lines of a table: budgets to each value by search."""
    tops = [f"{100 * top:g} %" for top in TOP]
    lines = [
        "| search | " + " | ".join(f"budgets to the best {top} (quartiles)" for top in tops) + " |",
        "|---|" + "--:|" * len(tops),
    ]
    for name, by_top in settings["costs"].items():
        shown = SHOWN.get(name, name)
        cells = [
            f"{_said(by_top[top]['median'])} ({' to '.join(_said(q) for q in by_top[top]['quartiles'])})"
            for top in tops
        ]
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def block(made: Mapping[str, Any]) -> str:
    """The page's table of searches."""
    settings, (first, second, third, *_) = made["settings"], made["rows"]
    tops = " or ".join(f"{100 * top:g}" for top in TOP)
    said = (
        f"Compute, in full training runs and with pruned trials, until a regime among the best {tops} % of random ones "
        f"has been trained on the whole budget. Median of {settings['repeats']} simulated searches "
        f"({settings['random']:,} of random search), one trial at a time except where the row says otherwise.\n\n"
        f"To reach the best {100 * HEADLINE:g} %, random search needs {first['ratio']:.1f} times the compute of "
        f"mixtune with `final` (goal 5, aim 12). It needs {second['ratio']:.1f} times the compute of mixtune without "
        "`final`, where the search trains every published regime on the whole budget. It needs "
        f"{third['ratio']:.1f} times the compute of mixtune without published regimes: here, published regimes that "
        "grow are among the best.\n\n"
        f"The simulation predicts scores from {settings['regimes']} recorded regimes with Gaussian processes. On "
        f"regimes left out of the fit they explain {100 * settings['explained']['1/1']:.0f} % of the variance of the "
        "score on the whole budget; the rest is added as noise. Optuna and Ray train each trial once, evaluate it at "
        "1/9 and 1/3 of the budget, and are not given the published regimes. "
        "Made by `python -m benchmarks.search_efficiency`."
    )
    return "\n".join([*table(settings), said]) + "\n"


def alternatives_block(made: Mapping[str, Any]) -> str:
    """The page's table of what the defaults were chosen from."""
    said = (
        f"The same for mixtune without published regimes, {made['settings']['repeats']} searches each. Each row "
        "changes one setting of the first row. Made by `python -m benchmarks.search_efficiency --alternatives`."
    )
    ours = {name: found for name, found in made["settings"]["costs"].items() if name != RANDOM}
    return "\n".join([*table({"costs": ours}), said]) + "\n"


def _said(budgets: float | None) -> str:
    return f"> {LIMIT:g}" if budgets is None else f"{budgets:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    p = Parser("benchmarks.search_efficiency", (__doc__ or "").split("\n")[0])
    p.add_argument("--repeats", type=int, default=40, help="searches of each kind (default 40)")
    p.add_argument("--random", type=int, default=10_000, help="random searches, which cost little (default 10000)")
    p.add_argument("--alternatives", action="store_true", help="compare settings of mixtune instead")
    args = parse_args(p, argv)
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    contest = Contest.of(rows)
    by_search: dict[str, list[list[float]]] = {RANDOM: contest.random_search(args.random)}
    for name, (search, changes) in (ALTERNATIVES if args.alternatives else SEARCHES).items():
        by_search[name] = contest.search(search, args.repeats, **changes)
        print(name, {top: found["median"] for top, found in costs(by_search[name]).items()}, flush=True)
    settings = {
        "regimes": len(rows),
        "repeats": args.repeats,
        "random": args.random,
        "limit": LIMIT,
        "values": dict(zip(TOP, contest.values, strict=True)),
        "fidelity": to_plain(contest.space.fidelity),
        "explained": contest.simulated.explained(),
        "costs": {name: costs(found) for name, found in by_search.items()},
        **{name: version(name) for name in ("ray", "optuna")},
    }
    name = "search_alternatives" if args.alternatives else "search_efficiency"
    ours = (next(iter(ALTERNATIVES)),) if args.alternatives else (MIXTUNE, TO_THE_END, ALONE)
    conclude(name, (__doc__ or "").split("\n")[0], settings, rows_of(by_search, ours))
    made = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    write(name, (alternatives_block if args.alternatives else block)(made))
    return 0


if __name__ == "__main__":
    run_command(main)
