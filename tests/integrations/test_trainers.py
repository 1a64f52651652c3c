"""A regime in other people's trainers: Lightning's Trainer, and timm's schedulers in a plain loop."""

import pytest
import torch

from mixtune.integrations.loader import mixed_loader
from tests import mixed
from tests.mixed import N

pytestmark = pytest.mark.arithmetic


@pytest.fixture
def dataset():
    return mixed.images()


@pytest.fixture
def schedule():
    return mixed.steps(3)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, N))


def plain(dataset, schedule, rate):
    """The oracle: the same training in a loop of its own."""
    net = network()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for step, (images, labels) in enumerate(mixed_loader(dataset, schedule)):
        optimiser.param_groups[0]["lr"] = rate(step)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    return net.state_dict()


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_a_schedule_as_one_epoch(dataset, schedule, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning")

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.seen = network(), []

        def training_step(self, batch, step):
            images, labels = batch
            self.seen.append(tuple(images.shape))
            return torch.nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self):
            optimiser = torch.optim.SGD(self.parameters(), lr=0.1)
            rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - schedule.progress[min(step, last)])
            return [optimiser], [{"scheduler": rates, "interval": "step"}]

    last = len(schedule) - 1
    model = Model()
    trainer = lightning.Trainer(
        max_epochs=1, use_distributed_sampler=False, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, mixed_loader(dataset, schedule))
    assert model.seen == [(s.views, 3, s.S, s.S) for s in schedule]
    expected = plain(dataset, schedule, lambda step: 0.1 * (1 - schedule.progress[step]))
    assert same(model.network.state_dict(), expected)


def test_timms_scheduler_counts_the_steps_of_a_schedule(dataset, schedule):
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    net, loader = network(), mixed_loader(dataset, schedule)
    optimiser = create_optimizer_v2(net, "momentum", lr=0.1, weight_decay=0.0, momentum=0.0)
    rates, _ = create_scheduler_v2(
        optimiser, "cosine", num_epochs=1, updates_per_epoch=len(loader), step_on_epochs=False, warmup_epochs=0
    )
    used = []
    for step, (images, labels) in enumerate(loader):
        rates.step_update(step)
        used.append(optimiser.param_groups[0]["lr"])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    assert used[0] == pytest.approx(0.1)
    assert used == sorted(used, reverse=True)
    assert used[-1] < 0.01
    assert same(net.state_dict(), plain(dataset, schedule, lambda step: used[step]))
