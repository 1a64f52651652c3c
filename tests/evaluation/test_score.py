import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve, Point
from mixtune.evaluation.metrics import Metric, Metrics
from mixtune.evaluation.predictions import METRICS
from mixtune.evaluation.score import Score, direction, objective
from tests.curves import curve_of, point

CURVE = curve_of(
    point(8, 0.1, top1=0.80, loss=0.6, ece=0.05),
    point(12, 0.2, top1=0.895, loss=0.4, ece=0.02),
    point(16, 0.4, top1=0.90, loss=0.2, ece=0.02),
    point(20, 0.8, top1=0.85, loss=0.4, ece=0.07),
)
ERROR = Metrics(Metric("rmse", "RMSE", worst=10.0, best=0.0, unit=""), (), "error")
FALLING = Curve(tuple(Point(S, S / 10, {"rmse": v}) for S, v in ((8, 4.0), (16, 1.0), (24, 2.0))), ERROR)


@pytest.mark.parametrize(("cap", "score"), [(0.1, 0.80), (0.3, 0.895), (0.4, 0.90), (9.0, 0.90), (0.05, 0.0)])
def test_accuracy_under_a_cap_is_the_best_of_the_sizes_that_are_cheap_enough(cap, score):
    assert Score("capped", gmacs=cap).of(CURVE) == score


def test_a_measure_and_what_goes_with_it_belong_together():
    for given in ({"measure": "capped"}, {"measure": "capped", "gmacs": 0}, {"gmacs": 1.0}, {"measure": "top1"}):
        with pytest.raises(InputError, match=r"goes with measure|must be above 0"):
            parse(given, Score, "f")


@pytest.mark.parametrize("measure", ["at_size", "top1"])
def test_the_score_at_a_size_has_two_names_where_top1_is_the_primary_metric(measure):
    score = Score(measure, S=12)
    assert score.of(CURVE) == 0.895
    assert "top-1 at 12 px" in score.describe(METRICS)
    score.check((8, 12), METRICS)
    with pytest.raises(ValueError, match=r"score\.S is 12"):
        score.check((8,), METRICS)


def test_top1_is_no_score_of_a_task_without_it():
    with pytest.raises(ValueError, match=r"score\.measure.*rmse"):
        Score("top1", S=8).check((8,), ERROR)
    Score("at_size", S=8).check((8,), ERROR)


def test_a_metric_of_which_less_is_better_scores_the_more_the_smaller_it_is():
    """By hand: from worst 10 to best 0, the values 4, 1 and 2 are worth 0.6, 0.9 and 0.8."""
    assert Score("mean").of(FALLING) == pytest.approx((0.6 + 0.9 + 0.8) / 3)
    assert Score("at_size", S=16).of(FALLING) == pytest.approx(0.9)
    assert Score("capped", gmacs=1.0).of(FALLING) == pytest.approx(0.6)
    assert 0.6 < Score().of(FALLING) < 0.9
    assert FALLING.best.S == 16
    assert objective("gmacs", FALLING, Score()) == 1.6
    assert objective("rmse", FALLING, Score()) == pytest.approx(7 / 3)
    assert direction("rmse", ERROR) == "minimize"


def test_objectives_have_directions_and_others_are_named():
    ways = [direction(name, METRICS) for name in ("score", "gmacs", "top1", "top5", "loss", "ece")]
    assert ways == ["maximize", "minimize", "maximize", "maximize", "minimize", "minimize"]
    with pytest.raises(ValueError, match=r"'los'.*'loss'"):
        direction("los", METRICS)


def test_objectives_are_what_they_say():
    score = Score("mean")
    assert objective("score", CURVE, score) == pytest.approx((0.80 + 0.895 + 0.90 + 0.85) / 4)
    assert objective("gmacs", CURVE, score) == 0.2  # within a point of the best, which costs twice as much
    assert objective("ece", CURVE, score) == pytest.approx(0.04)
    assert objective("loss", CURVE, score) == pytest.approx(0.4)
