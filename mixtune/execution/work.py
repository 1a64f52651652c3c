"""Work: a trial of the study as what a worker is to do about it."""

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


def candidate_of(space: Space, number: int, params: Mapping[str, Any], noted: Mapping[str, Any], at: Path) -> Candidate:
    """A trial by its number, parameters and user attributes, with its folder in ``at``, the study's or a round's."""
    published, repeat = str(noted.get("published", "")), Repeat.noted(noted)
    regime = space.regime(params, published or f"searched {repeat.of if repeat else number}")
    folder = at / (repeat.place(published) if repeat else Path("trials") / f"{number:04d}")
    return Candidate(number, regime, params, folder, published, repeat=repeat)


def training_of(space: Space, training: TrainingConfig, candidate: Candidate) -> TrainingConfig:
    """What all trials share, with what is this one's own: searched settings of the recipe, a repeat's seed."""
    seed = candidate.repeat.seed if candidate.repeat else training.seed
    return replace(training, recipe=space.recipe_of(candidate.params), seed=seed)


def handed_over(space: Space, candidate: Candidate, training: TrainingConfig, checkpoint: Path) -> dict[str, Any]:
    """The configuration that a worker gets (``trial.trial_results`` reads it). Makes the folder and its regime file."""
    candidate.folder.mkdir(parents=True, exist_ok=True)
    (candidate.folder / "error.txt").unlink(missing_ok=True)  # of an attempt that failed
    said = to_plain(training)
    save_regime(candidate.folder / "regime.yaml", candidate.regime, said)
    return {
        "regime": regime_to_dict(candidate.regime),
        "training": said,
        "folder": str(candidate.folder),
        "checkpoint": str(checkpoint),
        "judge": candidate.repeat.judge if candidate.repeat else "validation",
        "stages": to_plain(space.stages),
        "reports": space.reports_on_the_way,
        "folds_at_once": space.resources.folds_at_once,
    }
