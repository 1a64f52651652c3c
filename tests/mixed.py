"""What tests of the loader in other people's loops feed it: random images, and a schedule of two batch shapes."""

import torch
from torch.utils.data import TensorDataset

from mixtune import BatchShape, Budget, Mixture, Regime, Schedule

SHAPES = [BatchShape(8, 12, 2), BatchShape(16, 6)]
N = 50


def images():
    """N images and their numbers as labels."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, 256, (N, 3, 20, 24), dtype=torch.uint8, generator=generator), torch.arange(N))


def steps(epochs, samples=N):
    """A schedule that mixes the two shapes."""
    return Schedule.build(Regime.of(SHAPES[1], [Mixture.of(SHAPES)]), Budget(epochs), samples, seed=0)
