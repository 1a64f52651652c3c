import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn

from mixtune.evaluation.bn_recalibration import statistics, using
from mixtune.evaluation.corruptions import FAMILIES, FlipTTA, corrupt, robustness
from mixtune.evaluation.latency import measure_cost, peak_memory, with_cost
from mixtune.models.registry import create_network
from mixtune.tasks.classification import Classification
from mixtune.tasks.classification_config import ClassificationConfig
from tests.curves import curve_of, from_rows, point

pytestmark = pytest.mark.arithmetic


def images(n=4, S=32):
    """Smooth pictures, so that blurring and coding act as on photographs."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(40, 215, (n, 3, 6, 6))).float()
    return torch.nn.functional.interpolate(coarse, size=(S, S), mode="bicubic").clamp(0, 255).round()


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_severity_is_further_from_the_image_than_the_last(family, small):
    x = images(S=32 if small else 96)
    distance = [float((corrupt(x, family, s, small) - x).pow(2).mean()) for s in range(1, 6)]
    assert distance[0] > 0
    if family == "pixelate":  # at 32 px the grid falls now better, now worse
        assert distance[0] < distance[4]
    else:
        assert distance == sorted(distance)
    assert all(float(corrupt(x, family, s, small).min()) >= 0 for s in range(1, 6))
    assert all(float(corrupt(x, family, s, small).max()) <= 255 for s in range(1, 6))


def test_noise_has_the_stated_deviation_and_the_seed_decides_it():
    x = torch.full((8, 3, 32, 32), 128.0)
    for severity, deviation in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        noise = (corrupt(x, "noise", severity, True) - x) / 255
        assert float(noise.std()) == pytest.approx(deviation, rel=0.03)
    assert torch.equal(corrupt(x, "noise", 3, True, 1), corrupt(x, "noise", 3, True, 1))
    assert not torch.equal(corrupt(x, "noise", 3, True, 1), corrupt(x, "noise", 3, True, 2))


def test_brightness_and_contrast_by_hand():
    x = images()
    assert torch.allclose(corrupt(x, "brightness", 2, True), (x + 25.5).clamp(0, 255))
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(x, "contrast", 3, True), (0.4 * (x - mean) + mean).clamp(0, 255), atol=1e-3)


def pil(x):
    return Image.fromarray(x.permute(1, 2, 0).byte().numpy())


def test_blur_is_about_pillows():
    x = images(1, 96)
    theirs = torch.from_numpy(np.array(pil(x[0]).filter(ImageFilter.GaussianBlur(2)))).permute(2, 0, 1).float()
    inner = (slice(None), slice(12, -12), slice(12, -12))  # the borders are treated differently
    ours = corrupt(x, "blur", 2, small=False)[0]
    assert float((ours - theirs)[inner].abs().mean()) < 1.0


def test_jpeg_is_pillows_coder_at_the_stated_quality():
    x = images(2, 64)
    for image, ours in zip(x, corrupt(x, "jpeg", 4, True), strict=True):
        buffer = io.BytesIO()
        pil(image).save(buffer, "JPEG", quality=50)
        assert torch.equal(ours, torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float())


def test_rows_come_for_every_family_and_severity_and_the_mode_is_left():
    task = Classification(ClassificationConfig("digits", "cifar_resnet8", samples=150, validation=0.3), device="cpu")
    network = task.network(0).train()
    rows = robustness(task, network, 8, ["noise", "jpeg"], [1, 5])
    assert [(r["family"], r["severity"]) for r in rows] == [("noise", 1), ("noise", 5), ("jpeg", 1), ("jpeg", 5)]
    assert network.training
    assert robustness(task, network, 8, ["noise", "jpeg"], [1, 5]) == rows


def test_an_unchanged_image_gives_the_plain_accuracy():
    task = Classification(ClassificationConfig("digits", "cifar_resnet8", samples=150, validation=0.3), device="cpu")

    network = task.network(0).eval()
    plain = task.evaluate(network, [12]).at(12).metrics["top1"]
    assert task.evaluate_changed(network, 12, lambda x, _: x)["top1"] == plain


def test_the_mean_over_mirrors_does_not_change_under_mirroring():
    network = FlipTTA(create_network("cifar_resnet8", 10).eval())
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x), network(x.flip(3)), atol=1e-6)
    assert torch.allclose(network(x), (network.network(x) + network.network(x.flip(3))) / 2)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        assert not self.training
        self.batches.append(tuple(x.shape))
        return x.mean((2, 3))


def test_corruptions_are_judged_with_the_statistics_that_were_chosen():
    task = Classification(ClassificationConfig("digits", "cifar_resnet8", samples=200, validation=0.25), device="cpu")
    network = create_network("cifar_resnet8", 10)
    plain = robustness(task, network, 8, ["noise"], [1])
    other = {k: v + 1 for k, v in statistics(network).items()}
    task.chosen[8] = ("train", other)
    chosen = robustness(task, network, 8, ["noise"], [1])
    assert statistics(network).keys() == other.keys()
    with using(network, other):
        task.chosen.clear()
        assert robustness(task, network, 8, ["noise"], [1]) == chosen
    assert robustness(task, network, 8, ["noise"], [1]) == plain


def test_latency_is_measured_at_the_stated_batch_in_evaluation_mode():
    network = Counting().train()
    cost = measure_cost(network, 24, 5, torch.device("cpu"), repeats=3)
    assert network.batches == [(5, 3, 24, 24)] * 6  # two to warm up, three timed, one whose memory is watched
    assert cost.latency > 0
    assert cost.memory >= 5 * 3 * 24 * 24 * 4
    assert network.training


def test_peak_memory_is_what_lives_at_once():
    """Two layers of 4,000 and 1,000 units by hand: the first output and its ReLU live together, and nothing else."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(300, 4000, bias=False), nn.ReLU(), nn.Linear(4000, 1000))
    weights = 4 * (300 * 4000 + 4000 * 1000 + 1000)
    for batch in (16, 64):
        x = torch.zeros(batch, 3, 10, 10)
        assert peak_memory(network.eval(), x) == weights + 4 * batch * (300 + 2 * 4000)


def test_peak_memory_grows_with_the_square_of_the_size():
    network = create_network("cifar_resnet8", 10).eval()
    small, large = (peak_memory(network, torch.zeros(4, 3, S, S)) for S in (32, 64))
    weights = sum(t.nbytes for t in network.state_dict().values())
    assert (large - weights) / (small - weights) == pytest.approx(4, rel=0.01)


def test_measured_values_travel_in_rows_and_old_rows_still_load():
    curve = curve_of(point(8, 0.1, 0.5, 0.9, 1.0), point(16, 0.4, 0.6, 0.9, 1.0))
    measured = with_cost(curve, Counting(), 2, torch.device("cpu"))
    assert from_rows(measured.rows()) == measured
    assert "latency" not in curve.rows()[0]
    assert from_rows(curve.rows()) == curve
    assert from_rows([{**r, "latency": "", "memory": ""} for r in curve.rows()]) == curve  # CSV
