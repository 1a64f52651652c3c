"""Evaluation: one trained network's Curve over inference sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixtune.training.curve import Curve, Point

BINS = 15


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean over equal-width bins of confidence, weighted by their share
    of the images, of |accuracy - confidence|. confidence, correct: [N].
    """
    # Bin edges belong to the bin below, as in the paper: (0, 1/15], (1/15, 2/15], ...
    which = torch.ceil(confidence.double() * bins).long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, which, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


@torch.inference_mode()
def measure(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """top1, top5, loss and ece of a network in evaluation mode over normalised batches ([N, 3, S, S], [N])."""
    confidences, corrects, losses, top5 = [], [], [], []
    for inputs, targets in batches:
        logits = network(inputs).float()
        confidence, predicted = logits.softmax(1).max(1)
        confidences.append(confidence)
        corrects.append(predicted == targets)
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        top5.append((best == targets[:, None]).any(1))
    confidence, correct = torch.cat(confidences), torch.cat(corrects)
    return {
        "top1": float(correct.double().mean()),
        "top5": float(torch.cat(top5).double().mean()),
        "loss": float(torch.cat(losses).double().mean()),
        "ece": calibration_error(confidence, correct),
    }


def evaluate(
    network: nn.Module,
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
    sizes: Sequence[int],
    gmacs: Callable[[int], float],
) -> Curve:
    """The network's curve. ``batches(S)`` gives the evaluation images at S; the network's mode is left as found."""
    training = network.training
    network.eval()
    try:
        points = [Point(S=S, gmacs=gmacs(S), **measure(network, batches(S))) for S in sorted(sizes)]
    finally:
        network.train(training)
    return Curve(tuple(points))
