"""What a worker gets to train a published regime, as from the coordinator."""

from mixtune.execution.trial import TrialSpec
from mixtune.execution.trial_config import make_candidate, trial_config, trial_training


def published_config(space, folder, name="multiscale"):
    """The configuration of the trial in ``folder``; its regime file is there."""
    candidate = make_candidate(space, 0, space.published_params(name, 4), {"published": name}, folder)
    training = trial_training(space, space.training(1), candidate)
    return trial_config(space, candidate, training, folder / "checkpoints" / "0000.pt")


def published_spec(space, folder, name="multiscale"):
    """The same, read."""
    return TrialSpec.from_config(published_config(space, folder, name))
