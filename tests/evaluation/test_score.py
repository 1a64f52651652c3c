import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve, Point
from mixtune.evaluation.score import Score, objective

CURVE = Curve(
    (
        Point(8, 0.1, top1=0.80, top5=1.0, loss=0.6, ece=0.05),
        Point(12, 0.2, top1=0.895, top5=1.0, loss=0.4, ece=0.02),
        Point(16, 0.4, top1=0.90, top5=1.0, loss=0.2, ece=0.02),
        Point(20, 0.8, top1=0.85, top5=1.0, loss=0.4, ece=0.07),
    )
)


@pytest.mark.parametrize(("cap", "score"), [(0.1, 0.80), (0.3, 0.895), (0.4, 0.90), (9.0, 0.90), (0.05, 0.0)])
def test_accuracy_under_a_cap_is_the_best_of_the_sizes_that_are_cheap_enough(cap, score):
    assert Score("capped", gmacs=cap).of(CURVE) == score


def test_a_measure_and_what_goes_with_it_belong_together():
    for given in ({"measure": "capped"}, {"measure": "capped", "gmacs": 0}, {"gmacs": 1.0}, {"measure": "top1"}):
        with pytest.raises(InputError, match=r"goes with measure|must be above 0"):
            parse(given, Score, "f")


def test_objectives_are_what_they_say():
    score = Score("mean")
    assert objective("score", CURVE, score) == pytest.approx((0.80 + 0.895 + 0.90 + 0.85) / 4)
    assert objective("gmacs", CURVE, score) == 0.2  # within a point of the best, which costs twice as much
    assert objective("ece", CURVE, score) == pytest.approx(0.04)
    assert objective("loss", CURVE, score) == pytest.approx(0.4)
