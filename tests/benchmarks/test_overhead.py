import pytest

from benchmarks.overhead import WINDOW, windows


def test_windows_are_milliseconds_per_trial():
    ends = [0.01 * i for i in range(2 * WINDOW + 1)] + [2 * WINDOW * 0.01 + 0.03 * i for i in range(1, WINDOW + 1)]
    assert windows(ends) == pytest.approx([10.0, 10.0, 30.0])
