"""Finished: a run that was trained to the end, and trials that only a final has trained so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mixtune.evaluation.curve import Curve, mean_curve
from mixtune.search.domains import Value

BySize = Mapping[int, float]


@dataclass(frozen=True)
class FinishedTrial:
    """A run that was trained to the end: its number, family (a published name or "searched"), regime and curve.

    ``pruned``: in the search, and trained to the end by its final; the curve is the mean over fresh seeds there.
    ``params``: its point of the search space, typed; ``more``: other metrics by size (corruption/...);
    ``seconds``: of training and evaluation together; ``judge``: which images the curve is of; ``run``: its id.
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
        """Whether the sampler made it up."""
        return self.family == "searched"


def by_final(complete: Sequence[FinishedTrial], repeats: Sequence[FinishedTrial]) -> list[FinishedTrial]:
    """The trials that were trained to the end in a final only: on validation images where any of its runs was."""
    made = []
    for number in sorted({r.number for r in repeats} - {t.number for t in complete}):
        mine = [r for r in repeats if r.number == number]
        judge = max(r.judge for r in mine)  # validation before test
        runs = [r for r in mine if r.judge == judge]
        made.append(replace(runs[0], curve=mean_curve([r.curve for r in runs]), more={}, pruned=True))
    return made
