"""Feasible: whether a candidate can meet the budget, before anything of it is trained."""

from __future__ import annotations

from dataclasses import replace

from mixtune.regime import Regime
from mixtune.study.space import Space
from mixtune.training.run import TrainingConfig


def infeasible(space: Space, regime: Regime, training: TrainingConfig, n_train: int | None) -> str:
    """Why a candidate cannot meet the budget at some fidelity; empty when it can, or where ``n_train`` is not known.

    Milliseconds: the schedules are made and nothing is trained.
    """
    if n_train is None:
        return ""
    try:
        for share in sorted({stage.share for stage in space.stages}):
            replace(training, share=share).schedule(regime, n_train)
    except ValueError as err:
        return str(err)
    return ""
