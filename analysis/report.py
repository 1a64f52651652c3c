"""A study on one page: python -m analysis.report --study NAME

Writes report.html, which holds everything (figures too) and can be mailed, opened without a network and printed.
"""

from __future__ import annotations

import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import page, pareto, sizes, timeline
from analysis.command import parser, perform
from analysis.findings import answer, budget, noise, question, ranked, results
from analysis.finished import FinishedTrial
from analysis.runs import StudyRuns
from mixtune.cli import duration, python, run, short
from mixtune.errors import InputError
from mixtune.search.final import Final


def again(study: StudyRuns) -> tuple[list[str], list[str]]:
    """Commands that run the study again, and that train and use the winner."""
    me, order = python(), ranked(study)
    best = order[0]
    here = study.uri.startswith("sqlite:///")
    folder = short(Path(study.uri.removeprefix("sqlite:///")).parent) if here else Path("studies") / study.name
    at = [] if here else ["--tracking-uri", study.uri]

    def line(module: str, *words: str | Path) -> str:
        return f"{me} -m {module} " + shlex.join(map(str, words))

    rerun = [line("mixtune.search", "--space", folder / "space.yaml", "--out", f"{folder}-again")]
    proof = line(
        "mixtune.search", "--space", folder / "space.yaml", "--out", folder, *at, "--final", str(Final().seeds)
    )
    label = best.family if not best.searched else f"searched{best.number}"
    run_folder = folder / "final" / label / f"seed{int(study.settings.get('seed', 0))}"
    export = line("mixtune.export", "--run", run_folder, "--network", f"{study.name}-winner")
    use = [export] if study.winner is not None else [proof, export]
    return rerun, use


def write(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write report.html into ``folder``. Raises InputError when it cannot be written to."""
    best, s = ranked(study)[0], study.settings
    rerun, use = again(study)
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch)
        front = pareto.draw_study(study, kept)[0][0]
        lines = sizes.draw_study(study, kept)[0][0]
        columns = min(4, len(study.shown))
        when = timeline.draw_study(study, kept, columns)[0][0]
        body = [
            page.heading_one(question(study)),
            page.paragraph(f"mixtune study {study.name}; {budget(study)}.", "under"),
            page.paragraph(answer(study), "answer"),
            page.heading("Accuracy against cost, and away from the training sizes"),
            '<div class="pair">',
            page.figure(
                front,
                "accuracy against inference cost, one line per regime",
                "One network per regime, tested at every size. Bold marks: no other network is better at that cost."
                + (" Means and deviations over seeds, on the test set." if study.winner else ""),
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
                0.75 * (timeline.WIDTH * columns + 0.6),
            ),
            page.heading("Use the winner"),
            page.paragraph(
                (
                    ""
                    if study.winner is not None
                    else "Train the leaders again with fresh seeds, and what they choose and the published regimes on "
                    "the whole training set for the test set (this report then shows deviations and tests). "
                )
                + "Write the network out for use: mixtune.export --help has the formats, and picks a size by need with "
                "--at-most and --at-least."
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
    seconds = [t.seconds for t in study.trials if t.seconds]
    known = [
        ("data", f"{s['task.dataset']}" + (f", digest {s['data.digest']}" if "data.digest" in s else "")),
        ("network", s["task.network"]),
        ("searched sizes", s.get("search.sizes", "")),
        ("test sizes", s.get("evaluate.sizes", "")),
        ("seed", s.get("seed", "")),
        ("trials", ", ".join(f"{n} {state.lower()}" for state, n in sorted(study.states.items()))),
        ("winner", f"trial {best.number}"),
        ("a run took", f"{duration(statistics.median(seconds))}, evaluation included (median)" if seconds else ""),
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
