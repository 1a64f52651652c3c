"""A regime in a user's own loop: the sizes of the schedule, the same images whatever the workers, ranks and resumes."""

import pytest
import torch

from mixtune import Budget, Mixture, Regime, Schedule, load_regime
from mixtune.integrations.loader import MixedSizes, SampleViews, mixed_loader, random_crops
from mixtune.regime import Shard
from mixtune.regime.files import save_regime
from tests import mixed
from tests.mixed import SHAPES, N

pytestmark = pytest.mark.arithmetic


@pytest.fixture
def dataset():
    return mixed.images()


@pytest.fixture
def schedule():
    return mixed.steps(2)


def test_ten_lines_train_a_network_on_a_regime_file(dataset, tmp_path):
    save_regime(tmp_path / "best.yaml", Regime.of(SHAPES[1], [Mixture.of(SHAPES)]))
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, N))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)

    regime, _ = load_regime(tmp_path / "best.yaml")
    schedule = Schedule.build(regime, Budget(epochs=2), len(dataset), seed=0)
    for step, (images, labels) in enumerate(mixed_loader(dataset, schedule)):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 - schedule.progress[step])
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    assert step + 1 == len(schedule)
    assert torch.isfinite(loss)


def test_every_step_has_its_shape_and_its_samples(dataset, schedule):
    loader = mixed_loader(dataset, schedule)
    assert len(loader) == len(schedule)
    samples = schedule.sample_batches(N, 0)
    seen = set()
    for (x, y), shape, drawn in zip(loader, schedule, samples, strict=True):
        assert x.shape == (shape.views, 3, shape.S, shape.S)
        assert y.tolist() == [i for i in drawn.tolist() for _ in range(shape.D)]
        assert 0 <= x.min() <= x.max() <= 1
        if shape.D == 2:
            assert not torch.equal(x[0], x[1])  # copies are augmented each on their own
        seen.add(shape)
    assert seen == set(SHAPES)


def test_workers_and_resuming_change_nothing(dataset, schedule):
    whole = list(mixed_loader(dataset, schedule, seed=3))
    split = list(mixed_loader(dataset, schedule, seed=3, num_workers=2))
    rest = list(mixed_loader(dataset, schedule, seed=3, start=4))
    assert len(rest) == len(whole) - 4
    for a, b in (*zip(whole, split, strict=True), *zip(whole[4:], rest, strict=True)):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    other = list(mixed_loader(dataset, schedule, seed=4))
    assert not torch.equal(whole[0][1], other[0][1])


def test_processes_share_every_step(schedule):
    whole = list(MixedSizes(schedule, N))
    parts = [list(MixedSizes(schedule, N, shard=Shard(r, 4))) for r in range(4)]
    for step, keys in enumerate(whole):
        mine = [part[step] for part in parts]
        assert sorted(k for part in mine for k in part) == sorted(keys)
        assert max(map(len, mine)) - min(map(len, mine)) <= 1


def test_the_users_random_numbers_are_left_alone(dataset, schedule):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    _ = SampleViews(dataset, random_crops)[(0, 8, 2, 0, 0)]
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_work_is_said(dataset, schedule):
    with pytest.raises(ValueError, match=r"16x6\b.*\b6\b.*\b8\b"):
        MixedSizes(schedule, N, shard=Shard(0, 8))
    with pytest.raises(ValueError, match=r"transform_at\(8\).*3, 20, 24.*3, 8, 8"):
        _ = SampleViews(dataset, lambda S: lambda x: x)[(0, 8, 1, 0, 0)]


def test_an_image_folder_is_read_as_the_trainer_reads_it(tmp_path):
    import numpy as np
    from PIL import Image
    from torchvision.datasets import ImageFolder

    from mixtune.data import augment
    from mixtune.data.sources import Files

    rng = np.random.default_rng(0)
    for i in range(16):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"c{i % 2}" / f"{i}.png")
    folder = ImageFolder(str(tmp_path))
    steps = mixed.steps(4, 16)
    made = mixed_loader(folder, steps, seed=3, start=1)
    files = Files(tuple(p for p, _ in folder.samples), torch.tensor(folder.targets))
    read = augment.file_batches(files, steps, augment.Augment(), True, 3, 1, 0)
    theirs = [(x.clone(), y) for x, y in read]
    assert len(made) == len(theirs)
    for (x, y), (u, v) in zip(made, theirs, strict=True):
        assert torch.equal(x, u / 255)
        assert torch.equal(y, v)
    folder.transform = lambda image: image
    assert isinstance(mixed_loader(folder, steps), torch.utils.data.DataLoader)
