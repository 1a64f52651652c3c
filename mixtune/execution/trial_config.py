"""Make a trial of the study into the configuration that a worker gets: plain values, which Ray carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixtune.config import to_plain
from mixtune.regime.files import regime_to_dict, save_regime
from mixtune.search.callbacks import Candidate
from mixtune.search.final import Repeat
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig


def make_candidate(
    space: Space, number: int, params: Mapping[str, Any], attributes: Mapping[str, Any], folder: Path
) -> Candidate:
    """Return a trial by its number, parameters and user attributes; its own folder lies in ``folder``, the study's or
    a round's.
    """
    published, repeat = str(attributes.get("published", "")), Repeat.from_attributes(attributes)
    regime = space.regime(params, published or f"searched {repeat.of if repeat else number}")
    own = folder / (repeat.folder(published) if repeat else Path("trials") / f"{number:04d}")
    return Candidate(number, regime, params, own, published, repeat=repeat)


def trial_training(space: Space, training: TrainingConfig, candidate: Candidate) -> TrainingConfig:
    """Return what all trials share with what is this one's own: searched settings of the recipe, a repeat's seed."""
    seed = candidate.repeat.seed if candidate.repeat else training.seed
    return replace(training, recipe=space.recipe_of(candidate.params), seed=seed)


def trial_config(space: Space, candidate: Candidate, training: TrainingConfig, checkpoint: Path) -> dict[str, Any]:
    """Return what a worker gets (``trial.TrialSpec`` reads it). Makes the trial's folder and its regime file."""
    candidate.folder.mkdir(parents=True, exist_ok=True)
    (candidate.folder / "error.txt").unlink(missing_ok=True)  # of an attempt that failed
    settings = to_plain(training)
    save_regime(candidate.folder / "regime.yaml", candidate.regime, settings)
    return {
        "regime": regime_to_dict(candidate.regime),
        "training": settings,
        "folder": str(candidate.folder),
        "checkpoint": str(checkpoint),
        "judge": candidate.repeat.judge if candidate.repeat else "validation",
        "stages": to_plain(space.stages),
        "reports": space.reports_on_the_way,
        "folds_at_once": space.resources.folds_at_once,
    }
