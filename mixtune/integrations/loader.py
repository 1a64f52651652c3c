"""A regime in a user's own training loop: a batch sampler, the views it asks for, and the loader made of both.

    regime, _ = load_regime("best.yaml")
    schedule = Schedule.build(regime, Budget(epochs=90), len(dataset), seed=0)
    for step, (images, labels) in enumerate(mixed_loader(dataset, schedule, num_workers=8)):
        ...  # images are [B*D, 3, S, S]; schedule.progress[step] is the share of the budget spent

S, B, D as in ``regime.shapes``. ``dataset`` is any map-style one whose items are (PIL image or tensor, label), without
a transform of its own. Every random choice comes from (seed, step, sample), whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mixtune.data import augment
from mixtune.data.file_issues import FileIssues
from mixtune.data.normalise import Normalise
from mixtune.data.sources import Files
from mixtune.regime import WHOLE, Schedule, Shard

Key = tuple[int, int, int, int, int]  # sample, S, D, seed, step
Transform = Callable[[Any], Tensor]


class Samples(Sized, Protocol):
    """A map-style data set: items are (image, label)."""

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        """Return the image and label of sample i."""


class MixedSizes(Sampler[list[Key]]):
    """Batch sampler: for every step of a schedule the keys of its samples, which say at which size they are wanted.

    ``start``: the first step (to resume). ``shard``: the part of each step's B images that this process takes; the
    loss of a step is the mean over all processes, weighted by their images. Raises ValueError when a step has fewer
    images than there are processes.
    """

    def __init__(self, schedule: Schedule, n_samples: int, seed: int = 0, start: int = 0, shard: Shard = WHOLE) -> None:
        shard.check(schedule.shapes)
        self.schedule, self.n_samples, self.seed, self.start = schedule, n_samples, seed, start
        self.shard = shard

    def __len__(self) -> int:
        return len(self.schedule) - self.start

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self.schedule.sample_batches(self.n_samples, self.seed, self.start)
        for step, samples in enumerate(batches, start=self.start):
            shape = self.schedule.shapes[self.schedule.index[step]]
            mine = samples[self.shard.part(len(samples))]
            yield [(int(i), shape.S, shape.D, self.seed, step) for i in mine]


class SampleViews(Dataset[tuple[Tensor, Tensor]]):
    """A data set of views: D of a sample, [D, 3, S, S], each transformed on its own, and D labels.

    ``transform_at(S)`` gives the transform to a tensor [3, S, S]; the sample is read once for all its views.
    """

    def __init__(self, dataset: Samples, transform_at: Callable[[int], Transform]) -> None:
        self.dataset, self.transform_at = dataset, transform_at
        self._transforms: dict[int, Transform] = {}

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        sample, S, D, seed, step = key
        image, label = self.dataset[sample]
        if S not in self._transforms:
            self._transforms[S] = self.transform_at(S)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((seed, step, sample)).generate_state(1)[0]))
            views = torch.stack([self._transforms[S](image) for _ in range(D)])
        if views.shape[-2:] != (S, S):
            raise ValueError(f"transform_at({S}) gave an image of {tuple(views.shape[1:])}, not [3, {S}, {S}]")
        return views, torch.as_tensor(label).repeat(D)


def random_crops(S: int) -> Transform:
    """Return the usual augmentation of photographs: a random crop resized to S, mirrored or not, pixels 0 to 1."""
    from torchvision.transforms import v2

    steps = [v2.ToImage(), v2.RandomResizedCrop((S, S), antialias=True), v2.RandomHorizontalFlip()]
    transform: Transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
    return transform


def collate_views(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a step's views and labels, [B*D, 3, S, S] and [B*D]; the copies of a sample are neighbours."""
    return torch.cat([x for x, _ in items]), torch.cat([y for _, y in items])


class FolderLoader(Sized):
    """Batches of a schedule from image files, by the trainer's own loader; its length is the number of steps."""

    def __init__(self, files: Files, schedule: Schedule, seed: int, start: int, shard: Shard, workers: int) -> None:
        shard.check(schedule.shapes)
        self.files, self.schedule, self.seed, self.start = files, schedule, seed, start
        self.shard, self.workers = shard, workers
        self.issues = FileIssues()  # of the files read so far

    def __len__(self) -> int:
        return len(self.schedule) - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        to_unit_range, random_crops = Normalise((0, 0, 0), (1, 1, 1), augment.CPU), augment.Augment()
        for pixels, labels in augment.file_batches(
            self.files,
            self.schedule,
            random_crops,
            True,
            self.seed,
            self.start,
            self.workers,
            shard=self.shard,
            issues=self.issues,
        ):
            yield to_unit_range(pixels), labels


def mixed_loader(
    dataset: Samples,
    schedule: Schedule,
    transform_at: Callable[[int], Transform] | None = None,
    seed: int = 0,
    start: int = 0,
    shard: Shard = WHOLE,
    num_workers: int = 0,
    **options: Any,
) -> FolderLoader | DataLoader[tuple[Tensor, Tensor]]:
    """Return one loader for all sizes of a schedule; its length is the number of steps.

    A torchvision ``ImageFolder`` without transforms is read as the trainer reads it: same views, same speed. Any other
    data set, or one with ``transform_at`` (default: ``random_crops``), goes through torch's DataLoader, which gets the
    ``options`` (pin_memory, ...). With Lightning, give it as the training loader for one epoch, and
    ``Trainer(max_epochs=1, use_distributed_sampler=False)``.
    """
    samples = getattr(dataset, "samples", None)
    plain = not any(getattr(dataset, name, None) for name in ("transform", "target_transform", "transforms"))
    if transform_at is None and not options and plain and isinstance(samples, list) and hasattr(dataset, "loader"):
        files = Files(tuple(str(p) for p, _ in samples), torch.tensor([label for _, label in samples]))
        return FolderLoader(files, schedule, seed, start, shard, num_workers)
    sampler = MixedSizes(schedule, len(dataset), seed, start, shard)
    items = SampleViews(dataset, transform_at or random_crops)
    return DataLoader(items, batch_sampler=sampler, collate_fn=collate_views, num_workers=num_workers, **options)  # type: ignore[arg-type]
