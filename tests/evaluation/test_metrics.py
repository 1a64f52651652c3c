import math

import pytest

from mixtune.evaluation.metrics import Metric, Metrics
from mixtune.evaluation.predictions import METRICS

LOSS = Metric("loss", "loss", worst=math.inf, best=0.0, unit="")

pytestmark = pytest.mark.arithmetic


def test_the_range_says_which_way_is_better():
    assert Metric("iou", "IoU").direction == "maximize"
    assert LOSS.direction == Metric("rmse", "RMSE", worst=10.0, best=0.0).direction == "minimize"


def test_quality_runs_from_the_worst_to_the_best_and_is_the_value_itself_from_0_to_1():
    rmse = Metric("rmse", "RMSE", worst=10.0, best=0.0)
    assert [rmse.quality(v) for v in (10.0, 4.0, 0.0)] == pytest.approx([0.0, 0.6, 1.0])
    assert all(METRICS.primary.quality(v) == v for v in (0.1, 1 / 3, 0.7))  # to the bit


@pytest.mark.parametrize(
    ("metric", "axis", "shown"), [(METRICS["top1"], "top-1 accuracy, %", "12.35"), (LOSS, "loss", "0.1235")]
)
def test_a_metric_is_shown_in_its_unit(metric, axis, shown):
    assert (metric.axis, metric.shown(0.12346)) == (axis, shown)


def test_the_primary_metric_comes_first_and_others_are_had_by_name():
    assert METRICS.names == ("top1", "top5", "loss", "ece")
    assert METRICS["ece"].label == "ECE"
    assert "ece" in METRICS
    assert "miou" not in METRICS
    with pytest.raises(KeyError, match=r"'top2'.*'top"):
        METRICS["top2"]


@pytest.mark.parametrize("metrics", [(Metric("a", "a"), (Metric("a", "b"),)), (Metric("gmacs", "cost"),), (LOSS,)])
def test_names_must_tell_metrics_from_costs_and_a_score_needs_a_range(metrics):
    with pytest.raises(ValueError, match=metrics[0].name):
        Metrics(*metrics)
