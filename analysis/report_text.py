"""The report's sentences and its table of results: question, budget, answer, uncertainty, regimes compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis import style
from analysis.compare import compare_runs, curves_by_seed
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns
from mixtune.study.statistics import image_error, mean_sd
from mixtune.study.verdict import Verdict, verdict


def question(study: StudyRuns) -> str:
    """Return the question that the study asked."""
    s = study.settings
    return f"How should {s['task.network']} mix image sizes when it is trained on {s['task.dataset']}?"


def budget(study: StudyRuns) -> str:
    """Return the training budget of every regime in words."""
    s = study.settings
    kind = "the same compute" if s.get("budget.spend", "compute") == "compute" else "the same number of images"
    epochs = float(s["budget.epochs"])
    amount = f"{epochs:g} epoch{'s' * (epochs != 1)}"
    if "budget.amount" in s:
        amount = f"{float(s['budget.amount']):g} {s['budget.cost']}"
    return f"{kind} for every regime: {amount} at the base shape {study.base} (size x batch)"


def best_first(study: StudyRuns) -> list[FinishedTrial]:
    """Return the trials that the report compares, the best first.

    Where two or more were trained with several seeds, these come first, by mean score; the others follow by the score
    of the search. The final evaluation's winner, where there is one, is the first.
    """
    repeated = [t for t in study.shown if len(study.repeats_of(t)) > 1]
    if len(repeated) < 2:
        return sorted(study.shown, key=lambda t: -study.score.of(t.curve))
    rest = [t for t in study.shown if t not in repeated]
    first = sorted(repeated, key=lambda t: (t is not study.winner, -_scores(study, t)[0]))
    return first + sorted(rest, key=lambda t: -study.score.of(t.curve))


def answer(study: StudyRuns) -> str:
    """Return the result in one sentence, with the test that supports it or the reason that none does."""
    order = best_first(study)
    best, others = order[0], [t for t in order[1:] if t.searched != order[0].searched]
    mean, deviation = _scores(study, best)
    spread = f" ± {100 * deviation:.2f}" if deviation is not None else ""
    if study.winner is not None:
        result = (
            f"{_named(best)} wins: on the test set it scores {100 * mean:.2f}{spread} % by training on {best.regime}"
        )
        return f"{result}; {_verdict(study, order).sentence()}."
    result = f"{_named(best)} is best: it scores {100 * mean:.2f}{spread} % by training on {best.regime}"
    if not others:
        other = "no published regime" if best.searched else "no searched regime"
        return f"{result}; the study has completed {other} to compare it with."
    second = others[0]
    d = compare_runs(study, second, best)[0]["tested"]
    kind = "the best published regime" if not second.searched else "the best searched regime"
    if len(study.repeats_of(second)) > 1 and any(len(study.repeats_of(t)) < 2 for t in others):
        kind += " that was also trained with several seeds"
    gap = f"{100 * d.value:+.2f} points against {kind}, {_named(second)}"
    if d.p is None:
        return f"{result}; with one run each on the hold-out, {gap}: the noise between seeds may well be as large."
    verdict = "more than noise" if d.significant else "not more than noise"
    return f"{result}, {gap}: {verdict} ({d.test}, 95 % interval {100 * d.low:+.2f} to {100 * d.high:+.2f})."


def uncertainty(study: StudyRuns) -> list[str]:
    """Return sentences on what the numbers do and do not show: noise of seeds and images, choice, pruning, failures."""
    best = best_first(study)[0]
    repeats = study.repeats_of(best)
    sentences = []
    if len(repeats) > 1:
        where = "the test set, which the search never read" if repeats[0].judge == "test" else "the hold-out"
        sentences.append(
            f"± is the standard deviation over {len(repeats)} seeds, each a run of its own, judged on {where}; it "
            "holds initialisation, order of images and augmentation."
        )
        missing = [_named(t) for t in study.shown if len(study.repeats_of(t)) < 2]
        if missing:
            sentences.append(
                f"Trained once only, and judged on the hold-out: {', '.join(missing)}; these do not compare."
            )
    else:
        sentences.append(
            "Every regime was trained once, so the deviation between seeds is unknown; differences of a few points on "
            "small data are often nothing else. The commands below train with several seeds."
        )
    images = study.image_count(repeats[0].judge if repeats else "validation")
    if images and study.metrics.primary.proportion:
        error = 100 * image_error(max(best.curve.qualities), images)
        sentences.append(
            f"An {study.metrics.noun} on {images:,} images has a standard error of about {error:.2f} points from their "
            "choice."
        )
    tried = sum(study.states.values())
    searched = tried - sum(not t.searched for t in study.trials)
    if study.winner is not None:
        sentences.append(f"The winner was chosen before the test set was read: {study.tags['mixtune.best.chosen']}.")
    elif study.best_searched:
        sentences.append(
            f"The searched regime is the best of {searched} that were tried, chosen by its score on the hold-out, "
            "which flatters it: a fresh run on the test set is the fair number."
        )
    if ranks := study.tags.get("mixtune.rank_correlation"):
        sentences.append(f"Pruning trusts early scores: {ranks}.")
    if failed := study.tags.get("mixtune.best.failed"):
        sentences.append(f"Runs of the final that were not completed, so that n is smaller by them: {failed}.")
    states = [f"{n} {state.lower()}" for state, n in sorted(study.states.items())]
    pruned = " (pruned ones are not compared: they were not trained to the end)" * ("PRUNED" in study.states)
    sentences.append(f"Of {tried} trial{'s' * (tried != 1)}: {', '.join(states)}{pruned}.")
    return sentences


class Cell(NamedTuple):
    """A cell of a table: its text, and a second line in small print."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class ComparisonTable:
    """The regimes compared, the best in the first row."""

    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


def comparison_table(study: StudyRuns) -> ComparisonTable:
    """Return every published regime and the best searched one, with deviation and difference to the winner."""
    order = best_first(study)
    best = order[0]
    shown = best.curve.sizes
    head = [Cell("regime", "size x batch (x copies)"), *map(Cell, ("seeds", "score", "to the best"))]
    gaps = _gaps(study, order)
    rows = []
    for t, gap in zip(order, [Cell(""), *gaps], strict=True):
        curves = curves_by_seed(study, t)
        values = [c.by_size() for c in curves.values()]
        scale = study.metrics.primary.scale
        cells = [_with(*mean_sd([by_size[S] for by_size in values]), scale=scale) for S in shown]
        score = _with(*_scores(study, t), digits=2)
        rows.append([Cell(_named(t), t.regime), Cell(str(len(curves))), score, gap, *cells])
    return ComparisonTable([*head, *(Cell(f"{S} px") for S in shown)], rows)


def _verdict(study: StudyRuns, order: Sequence[FinishedTrial]) -> Verdict:
    """Compare the best trial with those that were, like it, trained with several seeds, or like it with one."""
    repeated = len(study.repeats_of(order[0])) > 1
    comparable = [t for t in order if (len(study.repeats_of(t)) > 1) == repeated]
    scores = {_named(t): {seed: study.score.of(c) for seed, c in curves_by_seed(study, t).items()} for t in comparable}
    return verdict(_named(order[0]), scores)


def _gaps(study: StudyRuns, order: Sequence[FinishedTrial]) -> list[Cell]:
    """Return each regime's score minus the best one's, with p adjusted over the regimes by Holm's method."""
    comparisons = {a.name: a for a in _verdict(study, order).against}
    gaps = []
    for a in (comparisons.get(_named(t)) for t in order[1:]):
        p = "" if a is None or a.p is None else "p < 0.001" if a.p < 0.001 else f"p {a.p:.2g}"
        gaps.append(Cell("not comparable") if a is None else Cell(f"{-100 * a.difference.value:+.2f}", p))
    return gaps


def _scores(study: StudyRuns, t: FinishedTrial) -> tuple[float, float | None]:
    return mean_sd([study.score.of(c) for c in curves_by_seed(study, t).values()])


def _named(t: FinishedTrial) -> str:
    return style.label(t.family) + (f" #{t.number}" if t.searched else "")


def _with(mean: float, deviation: float | None, digits: int = 1, scale: float = 100.0) -> Cell:
    digits = digits if scale == 100 else digits + 2
    return Cell(f"{scale * mean:.{digits}f}", f"± {scale * deviation:.{digits}f}" if deviation is not None else "")
