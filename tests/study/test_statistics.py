import math
import statistics

import pytest
from scipy import stats

from mixtune.errors import InputError
from mixtune.study.statistics import difference, holm, image_error, mean_sd, over_pairs, rank_correlation

A = {0: 0.50, 1: 0.52, 2: 0.54, 3: 0.51}
B = {0: 0.53, 1: 0.54, 2: 0.58, 3: 0.53}


# (A, B, images) -> low, high and p as the formulas gave them that were written out before scipy's tests were used.
RECORDED = [
    (A, B, None, (0.012265198191711908, 0.04273480180828803, 0.010477088755276235)),
    (A, {10: 0.53, 11: 0.54, 12: 0.58}, None, (-0.02097497243245325, 0.08597497243245297, 0.15357010747512614)),
    ({0: 0.9}, {0: 0.95}, 400, (0.01366129515773009, 0.08633870484226977, 0.007261139462332378)),
    ({0: 0.981}, {0: 0.975}, 10000, (-0.01006492939315479, -0.0019350706068452213, 0.003823341119574848)),
]


@pytest.mark.parametrize(("a", "b", "images", "numbers"), RECORDED)
def test_the_numbers_are_the_recorded_ones(a, b, images, numbers):
    found = difference(a, b, images)
    assert (found.low, found.high, found.p) == pytest.approx(numbers, rel=1e-9)


def test_equal_seeds_are_compared_in_pairs_as_scipy_does():
    found = difference(A, B)
    oracle = stats.ttest_rel(list(B.values()), list(A.values()))
    assert found.p == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert "paired t-test over 4 seeds" in found.sentence("a", "b")
    assert found.sentence("a", "b").startswith("b is better than a: +2.75 points")


def test_other_seeds_are_compared_by_welch_as_scipy_does():
    other = {seed + 10: value for seed, value in list(B.items())[:3]}
    found = difference(A, other)
    oracle = stats.ttest_ind(list(other.values()), list(A.values()), equal_var=False)
    assert found.p == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.test == "Welch's t-test, 4 and 3 seeds"


def test_a_difference_within_the_noise_is_called_none():
    said = difference({0: 0.5, 1: 0.6}, {0: 0.52, 1: 0.59}).sentence("fixed", "mixed")
    assert said.startswith("no difference is shown between mixed and fixed: +0.50 points")


def test_single_runs_are_judged_by_the_images_alone_and_it_says_so():
    found = difference({0: 0.90}, {0: 0.95}, images=400)
    pooled = 0.925
    z = 0.05 / math.sqrt(2 * pooled * (1 - pooled) / 400)
    assert found.p == pytest.approx(2 * stats.norm.sf(z))
    assert "the noise of seeds is not in it" in found.test
    assert image_error(0.5, 100) == pytest.approx(0.05)


def test_a_single_run_beside_several_is_no_test_and_both_numbers_are_said():
    found = difference({0: 0.9}, {0: 0.8, 1: 0.7})
    assert found.p is None
    assert found.test == "1 and 2 runs, where a test needs two of each"


def test_nothing_is_claimed_without_spread_or_images():
    assert difference({0: 0.5}, {0: 0.9}).p is None
    same = difference({0: 0.5, 1: 0.6}, {0: 0.6, 1: 0.7})
    assert same.p is None  # the differences are equal up to rounding
    assert difference({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}).p is None
    assert not difference({0: 0.5}, {0: 0.9}).significant


def test_pairs_need_something_in_common():
    with pytest.raises(InputError, match="no shared regimes in common"):
        over_pairs([], [], "shared regimes")
    assert over_pairs([0.5], [0.6], "shared regimes").p is None
    assert over_pairs([0.5, 0.6], [0.6, 0.9], "shared regimes").test == "paired t-test over 2 shared regimes"


def test_holms_adjustment_is_the_textbook_one():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_deviation_needs_two_values():
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([0.4, 0.6]) == pytest.approx((0.5, math.sqrt(0.02)))


def test_a_rank_correlation_is_that_of_the_ranks_and_needs_a_spread():
    a, b = [0.1, 0.4, 0.2, 0.9, 0.5], [3.0, 1.0, 7.0, 8.0, 5.0]

    def ranks(values):
        return [sorted(values).index(v) for v in values]

    assert rank_correlation(a, b) == pytest.approx(statistics.correlation(ranks(a), ranks(b)))
    assert rank_correlation(a, [math.exp(v) for v in a]) == pytest.approx(1)
    assert rank_correlation(a, [2.0] * 5) is None
