import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.evaluation.curve import Curve, Point, cost_range, front, hypervolume


def point(S, **more):
    return Point(S, **({"gmacs": S**2 / 1000, "top1": 0.5, "top5": 0.75, "loss": 1.25, "ece": 0.1} | more))


def test_hypervolume_of_hand_counted_rectangles():
    """Costs 1, 2, 4 on an axis from 1 to 8: each takes one third of the logarithmic axis."""
    assert hypervolume([1, 2, 4], [0.3, 0.6, 0.9], 1, 8) == pytest.approx((0.3 + 0.6 + 0.9) / 3)
    assert hypervolume([1, 2, 4], [0.3, 0.9, 0.6], 1, 8) == pytest.approx((0.3 + 0.9 + 0.9) / 3)
    assert hypervolume([2], [0.5], 1, 8) == pytest.approx(0.5 * 2 / 3)  # nothing below cost 2
    assert hypervolume([0.5], [0.5], 1, 8) == pytest.approx(0.5)  # cheaper than the axis
    assert hypervolume([8, 9], [1, 1], 1, 8) == 0  # dearer than the axis
    assert hypervolume([], [], 1, 8) == 0


points = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=8)


@given(points)
def test_hypervolume_agrees_with_a_sum_over_a_fine_grid(rows):
    low, high, n = 0.5, 50.0, 4000
    costs, accuracies = zip(*rows, strict=True)
    total = 0.0
    for k in range(n):
        cost = low * (high / low) ** ((k + 0.5) / n)
        total += max((a for c, a in rows if c <= cost), default=0.0)
    assert hypervolume(costs, accuracies, low, high) == pytest.approx(total / n, abs=0.005)


@given(points, st.floats(0.1, 100), st.floats(0, 1))
def test_another_point_never_lowers_the_hypervolume(rows, cost, accuracy):
    costs, accuracies = map(list, zip(*rows, strict=True))
    assert (
        hypervolume([*costs, cost], [*accuracies, accuracy], 0.5, 50) >= hypervolume(costs, accuracies, 0.5, 50) - 1e-12
    )


@given(points)
def test_the_front_is_what_no_other_point_dominates(rows):
    costs, accuracies = zip(*rows, strict=True)
    kept = front(costs, accuracies)
    for i, j in itertools.product(range(len(rows)), kept):
        better = costs[i] <= costs[j] and accuracies[i] >= accuracies[j]
        strictly = costs[i] < costs[j] or accuracies[i] > accuracies[j]
        assert not (better and strictly)
    for i in range(len(rows)):
        assert any(costs[j] <= costs[i] and accuracies[j] >= accuracies[i] for j in kept)


def test_the_default_axis_ends_one_step_above_the_dearest():
    assert cost_range([1, 2, 4]) == pytest.approx((1, 8))
    assert cost_range([3]) == (3, 6)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (1, 1), (-1, 1)])
def test_an_axis_that_does_not_rise_is_refused(low, high):
    with pytest.raises(ValueError, match="cost axis"):
        hypervolume([1], [1], low, high)


def test_rows_round_trip_also_as_text():
    curve = Curve((point(8), point(16, top1=1 / 3)))
    assert Curve.from_rows(curve.rows()) == curve
    assert Curve.from_rows([{k: repr(v) for k, v in row.items()} for row in curve.rows()]) == curve
    assert curve.sizes == (8, 16)
    assert math.isclose(curve.at(16).top1, 1 / 3)
    with pytest.raises(KeyError, match="not evaluated at 12 px"):
        curve.at(12)


@pytest.mark.parametrize("sizes", [[], [8, 8], [16, 8]])
def test_sizes_must_rise(sizes):
    with pytest.raises(ValueError, match="must rise"):
        Curve(tuple(point(S) for S in sizes))
