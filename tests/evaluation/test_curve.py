import csv
import io
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.evaluation.curve import cost_range, front, hypervolume, mean_curve, write_csv
from tests import curves


def point(S, top1=0.5):
    return curves.point(S, S**2 / 1000, top1, 0.75, 1.25)


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
    curve = curves.curve_of(point(8), point(16, top1=1 / 3))
    assert curves.from_rows(curve.rows()) == curve
    assert curves.from_rows([{k: repr(v) for k, v in row.items()} for row in curve.rows()]) == curve
    assert curve.sizes == (8, 16)
    assert math.isclose(curve.at(16).metrics["top1"], 1 / 3)
    with pytest.raises(KeyError, match="not evaluated at 12 px"):
        curve.at(12)


@pytest.mark.parametrize("sizes", [[], [8, 8], [16, 8]])
def test_sizes_must_rise(sizes):
    with pytest.raises(ValueError, match="must rise"):
        curves.curve_of(*(point(S) for S in sizes))


# As the version before metrics had names wrote them: in Optuna's attributes, and in curve.csv.
STORED = """[{"S": 8, "gmacs": 0.000781952, "top1": 0.61, "top5": 0.94, "loss": 1.2345678901234567, "ece": 0.1},
{"S": 12, "gmacs": 0.001758592, "top1": 0.7, "top5": 1.0, "loss": 1.0, "ece": 0.05, "latency": 0.001, "memory": 5.0}]"""
CSV = "S,gmacs,top1,top5,loss,ece\n8,0.000781952,0.61,0.94,1.2345678901234567,0.1\n"


def test_what_an_earlier_version_stored_is_read_and_written_the_same(tmp_path):
    rows = json.loads(STORED)
    curve = curves.from_rows(rows)
    assert curve.by_size() == {8: 0.61, 12: 0.7}
    assert curve.at(8).metrics == {"top1": 0.61, "top5": 0.94, "loss": 1.2345678901234567, "ece": 0.1}
    assert (curve.at(8).latency, curve.at(12).latency) == (None, 0.001)
    assert curve.rows() == rows
    assert [list(row) for row in curve.rows()] == [list(row) for row in rows]  # the columns' order, too
    write_csv(tmp_path / "curve.csv", curves.curve_of(curve.at(8)).rows())
    assert (tmp_path / "curve.csv").read_text().splitlines() == CSV.splitlines()
    assert curves.from_rows(csv.DictReader(io.StringIO(CSV))).at(8) == curve.at(8)


def test_a_row_without_one_of_the_metrics_is_refused():
    with pytest.raises(KeyError, match="ece"):
        curves.from_rows([{"S": 8, "gmacs": 1.0, "top1": 0.5, "top5": 1.0, "loss": 1.0}])


def test_the_mean_of_curves_is_of_what_all_of_them_have():
    one = curves.curve_of(curves.point(8, 0.1, 0.5, latency=1.0), curves.point(16, 0.4, 0.6, latency=2.0))
    two = curves.curve_of(curves.point(8, 0.1, 0.7, latency=3.0), curves.point(16, 0.4, 0.8))
    mean = mean_curve([one, two])
    assert list(mean.by_size().values()) == pytest.approx([0.6, 0.7])
    assert (mean.at(8).latency, mean.at(16).latency) == (2.0, None)
    assert mean.metrics == one.metrics
