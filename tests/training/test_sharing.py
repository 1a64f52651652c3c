import pytest
from PIL import Image

from mixtune.regime import BatchShape, Budget, published
from mixtune.training.learning.recipe import Recipe
from mixtune.training.sharing import measure, most_useful, together
from mixtune.training.task import TaskConfig
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


def test_trials_with_dropout_share_a_gpu_and_those_on_files_do_not(tmp_path):
    K, _, said = measure(config(budget=Budget(20), recipe=Recipe(dropout=0.1)), regime(), at_most=2, steps=4)
    assert "share a GPU" in said
    for c in ("a", "b"):
        for i in range(20):
            for part in ("train", "val"):
                (tmp_path / part / c).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16)).save(tmp_path / part / c / f"{i}.png")
    task = TaskConfig("folder", "cifar_resnet8", str(tmp_path), validation=0.2, workers=0)
    K, _, said = measure(config(task=task), published("fixed", BatchShape(8, 8), [8], 4), at_most=8)
    assert (K, said) == (1, "one trial at a time on a GPU: its images are read from files")


def test_trials_that_do_not_fit_get_nothing_done(monkeypatch):
    from mixtune.training import sharing
    from mixtune.training.shortage import OutOfMemoryError

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
