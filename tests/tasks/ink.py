"""A second task, as a package of its own would have it: which pixels of a handwritten digit are ink.

Nothing of mixtune names it: tests put it into the registry, and processes of a search find it by an entry point.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from mixtune.data import datasets, splits
from mixtune.data.target_views import crop_and_flip, target_views
from mixtune.evaluation.metrics import Metric, Metrics
from mixtune.models.weights import load_weights
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.tasks.base import DataIdentity, Deployment, Task
from mixtune.tasks.config import TaskConfig

PLACE = "tests.tasks.ink:Ink"  # what a registry has of it
METRICS = Metrics(
    Metric("miou", "mIoU", "mean IoU"),
    (Metric("pixel_accuracy", "pixel acc."), Metric("loss", "loss", worst=float("inf"), best=0.0, unit="")),
    noun="mean IoU",
)
INK = 7 / 16 * 255  # of 255, and brighter


@dataclass(frozen=True)
class InkConfig(TaskConfig):
    kind: Literal["ink"] = field(kw_only=True)
    dataset: Literal["digits"]
    network: Literal["fcn"]
    scale: tuple[float, float] = (0.5, 1.0)

    @property
    def in_memory(self):
        return True

    @property
    def needs_data(self):
        return False


class Fcn(nn.Module):
    """[N, 3, S, S] -> logits [N, 2, S, S], for sizes that are even."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x):
        deep = F.interpolate(self.middle(self.down(x)), x.shape[-2:], mode="nearest")
        return self.head(torch.cat([x, deep], 1))


class Ink(Task[tuple[torch.Tensor, torch.Tensor]]):
    """Batches are images [B*D, 3, S, S] and labels [B*D, S, S]: 1 for ink."""

    Config = InkConfig
    metrics = METRICS

    def __init__(self, config, judge="validation", device="auto", recalibration=None, group=SINGLE_PROCESS):
        super().__init__(config, judge, device, recalibration, group)
        dataset = datasets.load_dataset(config.dataset, None)
        self._train, self._judged, _ = splits.split_dataset(dataset, config.samples, config.held_out, judge, False)
        self.n_train, self.n_judged = len(self._train), len(self._judged)

    def network(self, seed, dropout=0.0, drop_path=0.0):
        if dropout or drop_path:
            raise ValueError("fcn has no dropout")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Fcn().to(self.device)

    def gmacs(self, S):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            Fcn().eval()(torch.empty(1, 3, S, S))
        return counter.get_total_flops() / 2e9

    @classmethod
    def stride(cls, config):
        return 2

    @classmethod
    def identity(cls, config):
        task = cls(config, device="cpu")
        return DataIdentity("digits", "ink", 2, task.n_train, task.n_judged, 359)

    def batches(self, schedule, seed, start=0):
        load, shard = partial(_sample, self._train), self.group.shard
        augment = partial(crop_and_flip, scale=self.config.scale)
        for views in target_views(load, self.n_train, augment, schedule, seed, start, shard):
            yield self._batch(views)

    def training_loss(self, model, batch, recipe, shape=None, blend=None, teacher=None):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def evaluate_at(self, network, S, calibrated=True):
        return self.evaluate_changed(network, S, lambda pixels, _: pixels)

    @torch.inference_mode()
    def evaluate_changed(self, network, S, change):
        part = self.group.shard.part(self.n_judged)
        views = [_resized(_sample(self._judged, i), S) for i in range(self.n_judged)[part]]
        images = torch.stack([view["image"] for view in views]).float()
        labels = torch.stack([view["label"] for view in views]).long().to(self.device)
        logits = network(_normalised(change(images, 0)).to(self.device))
        self.pause()
        seen = F.one_hot(2 * labels + logits.argmax(1), 4).double().sum((0, 1, 2))
        loss = F.cross_entropy(logits, labels, reduction="sum").double()
        *counts, loss = self.group.all_reduce(torch.cat([seen, loss[None]])).tolist()
        right, ink_missed = counts[0], counts[2]
        ink_wrong, ink_right = counts[1], counts[3]
        ious = [hits / max(1.0, hits + ink_wrong + ink_missed) for hits in (right, ink_right)]
        pixels = sum(counts)
        return {"miou": sum(ious) / 2, "pixel_accuracy": (right + ink_right) / pixels, "loss": loss / pixels}

    def mirrored(self, network):
        return network

    def deployment(self):
        return Deployment((0.5,) * 3, (0.5,) * 3, "logits, [N, 2, H, W]", facts={"classes": 2})

    def load_weights(self, network, path):
        load_weights(network, path, "fcn")

    def _batch(self, views):
        images = torch.stack([view["image"] for view in views]).float()
        labels = torch.stack([view["label"] for view in views]).long()
        return _normalised(images).to(self.device), labels.to(self.device)


def _sample(source, i):
    image = source.images[i].permute(2, 0, 1)
    return {"image": tv_tensors.Image(image), "label": tv_tensors.Mask((image[0] > INK).to(torch.uint8))}


def _resized(sample, S):
    return {name: TF.resize(value, [S, S], antialias=True) for name, value in sample.items()}


def _normalised(pixels):
    return pixels.as_subclass(torch.Tensor) / 127.5 - 1
