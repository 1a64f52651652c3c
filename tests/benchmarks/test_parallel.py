import pytest

from benchmarks.parallel import idle, idle_in_rounds, makespan, trial_rate


def test_idle_is_the_time_between_trials_until_the_last_begins():
    busy = [(0, 4), (0, 2), (2, 6), (4, 8), (7, 9)]
    assert makespan(busy) == 9
    # until 7: one worker works 0-4 and 4-8, the other 0-2, 2-6 and waits from 6 to 7
    assert idle(busy, 2) == pytest.approx(1 / 14)
    assert idle([(0, 1), (1, 2), (2, 3)], 1) == 0


def test_the_rate_is_that_of_warm_workers_with_something_to_do():
    # until 6 the second worker is cold; from then to 10 one trial of 4 s and two of 2 s end
    assert trial_rate([(0, 4), (0, 6), (4, 6), (6, 10), (6, 8), (8, 10), (10, 14)], 2) == pytest.approx(3 / 4)
    assert trial_rate([(0, 5), (5, 7), (8, 10), (10, 12)], 1) == pytest.approx(2 / 5)  # a second of it is idle


@pytest.mark.parametrize(
    ("seconds", "idle"),
    [
        ([1.0, 1.0, 1.0, 1.0], 0.0),  # 4 then 2, always in pairs
        ([1.0, 1.0], 0.25),  # half the budget by both, the rest by one: 1.5 of 2 x 1.0 is used
        ([3.0, 1.0], 1 - (2.0 + 1.5) / (2 * 3.0)),
    ],
)
def test_idle_in_rounds(seconds, idle):
    assert idle_in_rounds(seconds, [1], 2, 2) == pytest.approx(idle)


def test_one_worker_is_never_idle_in_rounds():
    assert idle_in_rounds([3.0, 1.0, 2.0], [2, 4], 6, 1) == pytest.approx(0.0)
