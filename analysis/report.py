"""A study on one page: python -m analysis.report --study NAME

Writes report.html, which holds everything (figures too) and can be mailed, opened without a network and printed.
"""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import page, pareto, sizes, style, timeline
from analysis.command import parser, perform
from analysis.compare import by_seed, compare_runs
from analysis.runs import FinishedTrial, StudyRuns
from analysis.statistics import holm, image_error, mean_sd
from mixtune.cli import python, run, short
from mixtune.errors import InputError


def question(study: StudyRuns) -> str:
    """What the study asked."""
    s = study.settings
    return f"How should {s['task.network']} mix image sizes when it is trained on {s['task.dataset']}?"


def budget(study: StudyRuns) -> str:
    """What every regime could spend."""
    s = study.settings
    kind = "the same compute" if s.get("budget.spend", "compute") == "compute" else "the same number of images"
    given = f"{float(s['budget.epochs']):g} epochs"
    if "budget.amount" in s:
        given = f"{float(s['budget.amount']):g} {s['budget.cost']}"
    return f"{kind} for every regime: {given} at the base shape {study.base} (size x batch)"


def ranked(study: StudyRuns) -> list[FinishedTrial]:
    """What the report compares, the best first: by mean score over seeds where there are any, of all or of none."""
    repeated = [t for t in study.shown if len(study.repeats_of(t)) > 1]
    if len(repeated) < 2:
        return sorted(study.shown, key=lambda t: -study.score.of(t.curve))
    rest = [t for t in study.shown if t not in repeated]
    first = sorted(repeated, key=lambda t: -_scores(study, t)[0])
    return first + sorted(rest, key=lambda t: -study.score.of(t.curve))


def answer(study: StudyRuns) -> str:
    """The result in one sentence, with what may be claimed of it."""
    order = ranked(study)
    best, others = order[0], [t for t in order[1:] if t.searched != order[0].searched]
    mean, deviation = _scores(study, best)
    spread = f" ± {100 * deviation:.2f}" if deviation is not None else ""
    said = f"{_named(best)} is best: it scores {100 * mean:.2f}{spread} % by training on {best.regime}"
    if not others:
        return said + "; the study has nothing else to compare it with."
    second = others[0]
    d = compare_runs(study, second, best)[0]["said"]
    kind = "the best published regime" if not second.searched else "the best searched regime"
    gap = f"{100 * d.value:+.2f} points against {kind}, {_named(second)}"
    if d.p is None:
        return f"{said}, {gap}; with one run each, the noise between seeds may well be as large."
    verdict = "more than noise" if d.proven else "not more than noise"
    return f"{said}, {gap}: {verdict} ({d.test}, 95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f})."


def noise(study: StudyRuns) -> list[str]:
    """What the numbers can and cannot bear."""
    best = ranked(study)[0]
    repeats = study.repeats_of(best)
    said = []
    if len(repeats) > 1:
        where = "the test set, which the search never read" if repeats[0].judge == "test" else "the hold-out"
        said.append(
            f"± is the standard deviation over {len(repeats)} seeds, each a run of its own, judged on {where}; it "
            "holds initialisation, order of images and augmentation."
        )
        missing = [_named(t) for t in study.shown if len(study.repeats_of(t)) < 2]
        if missing:
            said.append(f"Trained once only, and judged on the hold-out: {', '.join(missing)}; these do not compare.")
    else:
        said.append(
            "Every regime was trained once, so the deviation between seeds is unknown; differences of a few points on "
            "small data are often nothing else. The commands below train with several seeds."
        )
    images = study.images(repeats[0].judge if repeats else "validation")
    top = max(p.top1 for p in best.curve.points)
    if images:
        error = 100 * image_error(top, images)
        said.append(
            f"Choosing {images:,} other images to judge on would move an accuracy by about ± {error:.2f} points."
        )
    tried = sum(study.states.values())
    searched = sum(t.searched for t in study.trials)
    said.append(
        f"The best of {searched} searched regime{'s' * (searched != 1)} is chosen by its score on the hold-out, which "
        f"flatters it: a fresh run on the test set is the fair number. Of {tried} trials "
        + ", ".join(f"{n} {state.lower()}" for state, n in sorted(study.states.items()))
        + " (pruned ones are not compared: they were not trained to the end)."
    )
    return said


def results(study: StudyRuns) -> str:
    """The table: every published regime and the best searched one, with deviation and difference to the winner."""
    order = ranked(study)
    best = order[0]
    shown = best.curve.sizes
    head = ["regime\nsize x batch (x copies)", "seeds", "score", "to the best", *(f"{S} px" for S in shown)]
    gaps = _gaps(study, best, order[1:])
    rows = []
    for t, gap in zip(order, ["", *gaps], strict=True):
        curves = by_seed(study, t)
        cells = [_with(*mean_sd([c.at(S).top1 for c in curves.values()])) for S in shown]
        score = _with(*_scores(study, t), digits=2)
        rows.append([f"{_named(t)}\n{t.regime}", str(len(curves)), score, gap, *cells])
    return page.table(head, rows, winner=0)


def _gaps(study: StudyRuns, best: FinishedTrial, others: Sequence[FinishedTrial]) -> list[str]:
    """Each regime's score less the best one's, with p adjusted over the regimes by Holm's method."""
    fair = [(len(study.repeats_of(best)) > 1) == (len(study.repeats_of(t)) > 1) for t in others]
    found = [compare_runs(study, best, t)[0]["said"] if ok else None for t, ok in zip(others, fair, strict=True)]
    adjusted = iter(holm([d.p for d in found if d is not None and d.p is not None]))
    gaps = []
    for d in found:
        p = "" if d is None or d.p is None else f" (p {next(adjusted):.2g})"
        gaps.append("not comparable" if d is None else f"{100 * d.value:+.2f}{p}")
    return gaps


def _scores(study: StudyRuns, t: FinishedTrial) -> tuple[float, float | None]:
    return mean_sd([study.score.of(c) for c in by_seed(study, t).values()])


def _named(t: FinishedTrial) -> str:
    return style.label(t.family) + (f" #{t.number}" if t.searched else "")


def _with(mean: float, deviation: float | None, digits: int = 1) -> str:
    return f"{100 * mean:.{digits}f}" + (f" ± {100 * deviation:.{digits}f}" if deviation is not None else "")


def again(study: StudyRuns) -> tuple[list[str], list[str]]:
    """Commands that run the study again, and that train and use the winner."""
    me, best = python(), ranked(study)[0]
    here = study.uri.startswith("sqlite:///")
    folder = short(Path(study.uri.removeprefix("sqlite:///")).parent) if here else Path("studies") / study.name
    file = folder / "trials" / f"{best.number:04d}" / "regime.yaml"
    at = [] if folder == Path("studies") / study.name else ["--tracking-uri", study.uri]

    def line(module: str, *words: str | Path) -> str:
        return f"{me} -m {module} " + shlex.join(map(str, words))

    out = f"{study.name}-winner"
    rerun = [line("mixtune.search", "--space", folder / "space.yaml", "--out", f"{folder}-again")]
    use = [
        line("mixtune.train", "--regime", file, "--test", "--seeds", "3", "--out", out),
        line("analysis.record", "--study", study.name, *at, out),
        line("mixtune.export", "--run", f"{out}/seed{_seed(study)}", "--network", f"{out}/network"),
    ]
    return rerun, use


def _seed(study: StudyRuns) -> int:
    return int(study.settings.get("seed", 0))


def write(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write report.html into ``folder``. Raises InputError when it cannot be written to."""
    best, s = ranked(study)[0], study.settings
    rerun, use = again(study)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch)
        front = pareto.draw_study(study, kept)[0][0]
        lines = sizes.draw_study(study, kept)[0][0]
        when = timeline.draw_study(study, kept)[0][0]
        columns = min(4, len(study.shown))
        over = timeline.WIDTH * columns + 0.6
        body = [
            page.heading_one(question(study)),
            page.paragraph(f"mixtune study {study.name}; {budget(study)}.", "under"),
            page.paragraph(answer(study), "answer"),
            page.heading("Accuracy against cost, and away from the training sizes"),
            '<div class="pair">',
            page.figure(
                front,
                "accuracy against inference cost, one line per regime",
                "One network per regime, tested at every size. Bold marks: no other network is better at that cost.",
            ),
            page.figure(
                lines,
                "accuracy against test image size, one line per regime",
                "The same networks by test size; the bars below show which sizes each regime trained on.",
            ),
            "</div>",
            page.heading("The best searched regime beside the published ones"),
            page.paragraph(
                f"In %. Score: {study.score}; p is Holm-adjusted over the rows.",
                "under",
            ),
            results(study),
            page.heading("How sure is that?"),
            *(page.paragraph(text) for text in noise(study)),
            page.heading("What each regime does over the budget"),
            page.figure(
                when,
                "image size over the training budget, one panel per regime",
                "Area is compute; beside each size stand the batch size B and the copies D.",
                min(over, 5.5),
            ),
            page.heading("Use the winner"),
            page.paragraph(
                "Train it on the whole training set with several seeds, add the runs to the study (this report then "
                "shows deviations), and write the network out for use. mixtune.export --help has the formats, and "
                "picks a size by need with --at-most and --at-least."
            ),
            page.commands(*use),
            page.heading("Run it again"),
            page.commands(*rerun),
            page.paragraph("On a CPU, the same regime file and seed give the same weights and score to the last bit."),
            page.facts(_facts(study, best)),
        ]
    text = page.page(f"{question(study)} (study {s.get('study', study.name)})", body)
    path = folder / "report.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written to ({err.strerror}); name another folder") from None
    return [path], [answer(study)]


def _facts(study: StudyRuns, best: FinishedTrial) -> list[tuple[str, str]]:
    s = study.settings
    seconds = sum(t.seconds or 0 for t in study.trials)
    known = [
        ("data", f"{s['task.dataset']}" + (f", digest {s['data.digest']}" if "data.digest" in s else "")),
        ("network", s["task.network"]),
        ("searched sizes", s.get("search.sizes", "")),
        ("test sizes", s.get("evaluate.sizes", "")),
        ("seed", s.get("seed", "")),
        ("trials", ", ".join(f"{n} {state.lower()}" for state, n in sorted(study.states.items()))),
        ("winner", f"trial {best.number}"),
        ("complete trials took", f"{math.ceil(seconds / 60)} min in all, training and evaluation"),
        ("mixtune", study.tags.get("mixtune.version", "")),
        ("MLflow", f"{study.uri}, parent run {study.parent}"),
    ]
    return [(k, v) for k, v in known if v]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = parser("analysis.report", __doc__)

    def draw(study: StudyRuns, folder: Path, args: Any) -> tuple[list[Path], list[str]]:
        return write(study, Path(args.out) if args.out else Path("studies") / study.name)

    return perform(p, argv, draw)


if __name__ == "__main__":
    run(main)
