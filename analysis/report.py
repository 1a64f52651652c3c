"""Write the report of a study, a page of its own: python -m analysis.report --study NAME

report.html holds its figures, loads nothing, and prints.
"""

from __future__ import annotations

import base64
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from analysis import pareto, sizes, style, timeline
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.report_text import answer, best_first, budget, comparison_table, question, uncertainty
from analysis.study_runs import StudyRuns
from mixtune.cli import format_duration, python_command, relative_to_cwd, run_command
from mixtune.errors import InputError
from mixtune.search.final import Final


def commands(study: StudyRuns) -> tuple[list[str], list[str]]:
    """Return the commands that run the study again, and those that prove, train and use the winner."""
    best = best_first(study)[0]
    local = study.uri.startswith("sqlite:///")
    folder = (
        relative_to_cwd(Path(study.uri.removeprefix("sqlite:///")).parent) if local else Path("studies") / study.name
    )
    tracking = [] if local else ["--tracking-uri", study.uri]

    def line(module: str, *words: str | Path) -> str:
        return f"{python_command()} -m {module} " + shlex.join(map(str, words))

    rerun = [line("mixtune.search", "--space", folder / "space.yaml", "--out", f"{folder}-again")]
    final = ["--final", str(Final().seeds)]
    evaluate = line("mixtune.search", "--space", folder / "space.yaml", "--out", folder, *tracking, *final)
    label = best.family if not best.searched else f"searched{best.number}"
    run_folder = folder / "final" / label / f"seed{int(study.settings.get('seed', 0))}"
    export = line("mixtune.export", "--run", run_folder, "--network", f"{study.name}-winner")
    use = [export] if study.winner is not None else [evaluate, export]
    return rerun, use


class Picture(NamedTuple):
    """A figure inside the page: a data URI, what it shows in words, the text below it and its width in inches."""

    source: str
    alt: str
    caption: str
    inches: float


def picture(png: Path, alt: str, caption: str, inches: float = style.WIDTH) -> Picture:
    """Return a PNG file as a picture of the page; at ``inches`` its text has the size of the page's small print."""
    data = base64.b64encode(png.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", alt, caption, inches)


def render(study: StudyRuns) -> str:
    """Return the page: the template ``report.html.jinja`` with this study's values, all of them escaped."""
    noun = study.metrics.noun
    rerun, use = commands(study)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        front = pareto.draw_study(study, folder)[0][0]
        curves = sizes.draw_study(study, folder)[0][0]
        columns = min(4, len(study.shown))
        regimes = timeline.draw_study(study, folder, columns)[0][0]
        pictures = {
            "front": picture(
                front,
                f"{noun} against inference cost, one line per regime",
                "One network per regime, tested at every size. Bold marks: no other network is better at that cost."
                + (" Means and deviations over seeds, on the test set." if study.winner else ""),
            ),
            "sizes": picture(
                curves,
                f"{noun} against test image size, one line per regime",
                "The same networks by test size; the bars below show which sizes each regime trained on.",
            ),
            "timeline": picture(
                regimes,
                "image size over the training budget, one panel per regime",
                "Area is compute; beside each size stand the batch size B and the copies D.",
                0.75 * (timeline.WIDTH * columns + 0.6),
            ),
        }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("report.html.jinja").render(
        study=study.name,
        question=question(study),
        budget=budget(study),
        answer=answer(study),
        score=study.score_text,
        noun=noun,
        metric=study.metrics.primary,
        comparison=comparison_table(study),
        noise=uncertainty(study),
        has_final=study.winner is not None,
        use=use,
        rerun=rerun,
        facts=_facts(study, best_first(study)[0]),
        **pictures,
    )


def write_report(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write report.html into ``folder``. Raises InputError when it cannot be written to."""
    text = render(study)
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
        (
            "a run took",
            f"{format_duration(statistics.median(seconds))}, evaluation included (median)" if seconds else "",
        ),
        ("mixtune", study.tags.get("mixtune.version", "")),
        ("MLflow", f"{study.uri}, parent run {study.parent}"),
    ]
    return [(k, v) for k, v in known if v]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = study_parser("analysis.report", __doc__)

    def draw(study: StudyRuns, folder: Path, args: Any) -> tuple[list[Path], list[str]]:
        return write_report(study, Path(args.out) if args.out else Path("studies") / study.name)

    return run_on_study(p, argv, draw)


if __name__ == "__main__":
    run_command(main)
