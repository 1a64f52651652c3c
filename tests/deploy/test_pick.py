"""A trained network and its size are picked by need."""

import pytest

from mixtune.deploy.pick import Need, pick, useful_sizes
from mixtune.errors import InputError
from mixtune.evaluation.predictions import METRICS
from mixtune.training.run_folder import FinishedRun
from tests.curves import curve_of, point


def run(*points):
    """A run that is nothing but a curve: (S, GMACs, top-1, latency)."""
    return FinishedRun(None, None, None, curve_of(*(point(S, g, a, latency=t) for S, g, a, t in points)))


SMALL = run((64, 0.5, 0.60, 0.001), (128, 2.0, 0.70, 0.004))
LARGE = run((64, 1.0, 0.65, 0.002), (128, 4.0, 0.80, 0.008))


@pytest.mark.parametrize(
    ("needs", "of", "S"),
    [
        ([], LARGE, 128),
        ([("at most", "1.5 GMACs")], LARGE, 64),
        ([("at most", "600 MMACs")], SMALL, 64),
        ([("at most", "2 GMACs")], SMALL, 128),  # a bound is met by what equals it
        ([("at most", "4 ms")], SMALL, 128),
        ([("at least", "65 %")], LARGE, 64),  # the cheapest that is accurate enough
        ([("at least", "62 %"), ("at most", "3 GMACs")], SMALL, 128),
        ([("at least", "top1 65 %")], LARGE, 64),  # the same, by name
        ([("at least", "top5 90%"), ("at most", "loss 0.5")], SMALL, 64),  # met by all: the cheapest
    ],
)
def test_the_network_and_size_that_meet_the_need_are_picked(needs, of, S):
    found, point = pick([SMALL, LARGE], [Need.parse(*need, METRICS) for need in needs])
    assert found is of
    assert point.S == S


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (("at most", "fast"), "--at-most fast: expected a number and its unit, '1.5 GMACs'"),
        (("at most", "76 %"), "--at-most 76 %: expected a number and its unit"),
        (("at least", "3 ms"), "--at-least 3 ms: expected a number and its unit, '76 %'"),
        (("at most", "1.2.3 ms"), "1.2.3 is not a number"),
        (("at most", "0.1 GMACs"), "no network meets that; the nearest is 64 px with 60.00 % at 0.5 GMACs"),
        (("at least", "99 %"), "no network meets that; the nearest is 128 px with 80.00 % at 4 GMACs"),
        (("at most", "9 MiB"), "memory was not measured for these runs"),
        (("at least", "top2 9 %"), "--at-least top2 9 %: unknown metric top2; did you mean 'top"),
        (("at most", "loss 40 %"), "--at-most loss 40 %: loss is given without a unit"),
        (("at least", "0.7"), "--at-least 0.7: top1 is given in %"),
        (("at least", "gmacs 2"), "--at-least gmacs 2: unknown metric gmacs"),
    ],
)
def test_a_need_that_cannot_be_met_or_read_is_one_sentence(need, message):
    with pytest.raises(InputError) as err:
        pick([SMALL, LARGE], [Need.parse(*need, METRICS)])
    assert message in str(err.value)


def test_sizes_that_a_smaller_one_beats_are_not_worth_using():
    assert useful_sizes(run((8, 1, 0.5, None), (12, 2, 0.4, None), (16, 3, 0.6, None)).curve) == [8, 16]
