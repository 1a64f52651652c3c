"""The training runs of a trial: shares of the budget first, then the other folds.

Regimes are compared at equal shares of the budget, so that step sizes do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fidelity:
    """How a trial is judged before it has spent its whole budget.

    compress: a rung trains the whole schedule, growth and learning rate included, on a share of the budget; a trial
    that is not pruned is trained again from scratch on the next share. Shares are 1/factor^(rungs-1), ..., 1/factor, 1;
    with one rung there is the whole budget only.
    truncate: one training run, judged on the way at ``evaluate.reports`` equal shares of the budget. It costs less per
    survivor, and is unfair to regimes that grow and to annealed learning rates: on the recorded table its scores ranked
    regimes far worse (``benchmarks.fidelity``), which is why compress is the default.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: Literal["compress", "truncate"] = "compress"
    rungs: int = 3
    factor: int = 3

    def __post_init__(self) -> None:
        if self.rungs < 1 or self.factor < 2:
            raise ValueError(f"rungs must be at least 1 and factor at least 2, not {self.rungs} and {self.factor}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the budget of every rung; the last is 1."""
        return tuple(self.factor ** -(self.rungs - 1 - i) for i in range(self.rungs))


@dataclass(frozen=True)
class Stage:
    """One training run of a trial: at a share of the budget, judged on a fold. ``step`` numbers it for the pruner.

    A rung's step is its budget in units of the first rung, as successive halving counts resources.
    """

    share: float
    fold: int
    step: int


def stages(fidelity: Fidelity, folds: int, reports: int, paired: bool) -> tuple[Stage, ...]:
    """Return the runs of a trial in order: rungs on the first fold, then the whole budget on the others.

    reports: how many steps a truncated run takes for the pruner. paired: the pruner compares folds (Wilcoxon), so there
    are no rungs and every fold is a step.
    """
    if paired:
        return tuple(Stage(1.0, fold, fold + 1) for fold in range(folds))
    if fidelity.kind == "truncate":
        first = [Stage(1.0, 0, reports)]
    else:
        first = [Stage(share, 0, fidelity.factor**i) for i, share in enumerate(fidelity.shares)]
    after = first[-1].step
    return (*first, *(Stage(1.0, fold, after + fold) for fold in range(1, folds)))
