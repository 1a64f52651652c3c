import os

import pytest

from mixtune.config import parse
from mixtune.execution.position import Position, TrialClock, describe_position, remove_positions
from mixtune.regime import Budget, Schedule, published
from mixtune.search.space import Space
from mixtune.search.timeouts import Timeouts


@pytest.fixture
def schedule(tiny):
    space = parse(tiny, Space, "f")
    return Schedule.build(published("multiscale", space.base, space.search.sizes, 4), Budget(1), 300, 0)


def test_the_position_is_that_of_the_step_under_way(tmp_path, schedule):
    assert describe_position(tmp_path) is None
    n = len(schedule)
    with Position(tmp_path, schedule) as at:
        assert describe_position(tmp_path) == "preparing"
        for step in (1, n - 1):
            at(step, 32)
            shape = schedule.shapes[schedule.index[step]]
            assert describe_position(tmp_path) == f"step {step + 1} of {n}, shape {shape}"
        at(n, 32)
        assert describe_position(tmp_path) == f"after the last of {n} steps"
        at(1, 32)  # shorter than what was there
        assert describe_position(tmp_path).startswith("step 2 of")


def test_the_position_outlives_its_writer(tmp_path, schedule):
    child = os.fork()
    if child == 0:
        Position(tmp_path, schedule)(3, 32)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert describe_position(tmp_path).startswith("step 4 of ")


def test_a_clock_that_has_not_been_started_never_runs_out(tmp_path):
    assert TrialClock(Timeouts(minutes=1, silent_minutes=1), tmp_path).exceeded(1e9) is None


def test_a_trial_that_takes_too_long_is_told_with_its_place(tmp_path, schedule):
    clock = TrialClock(Timeouts(minutes=2), tmp_path)
    with Position(tmp_path, schedule) as at:
        at(4, 32)
    clock.start(100.0)
    assert clock.exceeded(219.0) is None
    assert clock.exceeded(221.0).startswith("it took longer than 2 min (limits.minutes), at step 5 of ")


def test_only_silence_is_silence(tmp_path, schedule):
    clock = TrialClock(Timeouts(silent_minutes=1), tmp_path)
    clock.start(0.0)
    with Position(tmp_path, schedule) as at:
        for step in range(5):  # a step every 50 s
            at(step + 1, 32)
            assert clock.exceeded(50.0 * (step + 1)) is None
        for report in range(5):  # then reports
            clock.reported()
            assert clock.exceeded(300.0 + 50 * report) is None
        assert clock.exceeded(550.0) is None
        assert clock.exceeded(561.0).startswith("nothing moved for 1 min (limits.silent_minutes), at step 6 of ")


def test_of_folds_that_train_at_once_each_must_move_until_it_is_done(tmp_path, schedule):
    clock = TrialClock(Timeouts(silent_minutes=1), tmp_path)
    clock.start(0.0)
    with Position(tmp_path, schedule, 0) as hangs:
        hangs(3, 32)
        with Position(tmp_path, schedule, 1) as moves:
            for step in range(2):
                moves(step + 1, 32)
                assert clock.exceeded(30.0 + 30 * step) is None
            said = clock.exceeded(91.0)
            assert said.startswith("nothing moved for 1 min (limits.silent_minutes), at step 4 of ")
            assert " of fold 0, shape " in said
            assert " of fold 1, shape " in said
        assert " of fold 1, " not in describe_position(tmp_path)  # it is done
    assert describe_position(tmp_path) is None


def test_what_an_attempt_that_was_cut_off_left_is_no_silence(tmp_path, schedule):
    child = os.fork()
    if child == 0:
        Position(tmp_path, schedule, 1)(3, 32)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert " of fold 1, " in describe_position(tmp_path)
    remove_positions(tmp_path)
    assert describe_position(tmp_path) is None


def test_without_limits_a_trial_may_hang_as_long_as_it_likes(tmp_path):
    clock = TrialClock(Timeouts(), tmp_path)
    clock.start(0.0)
    assert clock.exceeded(1e9) is None
