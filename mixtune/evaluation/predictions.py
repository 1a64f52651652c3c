"""Predictions: what a classifier says of images, and the metrics of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixtune.data.file_issues import LEFT_OUT
from mixtune.errors import InputError
from mixtune.evaluation.metrics import Metric, Metrics
from mixtune.runtime.process_group import ProcessGroup

BINS = 15
METRICS = Metrics(
    Metric("top1", "top-1", "top-1 accuracy", proportion=True),
    (
        Metric("top5", "top-5", "top-5 accuracy", proportion=True),
        Metric("loss", "loss", "cross-entropy, nats", worst=math.inf, best=0.0, unit=""),
        Metric("ece", "ECE", "calibration error", worst=1.0, best=0.0),
    ),
)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017): mean over equal-width bins of confidence, weighted by
    their share of the images, of |accuracy - confidence|. confidence, correct: [N].
    """
    # Bin edges belong to the bin below, as in the paper: (0, 1/15], (1/15, 2/15], ...
    which = torch.ceil(confidence.double() * bins).long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, which, correct.double() - confidence.double())
    return float(gap.abs().sum() / len(confidence))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network predicted for N images. All are tensors [N] on the network's device.

    confidence: in the first choice, from 0 to 1; correct: whether that was right; top5: whether one of the first five
    was; loss: cross-entropy in nats; read: whether the image could be read, without which it counts for nothing.
    """

    confidence: Tensor
    correct: Tensor
    top5: Tensor
    loss: Tensor
    read: Tensor

    @property
    def quality(self) -> Tensor:
        """Return how well each image is predicted, from 0 to 1. [N]"""
        return self.correct.double()

    def part(self, which: slice) -> Predictions:
        """Return the predictions of some of the images."""
        return Predictions(*(getattr(self, f.name)[which] for f in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Predictions]) -> Predictions:
        """Return the predictions of all the images of ``parts``."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def over(self, group: ProcessGroup, n: int) -> Predictions:
        """Return the predictions of all n images in order, of which these are the rank's part."""
        if not group.is_distributed:
            return self
        whole = group.gather_rows(torch.stack([getattr(self, f.name).float() for f in fields(self)], 1), n)
        confidence, correct, top5, loss, read = whole.unbind(1)
        return Predictions(confidence, correct.bool(), top5.bool(), loss, read.bool())

    def metrics(self) -> dict[str, float]:
        """Return ``METRICS`` over the images that could be read. Raise InputError when none could."""
        if not self.read.any():
            raise InputError(
                f"task.data: none of the {len(self.read)} images to judge can be read; is the storage there?"
            )
        correct = self.correct[self.read]
        return {
            "top1": float(correct.double().mean()),
            "top5": float(self.top5[self.read].double().mean()),
            "loss": float(self.loss[self.read].double().mean()),
            "ece": calibration_error(self.confidence[self.read], correct),
        }


def predictions_of(logits: Tensor, targets: Tensor) -> Predictions:
    """Return predictions from logits [N, classes] and labels [N], LEFT_OUT where there is no image to judge."""
    logits = logits.float()
    confidence, predicted = logits.softmax(1).max(1)
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    loss = F.cross_entropy(logits, targets, reduction="none", ignore_index=LEFT_OUT)
    return Predictions(confidence, predicted == targets, (best == targets[:, None]).any(1), loss, targets != LEFT_OUT)


@torch.inference_mode()
def predict(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Return what a network in evaluation mode predicts for normalised batches ([N, 3, S, S], [N])."""
    return Predictions.join([predictions_of(network(inputs), targets) for inputs, targets in batches])
