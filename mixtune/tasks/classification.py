"""Image classification as a task: its data, network, loss, evaluation and cost."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.data import augment as views
from mixtune.data import datasets, loader, prepared_folder, sources, splits
from mixtune.data import in_memory as pixels
from mixtune.data.crops import CROP_RATIO
from mixtune.data.normalise import Normalise
from mixtune.errors import InputError
from mixtune.evaluation import bn_recalibration
from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.evaluation.corruptions import FlipTTA
from mixtune.evaluation.predictions import METRICS, Predictions, predict
from mixtune.models import registry, weights
from mixtune.models.sync_batch_norm import convert_to_sync_batch_norm
from mixtune.optim import mixup
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks import classification_data
from mixtune.tasks.base import LOSS_SETTINGS, DataIdentity, Deployment, Forward, Judge, Task
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.tasks.config import TaskConfig

Batch = tuple[Tensor, Tensor]  # normalised images [B*D, 3, S, S], the D copies of an image side by side; labels [B*D]


class Classification(Task[Batch]):
    """Image classification with a hold-out of the training set, or with the test set for the final run.

    With ``recalibration`` the batch-norm statistics are chosen per size. The hold-out is cross-fitted: each half is
    judged with what was chosen on the other. For the test set up to 2,048 training images are held back to choose on,
    so that the test images are only ever judged.
    """

    Config = ClassificationConfig
    config: ClassificationConfig
    metrics = METRICS
    recipe_settings = frozenset(LOSS_SETTINGS)
    recalibrates = True

    def __init__(
        self,
        config: ClassificationConfig,
        judge: Judge = "validation",
        device: str = "auto",
        recalibration: Recalibration | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        super().__init__(config, judge, device, recalibration, group)
        dataset = self._dataset = datasets.load_dataset(config.dataset, config.data, config.classes)
        self.classes, self.names = dataset.classes, dataset.names
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
        self.pixels: pixels.PixelViews | None = None
        if isinstance(self.train_source, sources.Pixels):
            self.pixels = pixels.PixelViews(self.train_source, config.augment, self._flip, self.device)
        self._unread = 0  # held-out images that the last evaluation could not read

    @property
    def workers(self) -> int:
        """Return the number of decoding workers: as configured, else one less than the CPU threads at hand."""
        return self.config.readers(torch.get_num_threads())

    def network(self, seed: int, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
        """Return a fresh network on the task's device, channels last."""
        start = self.config.weights
        net = registry.create_network(self.config.network, self.classes, seed, dropout, drop_path, start, self.names)
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of every step from ``start`` on."""
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
                self.file_issues,
            )
        return (self._ready(x, y) for x, y in raw)

    def draw_choices(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[pixels.ViewChoices] | None:
        """Yield the random choices of every step's views; None for image files."""
        return None if self.pixels is None else self.pixels.draw(schedule, seed, start, self.group.shard)

    def batch_from_choices(self, S: int, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the batch of a step from its choices [4, B*D] on the device."""
        assert self.pixels is not None
        return self._ready(*self.pixels.make_at(S, choices))

    def training_loss(
        self,
        model: Forward,
        batch: Batch,
        recipe: Recipe,
        shape: BatchShape | None = None,
        blend: mixup.Blend | None = None,
        teacher: nn.Module | None = None,
    ) -> Tensor:
        """Return the recipe's cross-entropy, and the divergence from a teacher where there is one."""
        inputs, targets = batch
        if blend is not None:
            inputs, targets = mixup.apply_blend(blend, inputs, targets, self.classes, self.group, shape)
        outputs = model(inputs)
        loss = recipe.loss(outputs, targets)
        if recipe.distill is not None and teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            loss = loss + recipe.distill.loss(outputs[0] if isinstance(outputs, tuple) else outputs, teacher_logits)
        return loss

    def teacher(self, recipe: Recipe) -> nn.Module | None:
        """Return the trained network that the recipe distils, None where it distils none."""
        return recipe.distill.teacher(self.classes, self.device, self.names) if recipe.distill else None

    def describe_loader(self, schedule: Schedule) -> str:
        """Return who decodes the image files, with what, and how far ahead."""
        return "" if self.pixels is not None else loader.describe_loader(schedule, self.workers, self.group.shard)

    def evaluate_at(self, network: nn.Module, S: int, calibrated: bool = True) -> dict[str, float]:
        """Return accuracy, loss and calibration on the held-out images at S."""
        return self._predictions(network, S, calibrated).metrics()

    def _predictions(self, network: nn.Module, S: int, calibrated: bool) -> Predictions:
        images = partial(self._judge, network, self._held_out, S)
        running = images()
        self._unread = int((~running.read).sum())
        if self.recalibration is None or not calibrated:
            return running
        # Statistics of the images of all processes, whether or not the network was trained with them.
        synced = convert_to_sync_batch_norm(copy.deepcopy(network)) if self.group.is_distributed else network
        candidates = {
            str(kind): bn_recalibration.recalibrate(synced, self._calibration_batches(kind, S))
            for kind in self.recalibration.views
        }
        choice = None if self._choice is None else partial(self._judge, network, self._choice, S)
        best, predictions = bn_recalibration.best_results(network, images, choice, running, candidates)
        self.chosen[S] = (best, candidates.get(best, {}))
        return predictions

    def _calibration_batches(self, kind: str, S: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training images at S in full batches of 128, fewer at large sizes, as in training or in evaluation."""
        assert self.recalibration is not None
        B = max(self.group.world_size, min(128, 512 * 64**2 // S**2, self.n_train, self.recalibration.images))
        steps = max(1, min(self.recalibration.images, self.n_train) // B)
        schedule = Schedule((BatchShape(S, B),), np.zeros(steps, np.int16), np.ones(1))
        if kind == "train":
            yield from self.batches(schedule, seed=0)
        else:
            part = self.group.shard.part(B)
            drawn = np.concatenate([batch[part] for batch in schedule.sample_batches(self.n_train, seed=0)])
            yield from self._whole(self.train_source.subset(drawn), S, part.stop - part.start)

    def gmacs(self, S: int) -> float:
        """Return 10^9 multiply-accumulates of one image at S. Raise ValueError for a size the network cannot take."""
        registry.check_size(self.config.network, self.classes, S)
        return registry.gmacs(self.config.network, self.classes, S)

    @classmethod
    def stride(cls, config: TaskConfig) -> int:
        """Return by how much the network shrinks an image side in all."""
        return registry.total_stride(config.network)

    def _judge(self, network: nn.Module, source: sources.Source, S: int) -> Predictions:
        """Return what the network predicts for all images of ``source`` at S; each rank predicts its part."""
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

    def evaluate_changed(self, network: nn.Module, S: int, change: Callable[[Tensor, int], Tensor]) -> dict[str, float]:
        """Return accuracy, loss and calibration on held-out images that were changed."""
        _, chosen = self.chosen.get(S, ("", {}))
        with bn_recalibration.using(network, chosen) if chosen else contextlib.nullcontext():
            return predict(network, self._whole(self._held_out, S, change=change)).metrics()

    def mirrored(self, network: nn.Module) -> nn.Module:
        """Return the mean of the logits for an image and for its mirror image."""
        if not self._flip:
            raise InputError(f"a mirrored image of {self.config.dataset} is of another class")
        return FlipTTA(network)

    def check_sizes(self, wanted: Mapping[str, Iterable[int]]) -> None:
        """Raise InputError where the image files were prepared for smaller sizes."""
        prepared_folder.check_prepared_size(self._dataset.prepared_for, wanted)

    @classmethod
    def expected_images(cls, config: TaskConfig) -> tuple[int, str] | None:
        """Return how many images would be trained on where the data are not there yet."""
        return classification_data.expected_training_images(cast(ClassificationConfig, config))

    @classmethod
    def identity(cls, config: TaskConfig) -> DataIdentity:
        """Return the identity of the data that a run sees."""
        return classification_data.identity(cast(ClassificationConfig, config))

    def issue_counts(self) -> dict[str, int]:
        """Return how many image files were odd, by kind, and how many could not be judged."""
        return super().issue_counts() | ({"not judged": self._unread} if self._unread else {})

    def weights_header(self) -> dict[str, str]:
        """Return the network's name, and those of the classes in the order of its outputs."""
        return {**super().weights_header(), "classes": str(self.classes), **weights.naming(self.names)}

    def load_weights(self, network: nn.Module, path: Path) -> None:
        """Put a file's weights into the network. Raise InputError for another network's, or for other classes."""
        weights.load_weights(network, path, self.config.network, self.names)

    def deployment(self) -> Deployment:
        """Return the normalisation, and what the logits are of."""
        facts = {"classes": self.classes, "class_names": list(self.names)}
        crop = 1.0 if self.config.in_memory else CROP_RATIO
        return Deployment(self._dataset.mean, self._dataset.std, "logits, [N, classes]", crop, facts)

    def result(self) -> dict[str, Any]:
        """Return the names of the classes where they were chosen."""
        return {"classes": list(self.names)} if self.config.classes else {}

    def _whole(
        self,
        source: sources.Source,
        S: int,
        batch: int | None = None,
        change: Callable[[Tensor, int], Tensor] = lambda pixels, _: pixels,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images as they are evaluated at S, normalised."""
        batch = batch or max(1, min(512, 512 * 64**2 // S**2))
        if isinstance(source, sources.Files):
            raw = views.file_eval_batches(source, S, min(batch, 128), self.workers, self.device, self.file_issues)
        else:
            raw = pixels.pixel_eval_batches(source, S, batch)
        return (self._ready(change(x, i), y) for i, (x, y) in enumerate(raw))

    def _ready(self, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self._normalise(values.to(self.device, non_blocking=True)), labels.to(self.device, non_blocking=True)
