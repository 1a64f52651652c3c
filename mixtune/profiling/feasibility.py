"""Tell candidates that cannot be trained, for want of budget or memory, before anything of them is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixtune.profiling.resource_profile import ResourceProfile
from mixtune.regime import Regime
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

Refuse = Callable[[Regime, TrainingConfig], str]  # why a candidate cannot be trained; empty where it can be


def infeasible(
    space: Space, regime: Regime, training: TrainingConfig, n_train: int, profile: ResourceProfile | None = None
) -> str:
    """Return why a candidate exceeds the memory or cannot meet the budget at some fidelity; empty where it can be run.

    Takes milliseconds: schedules are made, nothing is trained.
    """
    for shape in regime.shapes if profile else ():
        if profile and (reason := profile.memory_exceeded(shape, space.base)):
            return reason
    try:
        for share in sorted({stage.share for stage in space.stages}):
            replace(training, share=share).schedule(regime, n_train)
    except ValueError as err:
        return str(err)
    return ""


def refuse_nothing(regime: Regime, training: TrainingConfig) -> str:
    """Refuse no candidate."""
    return ""
