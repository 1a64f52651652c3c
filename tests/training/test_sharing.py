import pytest

from mixtune.regime import Budget
from mixtune.training.recipe import Recipe
from mixtune.training.sharing import measure, most_useful, together
from tests.training.test_loop import config, regime


@pytest.mark.parametrize(
    ("speeds", "at_most", "best"),
    [
        ({1: 283, 2: 437, 4: 621, 8: 758, 16: 790}, 16, 8),
        ({1: 283, 2: 437, 4: 621, 8: 758, 16: 790}, 6, 4),  # what the memory holds
        ({1: 20, 2: 20.5}, 8, 1),  # one fills the GPU
        ({1: 283}, 1, 1),
    ],
)
def test_trials_are_packed_as_long_as_it_pays(speeds, at_most, best):
    asked = []

    def speed(K):
        asked.append(K)
        return speeds[K]

    K, measured = most_useful(speed, at_most)
    assert best == K
    assert measured == {k: speeds[k] for k in asked}


def test_the_measurement_trains_and_says_what_it_found():
    K, gain, said = measure(config(budget=Budget(20)), regime(), at_most=2, steps=4)
    assert (K, gain) == (1, 1.0) or (K == 2 and gain >= 1.1)
    assert said.startswith(f"{K} at a time share a GPU; steps per second")
    K, _, said = measure(config(recipe=Recipe(dropout=0.1)), regime(), at_most=8)
    assert (K, "dropout" in said) == (1, True)


def test_trials_that_do_not_fit_get_nothing_done(monkeypatch):
    from mixtune.training import sharing
    from mixtune.training.loop import OutOfMemoryError

    real = sharing.Run.reports

    def full(self, **options):
        if self.config.seed > 0:
            raise OutOfMemoryError("no room")
        yield from real(self, **options)

    monkeypatch.setattr(sharing.Run, "reports", full)
    assert together(regime(), config(budget=Budget(20)), 1, 4) > 0
    assert together(regime(), config(budget=Budget(4)), 2, 4) == 0
    monkeypatch.setattr(sharing.Run, "reports", lambda self, **options: iter([][1]))
    with pytest.raises(IndexError):
        together(regime(), config(), 1, 4)
