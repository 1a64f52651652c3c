"""Compare two runs or two studies and test the difference: python -m analysis.compare --study NAME A B

A and B are published names, trial numbers or "searched" (the best searched one). Runs that were repeated with several
seeds (analysis.add_runs) are compared over the seeds, paired where the seeds are the same, else by Welch's test. With
--other NAME instead of A B, two studies are compared over the regimes that both hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns, read_study, tracking_uri, trial_names
from mixtune.cli import run_command
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve
from mixtune.study.statistics import Difference, difference, holm, mean_sd, over_pairs
from mixtune.tasks.registry import DEFAULT


def curves_by_seed(study: StudyRuns, trial: FinishedTrial, judge: str | None = None) -> dict[int, Curve]:
    """Return the curves of a regime by seed: of its repeated runs, or of its one trial where it has none."""
    repeats = [r for r in study.repeats_of(trial) if judge in (None, r.judge)]
    return {r.seed: r.curve for r in repeats} if len(repeats) > 1 else {trial.seed: trial.curve}


def compare_runs(study: StudyRuns, a: FinishedTrial, b: FinishedTrial) -> list[dict[str, Any]]:
    """Return a row for the score and one for each test size: B minus A, its interval, and the test used.

    The p values of the sizes are adjusted by Holm's method. That of the score is not: it is the one question that was
    asked beforehand.
    """
    curves = curves_by_seed(study, a), curves_by_seed(study, b)
    if min(map(len, curves)) < 2:  # only one was repeated: the trials of the search compare like with like
        curves = {a.seed: a.curve}, {b.seed: b.curve}
    judge = (study.repeats_of(a) or [a])[0].judge if len(curves[0]) > 1 else a.judge
    images = study.image_count(judge)
    sizes = [S for S in a.curve.sizes if S in b.curve.sizes]

    def of(value: Callable[[Curve], float], count: int | None) -> Difference:
        first, second = ({seed: value(curve) for seed, curve in by_seed.items()} for by_seed in curves)
        return difference(first, second, count)

    differences: list[tuple[str, int | None, Difference]] = [("score", None, of(study.score.of, None))]
    primary = study.metrics.primary
    images = images if primary.proportion else None  # whose choice is the noise of proportions only
    differences += [(primary.name, S, of(lambda c, S=S: c.by_size()[S], images)) for S in sizes]  # type: ignore[misc]
    adjusted = iter(holm([d.p for _, S, d in differences if S is not None and d.p is not None]))
    rows = []
    for metric, S, d in differences:
        p = next(adjusted) if S is not None and d.p is not None else d.p
        deviations = [
            mean_sd([study.score.of(c) if S is None else c.by_size()[S] for c in each.values()])[1] for each in curves
        ]
        row: dict[str, Any] = {"metric": metric, "S": S, "a": d.a, "b": d.b, "a_deviation": deviations[0]}
        row |= {"b_deviation": deviations[1], "difference": d.value, "low": d.low, "high": d.high, "p": d.p}
        rows.append(row | {"p_adjusted": p, "test": d.test, "judge": judge, "tested": d})
    return rows


def draw_runs(study: StudyRuns, a: FinishedTrial, b: FinishedTrial, folder: Path) -> tuple[list[Path], list[str]]:
    """Write figure and table of two runs of a study; return the files and the sentences to print.

    Raises InputError when both are the same run.
    """
    if a.number == b.number:
        raise InputError(f"{trial_names([a])[0]} is compared with itself; name two different runs")
    rows = compare_runs(study, a, b)
    sentences = [rows[0]["tested"].sentence(*trial_names([a, b])) + f" [score: {study.score_text}]"]
    primary = study.metrics.primary
    digits = 2 if primary.unit else 4
    significant = [r for r in rows[1:] if r["p_adjusted"] is not None and r["p_adjusted"] < 0.05]
    if rows[1]["p"] is not None:
        each = (f"{r['S']} px ({primary.scale * r['difference']:+.{digits}f})" for r in significant)
        where = ", ".join(each) or "at no size"
        sentences.append(
            f"{primary.label} differs, Holm-adjusted over {len(rows) - 1} sizes: {where} [{rows[1]['test']}]"
        )
    with style.figure(2.5) as figure:
        axes = figure.subplots()
        x = [r["S"] for r in rows[1:]]
        scale = primary.scale
        y = [scale * r["difference"] for r in rows[1:]]
        if rows[1]["p"] is not None:
            errors = [
                [scale * (r["difference"] - r["low"]) for r in rows[1:]],
                [scale * (r["high"] - r["difference"]) for r in rows[1:]],
            ]
            style.error_bars(axes, x, y, errors, "0.3")
        axes.axhline(0, color="0.4", lw=0.7, ls="--")
        axes.plot(x, y, "-", color="#0072B2", lw=1.0)
        for r in rows[1:]:  # filled where the difference is shown, open where it may be noise
            face = "#0072B2" if r in significant else "white"
            axes.plot(r["S"], scale * r["difference"], "o", color="#0072B2", mfc=face, ms=5, zorder=3)
        style.size_axis(axes, x)
        axes.set_ylabel(f"difference in {primary.label}" + (", points" if primary.unit else ""))
        first, second = (style.label(t.family) + (f" #{t.number}" if t.searched else "") for t in (a, b))
        style.figure_title(figure, f"{study.name}: {second} minus {first}")
        bars = (
            "bars: 95 % intervals; filled: shown (Holm, 5 %)" if rows[1]["p"] is not None else "one run each: no test"
        )
        axes.set_xlabel(f"test image size, px\n{bars}")
        style.grid(axes)
        table = [{k: v for k, v in r.items() if k != "tested"} for r in rows]
        return style.save_figure(figure, folder, "compare", table), sentences


def draw_studies(one: StudyRuns, two: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write figure and table of the scores of the regimes that two studies share; return files and sentences.

    Raises InputError when the studies score differently, so that the numbers do not compare.
    """
    for key in ("score.measure", "score.S", "score.gmacs", "task.kind", "task.dataset", "evaluate.sizes"):
        usual = DEFAULT if key == "task.kind" else None  # which studies of earlier versions do not name
        its, of_first = (study.settings.get(key, usual) for study in (two, one))
        if its != of_first:
            raise InputError(
                f"--other {two.name}: its {key} is {its} and that of {one.name} {of_first}, so their scores do not "
                "compare"
            )
    first, second = _by_family(one), _by_family(two)
    shared = [family for family in first if family in second]
    scores = [(one.score.of(first[f].curve), two.score.of(second[f].curve)) for f in shared]
    mean_difference = over_pairs([a for a, _ in scores], [b for _, b in scores], "shared regimes")
    a, b = (one.name, two.name) if one.name != two.name else (f"{one.name} (first)", f"{two.name} (second)")
    sentences = [mean_difference.sentence(a, b) + f" [score: {one.score_text}]", *_other_settings(one, two)]
    with style.figure(1.0 + 0.24 * len(shared)) as figure:
        axes = figure.subplots()
        for i, (x, y) in enumerate(scores):
            line_style = style.line_style(shared[i], i)
            axes.plot([100 * x, 100 * y], [i, i], color=line_style.colour, lw=1.2)
            axes.plot(100 * x, i, "o", color=line_style.colour, mfc="white", ms=5)
            axes.plot(100 * y, i, "o", color=line_style.colour, ms=5)
        axes.set_yticks(range(len(shared)), [style.label(f) for f in shared])
        axes.set_ylim(len(shared) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score, %")
        style.figure_title(figure, f"open: {a}, filled: {b}")
        style.grid(axes, "both")
        rows = [{"family": f, "a": x, "b": y, "difference": y - x} for f, (x, y) in zip(shared, scores, strict=True)]
        d = mean_difference
        mean = {"family": "mean", "a": d.a, "b": d.b, "difference": d.value, "low": d.low, "high": d.high}
        return style.save_figure(figure, folder, "compare", [*rows, mean | {"p": d.p, "test": d.test}]), sentences


def _other_settings(one: StudyRuns, two: StudyRuns) -> list[str]:
    """Return a sentence on the settings that differ although neither study searched them, or none."""
    parts = ("task.", "base.", "budget.", "recipe.", "evaluate.", "folds", "seed", "data.digest")
    keys = sorted(k for k in one.settings.keys() & two.settings.keys() if k.startswith(parts) and k != "task.data")
    differing = [f"{k} {one.settings[k]} and {two.settings[k]}" for k in keys if one.settings[k] != two.settings[k]]
    return [f"they differ in more than what was searched: {'; '.join(differing)}"] if differing else []


def _by_family(study: StudyRuns) -> Mapping[str, FinishedTrial]:
    return {t.family: t for t in study.shown}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = study_parser("analysis.compare", __doc__)
    p.add_argument("runs", nargs="*", metavar="RUN", help="two runs of the study: names, trial numbers or 'searched'")
    p.add_argument("--other", metavar="NAME", help="compare with this study instead")
    p.add_argument("--other-uri", metavar="URI", help="where the other study lies (default: as the first, or its own)")

    def draw(study: StudyRuns, folder: Path, args: Any) -> tuple[list[Path], list[str]]:
        if bool(args.runs) == bool(args.other or args.other_uri) or len(args.runs) not in (0, 2):
            raise InputError("name either two runs, for example: fixed searched, or another study with --other")
        if args.runs:
            return draw_runs(study, study.find_trial(args.runs[0]), study.find_trial(args.runs[1]), folder)
        other = args.other or args.study
        uri = args.other_uri or args.tracking_uri or tracking_uri(None, other)
        return draw_studies(study, read_study(uri, other), folder)

    return run_on_study(p, argv, draw)


if __name__ == "__main__":
    run_command(main)
