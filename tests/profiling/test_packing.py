import dataclasses

import pytest

from mixtune.optim.recipe import Recipe
from mixtune.profiling import packing
from mixtune.profiling.packing import best_pack, measure_packing, steps_per_second
from mixtune.regime import Budget
from tests.training.test_loop import config, regime

SPEEDS = {1: 283, 2: 437, 4: 621, 8: 758, 16: 790}


@pytest.mark.parametrize(
    ("speeds", "at_most", "best", "measured"),
    [
        (SPEEDS, 16, 8, [1, 2, 4, 8, 16]),
        (SPEEDS, 6, 4, [1, 2, 4]),  # what the memory holds
        ({1: 20, 2: 20.5}, 8, 1, [1, 2]),  # one fills the GPU
        ({1: 9, 2: 0}, 8, 1, [1, 2]),  # two ran out of memory
        ({1: 283}, 1, 1, [1]),
    ],
)
def test_trials_are_packed_as_long_as_it_pays(speeds, at_most, best, measured, monkeypatch):
    monkeypatch.setattr(packing, "steps_per_second", lambda regime, config, K, steps: speeds[K])
    found = measure_packing(config(), regime().base, at_most)
    assert found == {K: speeds[K] for K in measured}
    assert best_pack(found, at_most) == best
    assert best_pack(found, 1) == 1


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(dropout=0.1)])
def test_the_measurement_trains(recipe):
    speeds = measure_packing(dataclasses.replace(config(), recipe=recipe), regime().base, at_most=2, steps=4)
    assert sorted(speeds) == [1, 2]
    assert all(speed > 0 for speed in speeds.values())


def test_trials_that_do_not_fit_get_nothing_done(monkeypatch):
    from mixtune.runtime.oom import OutOfMemoryError

    real = packing.Run.reports

    def full(self, **options):
        if self.config.seed > 0:
            raise OutOfMemoryError("no room")
        yield from real(self, **options)

    monkeypatch.setattr(packing.Run, "reports", full)
    assert steps_per_second(regime(), config(budget=Budget(20)), 1, 4) > 0
    assert steps_per_second(regime(), config(budget=Budget(4)), 2, 4) == 0
    monkeypatch.setattr(packing.Run, "reports", lambda self, **options: iter([][1]))
    with pytest.raises(IndexError):
        steps_per_second(regime(), config(), 1, 4)
