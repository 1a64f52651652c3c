"""Task: the contract of what is learnt. Loop, engine, search and analysis know of a task what is named here.

A batch is whatever the task makes of a step; only the task looks into it. S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from mixtune.data.file_issues import FileIssues
from mixtune.data.in_memory import ViewChoices
from mixtune.errors import InputError
from mixtune.evaluation.bn_recalibration import Recalibration, Statistics
from mixtune.evaluation.curve import Curve, Point
from mixtune.evaluation.metrics import Metrics
from mixtune.models import weights
from mixtune.optim.mixup import Blend
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime import oom
from mixtune.runtime.device import pick_device
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks.config import TaskConfig
from mixtune.tasks.registry import task_class

Batch = TypeVar("Batch")
Judge = Literal["validation", "test"]
Forward = Callable[..., Any]  # a network, or what it was compiled or wrapped to
# Settings of a recipe that a loss must know of: a task that does not is not trained with them.
LOSS_SETTINGS = ("label_smoothing", "mixup", "cutmix", "distill", "aux_weight")


@dataclass(frozen=True)
class DataIdentity:
    """By what runs on the same images are known to be so.

    digest: 16 hexadecimal digits, of pixels and targets where the images are held in memory, of file names and targets
    where they are files (reading millions of files would take minutes). train, validation, test: images; with folds,
    those that one run trains on, and those that are judged over all folds.
    """

    name: str
    digest: str
    classes: int
    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class Deployment:
    """What a trained network is used with, outside of mixtune.

    mean, std: of the channels of its input, from pixel values from 0 to 1; crop: the share of the shorter side that an
    evaluation keeps; output: what comes out, for people; facts: of what comes out (classes, class_names).
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output: str
    crop: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC, Generic[Batch]):
    """What is learnt: its data, network, loss, evaluation, cost and words.

    ``judge="validation"`` trains on the rest of the training set and evaluates on what is held out of it;
    ``judge="test"`` trains on all of it and evaluates on the test set, which is otherwise never read. A constructor
    loads the data, and raises InputError where they are missing.

    ``group``: where a run has several processes, each makes its part of every batch and judges its part of the images;
    evaluations are the same on all of them. ``recalibration``: choose batch-norm statistics per inference size.

    What has no default here every task has. The rest is optional: a task without it trains, and is searched, without.
    """

    Config: ClassVar[type[TaskConfig]]  # what reads the section ``task`` of a file
    metrics: ClassVar[Metrics]  # what is measured at every size, and which of that scores and figures are of
    recipe_settings: ClassVar[frozenset[str]] = frozenset()  # of LOSS_SETTINGS, those that the loss knows
    recalibrates: ClassVar[bool] = False  # whether it can choose batch-norm statistics per size

    n_train: int  # images
    n_judged: int

    def __init__(
        self,
        config: TaskConfig,
        judge: Judge = "validation",
        device: str = "auto",
        recalibration: Recalibration | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.config, self.judge, self.group, self.recalibration = config, judge, group, recalibration
        self.device = pick_device(device)
        self.file_issues = FileIssues()  # of the image files that were read so far
        self.chosen: dict[int, tuple[str, Statistics]] = {}  # by size, the statistics of the last evaluation
        self.pause: Callable[[], None] = lambda: None  # called between batches of an evaluation
        if recalibration is not None and not self.recalibrates:
            raise InputError(f"evaluate.recalibrate: task {config.kind} does not choose batch-norm statistics")

    # The network and what it costs

    @abstractmethod
    def network(self, seed: int, dropout: float = 0.0, drop_path: float = 0.0) -> nn.Module:
        """Return a fresh network on the task's device; the same seed gives the same weights.

        Raise ValueError where the network does not know an option, or is not known itself.
        """

    @abstractmethod
    def gmacs(self, S: int) -> float:
        """Return 10^9 multiply-accumulates of one image at S.

        Raise ValueError where the network does not take images of this size.
        """

    @classmethod
    @abstractmethod
    def stride(cls, config: TaskConfig) -> int:
        """Return by how much the network shrinks an image side in all: sizes are multiples of it. Reads no data.

        Raise ValueError for a network that is not known.
        """

    # Training

    @abstractmethod
    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batch of every step from ``start`` on, on the task's device: this rank's part of it.

        Of a step of shape (S, B, D) there are B distinct images in D copies each, at S x S. All randomness depends on
        (seed, step) alone, so that a resumed run sees what it would have seen, and is that of the whole step, so that
        the ranks' parts together are the batch of a process alone.
        """

    @abstractmethod
    def training_loss(
        self,
        model: Forward,
        batch: Batch,
        recipe: Recipe,
        shape: BatchShape | None = None,
        blend: Blend | None = None,
        teacher: nn.Module | None = None,
    ) -> Tensor:
        """Return the scalar to minimise: the mean over the batch's images. Reads nothing back from the device.

        ``model`` computes the network (itself, compiled, or wrapped for several ranks) and is called once. ``shape``:
        of the whole step, of which the batch is a rank's part. ``blend``: of mixup or cutmix, where the recipe has
        them. ``teacher``: what ``teacher(recipe)`` gave.
        """

    def teacher(self, recipe: Recipe) -> nn.Module | None:
        """Return the network to learn from, None where the recipe has none. Raise InputError where it cannot be had."""
        return None

    def draw_choices(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[ViewChoices] | None:
        """Yield the random choices of every batch before it is made, for whole steps to be captured as CUDA graphs.

        None where batches are not made on the device from images that lie there.
        """
        return None

    def batch_from_choices(self, S: int, choices: Tensor) -> Batch:
        """Return the batch of what was drawn, from choices on the device; reads nothing back from it."""
        raise NotImplementedError

    def describe_loader(self, schedule: Schedule) -> str:
        """Return who reads the images and how far ahead, for people; empty where they are held in memory."""
        return ""

    # Evaluation

    def evaluate(self, network: nn.Module, sizes: Sequence[int], calibrated: bool = True) -> Curve:
        """Return the network's results at every size, on the images that are judged; its mode is left as found.

        calibrated False: with the running batch-norm statistics, whatever the task's recalibration. Raise
        OutOfMemoryError for a size that does not fit into the device's memory.
        """
        training = network.training
        network.eval()
        try:
            points: list[Point] = []
            for S in sorted(sizes):
                with oom.convert_out_of_memory(lambda S=S: oom.evaluation_too_large(S, [p.S for p in points])):  # type: ignore[misc]
                    points.append(Point(S, self.gmacs(S), self.evaluate_at(network, S, calibrated)))
        finally:
            network.train(training)
        return Curve(tuple(points), self.metrics)

    @abstractmethod
    def evaluate_at(self, network: nn.Module, S: int, calibrated: bool = True) -> dict[str, float]:
        """Return the value of each of ``metrics`` at S, of a network in evaluation mode; see ``evaluate``."""

    def evaluate_changed(self, network: nn.Module, S: int, change: Callable[[Tensor, int], Tensor]) -> dict[str, float]:
        """Return the metrics at S after ``change(pixels [N, 3, S, S] from 0 to 255, number of the batch)``, with the
        statistics that were chosen at S. The network must be in evaluation mode.
        """
        raise InputError(f"task {self.config.kind} does not evaluate on changed images")

    def mirrored(self, network: nn.Module) -> nn.Module:
        """Return the network with test-time augmentation: the mean of what it says of an image and its mirror image."""
        raise InputError(f"task {self.config.kind} has no evaluation on mirrored images")

    # Checks

    def check_sizes(self, wanted: Mapping[str, Iterable[int]]) -> None:
        """Raise InputError where the data are not meant for sizes so large; ``wanted``: by the name of who asks."""

    def check_size(self, S: int) -> None:
        """Raise ValueError when the network cannot take S x S images."""
        self.gmacs(S)

    @classmethod
    def check_recipe(cls, config: TaskConfig, recipe: Recipe, searched: Iterable[str] = ()) -> None:
        """Raise ValueError for settings of the recipe, or ``searched`` ones, that the loss does not know."""
        plain = {f.name: f.default for f in fields(Recipe)}
        used = {name for name in LOSS_SETTINGS if getattr(recipe, name) != plain[name]} | {*searched}
        if foreign := sorted(used & {*LOSS_SETTINGS} - cls.recipe_settings):
            raise ValueError(f"recipe.{foreign[0]}: task {config.kind} has no such thing; leave it out")

    @classmethod
    def expected_images(cls, config: TaskConfig) -> tuple[int, str] | None:
        """Return how many images would be trained on where the data are not there yet, and of what that is the number.

        None where they are there, or nothing is known of them. Raise InputError for what they cannot be.
        """
        return None

    # Words and files

    @classmethod
    @abstractmethod
    def identity(cls, config: TaskConfig) -> DataIdentity:
        """Return the identity of the data that a run sees. Raise InputError where they are missing."""

    def issue_counts(self) -> dict[str, int]:
        """Return how many image files that any rank has read were odd, by kind. To be called by all of them."""
        for rows in self.group.all_gather_json(self.file_issues.take_new()):
            self.file_issues.merge(rows)
        return self.file_issues.counts()

    def weights_header(self) -> dict[str, str]:
        """Return what a file of the network's weights says of them."""
        return {"network": self.config.network}

    def load_weights(self, network: nn.Module, path: Any) -> None:
        """Put a file's weights into the network. Raise InputError when they are another network's."""
        weights.load_weights(network, path, self.config.network)

    def deployment(self) -> Deployment:
        """Return what the network is exported with. Raise InputError where networks of the task are not exported."""
        raise InputError(f"networks of task {self.config.kind} are not exported; use their weights.safetensors")

    def result(self) -> dict[str, Any]:
        """Return what a finished run notes of its task, beside what every run notes."""
        return {}


def make_task(
    config: TaskConfig,
    judge: Judge = "validation",
    device: str = "auto",
    recalibration: Recalibration | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Task[Any]:
    """Return the task that a file's section describes, with its data. Raise InputError where they are missing."""
    return task_class(config.kind)(config, judge, device, recalibration, group)


def check_shapes(shapes: Sequence[BatchShape], config: TaskConfig, n_train: float = math.inf) -> None:
    """Raise ValueError when a size is no multiple of the network's stride or a batch is larger than the data set."""
    stride = task_class(config.kind).stride(config)
    for shape in shapes:
        if shape.S % stride:
            near = max(stride, round(shape.S / stride) * stride)
            raise ValueError(
                f"{shape.S} px is not a multiple of {config.network}'s total stride {stride} (nearest: {near}); off "
                "the grid the cost is not proportional to S^2"
            )
        if n_train < shape.B:
            raise ValueError(f"shape {shape} needs {shape.B} distinct images, and there are {n_train} to train on")
