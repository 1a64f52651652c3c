"""Image classification as a task: its data, network, loss, evaluation and cost."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.errors import InputError
from mixtune.regime import BatchShape, Schedule
from mixtune.training import calibration, data, mixing, networks, pool, views
from mixtune.training.calibration import Recalibration, Statistics
from mixtune.training.curve import Curve
from mixtune.training.device import available_cpus as available_cpus
from mixtune.training.device import pick_device
from mixtune.training.evaluation import Predictions, evaluate, predict
from mixtune.training.notes import Notes
from mixtune.training.protocol import Task as Task
from mixtune.training.ranks import ALONE, Ranks
from mixtune.training.recipe import Recipe
from mixtune.training.synced import Synced


@dataclass(frozen=True)
class TaskConfig:
    """The ``task`` section: what is trained on what.

    data: folder of the data set (default $MIXTUNE_DATA, else ./data; digits need none). samples: use only this
    many of the training images, evenly from all classes (for short searches). validation: share of them held out to
    judge trials. workers: processes that read image files (default: one less than the trial's CPU threads).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    dataset: Literal["digits", "cifar10", "cifar100", "folder", "imagenet"]
    network: str
    data: str | None = None
    validation: float = 0.1
    samples: int | None = None
    augment: views.Augment = field(default_factory=views.Augment)
    workers: int | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the share of the training set held out, in (0, 1), not {self.validation!r}"
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")


class Classification:
    """Image classification with a hold-out of the training set, or with the test set for the final run.

    ``judge="validation"`` trains on the rest of the training set and evaluates on the hold-out; ``judge="test"`` trains
    on all of it and evaluates on the test set, which is otherwise never read. Raises InputError for missing data.

    With ``recalibration`` the batch-norm statistics are chosen per size. The hold-out is cross-fitted: each half is
    judged with what was chosen on the other. For the test set up to 2,048 training images are held back to choose on,
    so that the test images are only ever judged. ``chosen`` holds, by size, the statistics of the last evaluation.

    ``ranks``: where there are several, each makes its part of every step and judges its part of the images.
    """

    def __init__(
        self,
        config: TaskConfig,
        judge: Literal["validation", "test"] = "validation",
        device: str = "auto",
        recalibration: Recalibration | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.ranks = config, ranks
        self.device = pick_device(device)
        dataset = data.load(config.dataset, config.data)
        self.classes = dataset.classes
        self._flip = dataset.flips if config.augment.flip is None else config.augment.flip
        scale = 255.0  # batches hold pixel values from 0 to 255
        self._mean = torch.tensor(dataset.mean, device=self.device).view(1, 3, 1, 1) * scale
        self._std = torch.tensor(dataset.std, device=self.device).view(1, 3, 1, 1) * scale
        try:
            self._train, self._held_out, self._choice = data.split(
                dataset, config.samples, config.validation, judge, recalibration is not None
            )
        except ValueError as err:
            raise InputError(f"task.validation: {config.dataset}: {err}") from None
        self.n_train = len(self._train)
        if len(self._held_out) < ranks.shard.world:
            raise InputError(f"task.validation: {len(self._held_out)} images are too few for {ranks.shard.world} ranks")
        self.notes = Notes()  # on the image files that were read so far
        self._recalibration = recalibration
        self.chosen: dict[int, tuple[str, Statistics]] = {}
        self._evaluated: dict[int, list[tuple[Tensor, Tensor]]] = {}

    @property
    def workers(self) -> int:
        """Decoding processes: as configured, else one less than the CPU threads at hand."""
        return max(0, torch.get_num_threads() - 1) if self.config.workers is None else self.config.workers

    @cached_property
    def _pool(self) -> pool.Inline:
        """The readers of image files, for training and evaluation; the next task of this process inherits them."""
        taken = pool.take(self.workers)
        weakref.finalize(self, pool.release, taken)
        return taken

    def network(self, seed: int, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
        """A fresh network on the task's device, channels last."""
        net = networks.create(self.config.network, self.classes, seed, dropout, drop_path, self.config.weights)
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs [B*D, 3, S, S] and labels [B*D] of every step from ``start`` on: this rank's part of B."""
        augment = self.config.augment
        if isinstance(self._train, data.Pixels):
            raw = views.pixel_batches(self._train, schedule, augment, self._flip, seed, start, self.ranks.shard)
        else:
            raw = views.file_batches(
                self._train,
                schedule,
                augment,
                self._flip,
                seed,
                start,
                self._pool,
                self.device,
                self.ranks.shard,
                self.notes,
            )
        return (self._ready(x, y) for x, y in raw)

    def blend(
        self, recipe: Recipe, inputs: Tensor, targets: Tensor, rng: np.random.Generator, shape: BatchShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and soft labels blended by the recipe's mixup or cutmix."""
        return mixing.blend(inputs, targets, self.classes, recipe.mixup, recipe.cutmix, rng, self.ranks, shape)

    def loss(self, recipe: Recipe, outputs: Any, targets: Tensor) -> Tensor:
        """The recipe's cross-entropy."""
        return recipe.loss(outputs, targets)

    def evaluate(self, network: nn.Module, sizes: Sequence[int], calibrated: bool = True) -> Curve:
        """Accuracy, loss and calibration on the held-out images at every size.

        calibrated False: with the running batch-norm statistics, whatever the task's recalibration.
        """
        return evaluate(network, lambda S: self._predictions(network, S, calibrated), sizes, self.gmacs)

    def _predictions(self, network: nn.Module, S: int, calibrated: bool) -> Predictions:
        images = partial(self._judge, network, self._held_out, S)
        running = images()
        if self._recalibration is None or not calibrated:
            return running
        with Synced(self.ranks):
            candidates = {
                str(kind): calibration.recalibrate(network, self._calibration_batches(kind, S))
                for kind in self._recalibration.views
            }
        choice = None if self._choice is None else partial(self._judge, network, self._choice, S)
        best, predictions = calibration.judge(network, images, choice, running, candidates)
        self.chosen[S] = (best, candidates.get(best, {}))
        return predictions

    def _calibration_batches(self, kind: str, S: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images at S in full batches of 128, or fewer at large sizes, as in training or as in evaluation."""
        assert self._recalibration is not None
        B = max(self.ranks.shard.world, min(128, 512 * 64**2 // S**2, self.n_train, self._recalibration.images))
        steps = max(1, min(self._recalibration.images, self.n_train) // B)
        schedule = Schedule((BatchShape(S, B),), np.zeros(steps, np.int16), np.ones(1))
        if kind == "train":
            yield from self.batches(schedule, seed=0)
        else:
            part = self.ranks.shard.part(B)
            drawn = np.concatenate([batch[part] for batch in schedule.sample_batches(self.n_train, seed=0)])
            yield from self._whole(self._train.subset(drawn), S, part.stop - part.start)

    def gmacs(self, S: int) -> float:
        """10^9 multiply-accumulates of one image at S."""
        return networks.gmacs(self.config.network, self.classes, S)

    def _judge(self, network: nn.Module, source: data.Source, S: int) -> Predictions:
        """What the network says of all images of ``source`` at S; each rank judges its part."""
        return predict(network, self._evaluation_batches(source, S)).over(self.ranks, len(source))

    def _evaluation_batches(self, source: data.Source, S: int) -> Iterator[tuple[Tensor, Tensor]]:
        mine = source if self.ranks.alone else source.subset(np.arange(len(source))[self.ranks.shard.part(len(source))])
        if isinstance(source, data.Files) or source is not self._held_out:
            yield from self._whole(mine, S)
        else:
            if S not in self._evaluated:  # resized once, used at every report
                self._evaluated[S] = list(self._whole(mine, S))
            yield from self._evaluated[S]

    def altered(self, S: int, change: Callable[[Tensor, int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The held-out images at S after ``change(pixels [N, 3, S, S] from 0 to 255, number of the batch)``."""
        return self._whole(self._held_out, S, change=change)

    @property
    def small(self) -> bool:
        """Whether the images are held in memory, which are those of 32 pixels or fewer."""
        return isinstance(self._held_out, data.Pixels)

    @property
    def flips(self) -> bool:
        """Whether a mirrored image still shows its class."""
        return self._flip

    def _whole(
        self,
        source: data.Source,
        S: int,
        batch: int | None = None,
        change: Callable[[Tensor, int], Tensor] = lambda pixels, _: pixels,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are evaluated at S, normalised."""
        batch = batch or max(1, min(512, 512 * 64**2 // S**2))
        if isinstance(source, data.Files):
            raw = views.file_eval_batches(source, S, min(batch, 128), self._pool, self.device, self.notes)
        else:
            raw = views.pixel_eval_batches(source, S, batch)
        return (self._ready(change(x, i), y) for i, (x, y) in enumerate(raw))

    def _ready(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = views.normalised(pixels.to(self.device, non_blocking=True), self._mean, self._std)
        return x, labels.to(self.device, non_blocking=True)


def check_shapes(shapes: Sequence[BatchShape], network: str, n_train: int) -> None:
    """Raise ValueError when a size is no multiple of the network's stride or a batch is larger than the data set."""
    stride = networks.total_stride(network)
    for shape in shapes:
        if shape.S % stride:
            near = max(stride, round(shape.S / stride) * stride)
            raise ValueError(
                f"{shape.S} px is not a multiple of {network}'s total stride {stride} (nearest: {near}); off the grid "
                "the cost is not proportional to S^2"
            )
        if n_train < shape.B:
            raise ValueError(f"shape {shape} needs {shape.B} distinct images, and there are {n_train} to train on")
