"""What a worker is handed of a published regime, as by the bridge."""

from mixtune.execution.work import candidate_of, handed_over, training_of


def handed(space, folder, name="multiscale"):
    """The configuration of the trial in ``folder``; its regime file is there."""
    candidate = candidate_of(space, 0, space.published_params(name, 4), {"published": name}, folder)
    training = training_of(space, space.training(1), candidate)
    return handed_over(space, candidate, training, folder / "checkpoints" / "0000.pt")
