"""The pages' Python, pasted as it stands into a script that has only what the page says a user has."""

import re

import pytest
import torch

from benchmarks.readme import pages
from mixtune import BatchShape, Budget, Mixture, Regime, Schedule
from mixtune.integrations.loader import mixed_loader
from mixtune.regime.files import save_regime
from tests.integrations.test_loader import SHAPES, N, dataset  # noqa: F401 (a fixture)

BLOCKS = [code for page in pages() for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
LOOPS = [code for code in BLOCKS if "load_regime(" in code]


def quickly(code):
    """Without the eight processes and the ninety epochs, which add minutes to a test."""
    assert "num_workers=8" in code
    return code.replace("num_workers=8", "num_workers=0").replace("epochs=90", "epochs=2")


def test_every_block_is_run_by_a_test_of_this_module():
    assert len(LOOPS) >= 2
    assert len(BLOCKS) - len(LOOPS) == 2


@pytest.mark.parametrize("code", LOOPS)
def test_the_loop_takes_every_step_of_the_regime_file(code, dataset, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    save_regime("best.yaml", Regime.of(SHAPES[1], [Mixture.of(SHAPES)]))
    seen = []
    code = quickly(code).replace("...", "seen.append(tuple(images.shape))", 1)
    given = {"dataset": dataset, "seen": seen}
    exec(code, given)
    assert len(seen) == len(given["schedule"]) == given["step"] + 1
    assert set(seen) == {(s.views, 3, s.S, s.S) for s in SHAPES}


@pytest.mark.filterwarnings("ignore")
def test_the_lines_for_lightning_and_timm_train_as_they_stand(dataset, tmp_path):  # noqa: F811
    lightning = pytest.importorskip("pytorch_lightning")
    from timm.scheduler import create_scheduler_v2

    code = "\n".join(c for c in BLOCKS if c not in LOOPS)  # Lightning's, then timm's
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, N))
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def training_step(self, batch, step):
            images, labels = batch
            seen.append(tuple(images.shape))
            return torch.nn.functional.cross_entropy(self.network(images), labels)

        def configure_optimizers(self):
            return [given["optimizer"]], [{"scheduler": given["rates"], "interval": "step"}]

    schedule = Schedule.build(Regime.of(BatchShape(16, 6), [Mixture.of(SHAPES)]), Budget(1), N, seed=0)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    given = {
        "Trainer": lambda **said: lightning.Trainer(**said, **quiet, enable_model_summary=False),
        "LambdaLR": torch.optim.lr_scheduler.LambdaLR,
        "create_scheduler_v2": create_scheduler_v2,
        "mixed_loader": mixed_loader,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "module": Module(),
        "dataset": dataset,
        "schedule": schedule,
        "loader": mixed_loader(dataset, schedule),
        "step": len(schedule) - 1,
    }
    exec(quickly(code), given)
    assert seen == [(s.views, 3, s.S, s.S) for s in schedule]
    assert given["optimizer"].param_groups[0]["lr"] < 0.05  # timm's, at the last step
