import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixtune.data.file_issues import LEFT_OUT
from mixtune.evaluation.predictions import METRICS, calibration_error, predict


class Fixed(nn.Module):
    """A network whose logits are its input's first pixels."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return x.flatten(1)[:, : self.classes]


def measure(network, data):
    return predict(network, data).metrics()


def batches(n, classes, seed, sharpness=2.0):
    g = torch.Generator().manual_seed(seed)
    x = sharpness * torch.randn(n, 3, 8, 8, generator=g)
    y = torch.randint(0, classes, (n,), generator=g)
    x[torch.arange(n), 0, 0, y] += 1.0  # better than chance; y < 8
    return list(zip(x.split(37), y.split(37), strict=True))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sharpness", [0.5, 2.0, 6.0])
def test_metrics_agree_with_torchmetrics(seed, sharpness):
    tm = pytest.importorskip("torchmetrics.functional.classification")
    data = batches(500, 7, seed, sharpness)
    got = measure(Fixed(7), data)
    logits = torch.cat([Fixed(7)(x) for x, _ in data])
    y = torch.cat([y for _, y in data])
    ece = tm.multiclass_calibration_error(logits.softmax(1), y, num_classes=7, n_bins=15, norm="l1")
    assert got["ece"] == pytest.approx(float(ece), abs=1e-5)
    assert got["top1"] == pytest.approx(float(tm.multiclass_accuracy(logits, y, 7, average="micro")), abs=1e-6)
    assert got["top5"] == pytest.approx(float(tm.multiclass_accuracy(logits, y, 7, top_k=5, average="micro")), abs=1e-6)
    assert got["loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)


def test_calibration_error_of_hand_counted_bins():
    # Two bins: confidence 0.5 (three of four right) and 0.9 (half right).
    confidence = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9, 0.9])
    correct = torch.tensor([True, True, True, False, True, False])
    expected = (4 * abs(0.75 - 0.5) + 2 * abs(0.5 - 0.9)) / 6
    assert calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(torch.tensor([1.0, 0.0]), torch.tensor([True, False])) == 0


def test_fewer_classes_than_five_count_as_right_in_top5():
    assert measure(Fixed(3), batches(50, 3, 0))["top5"] == 1


def test_the_batch_size_does_not_matter():
    data = batches(100, 5, 0)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    assert measure(Fixed(5), data) == pytest.approx(measure(Fixed(5), [(x, y)]))


def test_metrics_are_those_that_the_task_names():
    assert tuple(measure(Fixed(5), batches(50, 5, 0))) == METRICS.names


def test_images_that_could_not_be_read_count_for_nothing():
    data = batches(100, 5, 0)
    x, y = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    lost = torch.arange(100) % 7 == 0
    marked = measure(Fixed(5), [(x, y.masked_fill(lost, LEFT_OUT))])
    assert marked == pytest.approx(measure(Fixed(5), [(x[~lost], y[~lost])]))
