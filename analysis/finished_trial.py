"""A trial that was trained to the end, by the search or by the final evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mixtune.evaluation.curve import Curve, mean_curve
from mixtune.search.domains import Value

BySize = Mapping[int, float]


@dataclass(frozen=True)
class FinishedTrial:
    """A run that was trained to the end: its number, family (a published name or "searched"), regime and curve.

    ``params``: its point of the search space; ``more``: further metrics by test size (corruption/...); ``seconds``: of
    training and evaluation together; ``judge``: the images it was evaluated on, "validation" or "test"; ``run``: its id
    in MLflow; ``pruned``: the search pruned it and the final evaluation trained it to the end, so that its curve is the
    mean over the final's seeds.
    """

    number: int
    family: str
    regime: str
    curve: Curve
    params: Mapping[str, Value] = field(default_factory=dict)
    more: Mapping[str, BySize] = field(default_factory=dict)
    seconds: float | None = None
    seed: int = 0
    judge: str = "validation"
    run: str = ""
    pruned: bool = False

    @property
    def searched(self) -> bool:
        """Return whether the sampler proposed it, so that it is not a published regime."""
        return self.family == "searched"


def trials_of_final(complete: Sequence[FinishedTrial], repeats: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """Return the trials that only the final evaluation trained to the end, each with the mean curve over its runs.

    The runs on validation images are taken where there are any, else those on the test set.
    """
    trials = []
    for number in sorted({r.number for r in repeats} - {t.number for t in complete}):
        own = [r for r in repeats if r.number == number]
        judge = max(r.judge for r in own)  # "validation" is after "test" in the alphabet
        runs = [r for r in own if r.judge == judge]
        trials.append(replace(runs[0], curve=mean_curve([r.curve for r in runs]), more={}, pruned=True))
    return trials
