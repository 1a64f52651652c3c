"""Image classification as a task: its data, network, loss, evaluation and cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.data import augment as views
from mixtune.data import datasets, sources, splits
from mixtune.data import in_memory as pixels
from mixtune.data.file_issues import FileIssues
from mixtune.data.normalise import Normalise
from mixtune.errors import InputError
from mixtune.evaluation import bn_recalibration
from mixtune.evaluation.bn_recalibration import Recalibration, Statistics
from mixtune.evaluation.curve import Curve
from mixtune.evaluation.metrics import Predictions, evaluate, predict
from mixtune.models import registry
from mixtune.models.sync_batch_norm import convert_to_sync_batch_norm
from mixtune.optim import mixup
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.device import available_cpus as available_cpus
from mixtune.runtime.device import pick_device
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks.base import Task as Task
from mixtune.tasks.config import TaskConfig as TaskConfig


class Classification:
    """Image classification with a hold-out of the training set, or with the test set for the final run.

    ``judge="validation"`` trains on the rest of the training set and evaluates on the hold-out; ``judge="test"`` trains
    on all of it and evaluates on the test set, which is otherwise never read. Raises InputError for missing data.

    With ``recalibration`` the batch-norm statistics are chosen per size. The hold-out is cross-fitted: each half is
    judged with what was chosen on the other. For the test set up to 2,048 training images are held back to choose on,
    so that the test images are only ever judged. ``chosen`` holds, by size, the statistics of the last evaluation.

    ``group``: where there are several, each makes its part of every step and judges its part of the images.
    """

    def __init__(
        self,
        config: TaskConfig,
        judge: Literal["validation", "test"] = "validation",
        device: str = "auto",
        recalibration: Recalibration | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.config, self.group = config, group
        self.device = pick_device(device)
        dataset = datasets.load_dataset(config.dataset, config.data, config.classes)
        self.classes, self.names, self.prepared_for = dataset.classes, dataset.names, dataset.prepared_for
        self._flip = dataset.flips if config.augment.flip is None else config.augment.flip
        self._normalise = Normalise(dataset.mean, dataset.std, self.device)
        try:
            self.train_source, self._held_out, self._choice = splits.split_dataset(
                dataset, config.samples, config.held_out, judge, recalibration is not None
            )
        except ValueError as err:
            raise InputError(f"task.validation: {config.dataset}: {err}") from None
        self.n_train, self.n_judged = len(self.train_source), len(self._held_out)
        if self.n_judged < group.world_size:
            raise InputError(f"task.validation: {self.n_judged} images are too few for {group.world_size} ranks")
        self.notes = FileIssues()  # on the image files that were read so far
        self.pixels: pixels.PixelViews | None = None
        if isinstance(self.train_source, sources.Pixels):
            self.pixels = pixels.PixelViews(self.train_source, config.augment, self._flip, self.device)
        self._recalibration = recalibration
        self.chosen: dict[int, tuple[str, Statistics]] = {}
        self.pause: Callable[[], None] = lambda: None  # called between batches of an evaluation
        self._unread = 0  # held-out images that the last evaluation could not read

    @property
    def workers(self) -> int:
        """Decoding threads: as configured, else one less than the CPU threads at hand."""
        return self.config.readers(torch.get_num_threads())

    def network(self, seed: int, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
        """A fresh network on the task's device, channels last."""
        weights = self.config.weights
        net = registry.create_network(self.config.network, self.classes, seed, dropout, drop_path, weights, self.names)
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs [B*D, 3, S, S] and labels [B*D] of every step from ``start`` on: this rank's part of B."""
        raw: Iterator[tuple[Tensor, Tensor]]
        if self.pixels is not None:
            raw = map(self.pixels.make, self.pixels.draw(schedule, seed, start, self.group.shard))
        else:
            assert isinstance(self.train_source, sources.Files)
            augment, shard = self.config.augment, self.group.shard
            raw = views.file_batches(
                self.train_source,
                schedule,
                augment,
                self._flip,
                seed,
                start,
                self.workers,
                self.device,
                shard,
                self.notes,
            )
        return (self._ready(x, y) for x, y in raw)

    def drawn(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[pixels.ViewChoices] | None:
        """The random choices of every step's views; None for image files."""
        return None if self.pixels is None else self.pixels.draw(schedule, seed, start, self.group.shard)

    def made(self, S: int, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised inputs [B*D, 3, S, S] and labels [B*D] from the choices [4, B*D] of a step."""
        assert self.pixels is not None
        return self._ready(*self.pixels.make_at(S, choices))

    def blend(
        self, blend: mixup.Blend, inputs: Tensor, targets: Tensor, shape: BatchShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images and soft labels of mixup or cutmix."""
        return mixup.apply_blend(blend, inputs, targets, self.classes, self.group, shape)

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
        self._unread = int((~running.read).sum())
        if self._recalibration is None or not calibrated:
            return running
        # Statistics of the images of all processes, whether or not the network was trained with them.
        synced = convert_to_sync_batch_norm(copy.deepcopy(network)) if self.group.is_distributed else network
        candidates = {
            str(kind): bn_recalibration.recalibrate(synced, self._calibration_batches(kind, S))
            for kind in self._recalibration.views
        }
        choice = None if self._choice is None else partial(self._judge, network, self._choice, S)
        best, predictions = bn_recalibration.judge(network, images, choice, running, candidates)
        self.chosen[S] = (best, candidates.get(best, {}))
        return predictions

    def _calibration_batches(self, kind: str, S: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images at S in full batches of 128, or fewer at large sizes, as in training or as in evaluation."""
        assert self._recalibration is not None
        B = max(self.group.world_size, min(128, 512 * 64**2 // S**2, self.n_train, self._recalibration.images))
        steps = max(1, min(self._recalibration.images, self.n_train) // B)
        schedule = Schedule((BatchShape(S, B),), np.zeros(steps, np.int16), np.ones(1))
        if kind == "train":
            yield from self.batches(schedule, seed=0)
        else:
            part = self.group.shard.part(B)
            drawn = np.concatenate([batch[part] for batch in schedule.sample_batches(self.n_train, seed=0)])
            yield from self._whole(self.train_source.subset(drawn), S, part.stop - part.start)

    def gmacs(self, S: int) -> float:
        """10^9 multiply-accumulates of one image at S."""
        return registry.gmacs(self.config.network, self.classes, S)

    def _judge(self, network: nn.Module, source: sources.Source, S: int) -> Predictions:
        """What the network says of all images of ``source`` at S; each rank judges its part."""
        return predict(network, self._evaluation_batches(source, S)).over(self.group, len(source))

    def _evaluation_batches(self, source: sources.Source, S: int) -> Iterator[tuple[Tensor, Tensor]]:
        part = self.group.shard.part(len(source))
        mine = source.subset(np.arange(len(source))[part]) if self.group.is_distributed else source
        batches: Iterable[tuple[Tensor, Tensor]] = self._whole(mine, S)
        if isinstance(source, sources.Pixels) and source is self._held_out:  # resized once, used at every report
            batches = pixels.cached(source, (S, self.device, part.start, part.stop), lambda: list(self._whole(mine, S)))
        for batch in batches:
            yield batch
            self.pause()

    def altered(self, S: int, change: Callable[[Tensor, int], Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The held-out images at S after ``change(pixels [N, 3, S, S] from 0 to 255, number of the batch)``."""
        return self._whole(self._held_out, S, change=change)

    def findings(self) -> dict[str, int]:
        """What was odd about the image files that all ranks have read so far, counted; and how many were not judged.

        To be called by all of them.
        """
        for rows in self.group.all_gather_json(self.notes.take_new()):
            self.notes.merge(rows)
        return self.notes.counts() | ({"not judged": self._unread} if self._unread else {})

    @property
    def small(self) -> bool:
        """Whether the images are held in memory, which are those of 32 pixels or fewer."""
        return isinstance(self._held_out, sources.Pixels)

    @property
    def flips(self) -> bool:
        """Whether a mirrored image still shows its class."""
        return self._flip

    def _whole(
        self,
        source: sources.Source,
        S: int,
        batch: int | None = None,
        change: Callable[[Tensor, int], Tensor] = lambda pixels, _: pixels,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images as they are evaluated at S, normalised."""
        batch = batch or max(1, min(512, 512 * 64**2 // S**2))
        if isinstance(source, sources.Files):
            raw = views.file_eval_batches(source, S, min(batch, 128), self.workers, self.device, self.notes)
        else:
            raw = pixels.pixel_eval_batches(source, S, batch)
        return (self._ready(change(x, i), y) for i, (x, y) in enumerate(raw))

    def _ready(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._normalise(values.to(self.device, non_blocking=True)), labels.to(self.device, non_blocking=True)


def check_shapes(shapes: Sequence[BatchShape], network: str, n_train: int) -> None:
    """Raise ValueError when a size is no multiple of the network's stride or a batch is larger than the data set."""
    stride = registry.total_stride(network)
    for shape in shapes:
        if shape.S % stride:
            near = max(stride, round(shape.S / stride) * stride)
            raise ValueError(
                f"{shape.S} px is not a multiple of {network}'s total stride {stride} (nearest: {near}); off the grid "
                "the cost is not proportional to S^2"
            )
        if n_train < shape.B:
            raise ValueError(f"shape {shape} needs {shape.B} distinct images, and there are {n_train} to train on")
