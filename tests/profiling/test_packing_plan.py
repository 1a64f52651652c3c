import dataclasses

import pytest
from PIL import Image

from mixtune.optim.recipe import Recipe
from mixtune.profiling import packing_plan
from mixtune.profiling.packing_plan import measure, most_useful, together
from mixtune.regime import BatchShape, Budget, published
from mixtune.tasks.classification_config import ClassificationConfig
from tests.training.test_loop import config, regime

pytestmark = pytest.mark.usefixtures("cache")


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
    task = ClassificationConfig("folder", "cifar_resnet8", str(tmp_path), validation=0.2, workers=0)
    K, _, said = measure(config(task=task), published("fixed", BatchShape(8, 8), [8], 4), at_most=8)
    assert (K, said) == (1, "one trial at a time on a GPU: its images are read from files")


def test_trials_that_do_not_fit_get_nothing_done(monkeypatch):
    from mixtune.runtime.oom import OutOfMemoryError

    real = packing_plan.Run.reports

    def full(self, **options):
        if self.config.seed > 0:
            raise OutOfMemoryError("no room")
        yield from real(self, **options)

    monkeypatch.setattr(packing_plan.Run, "reports", full)
    assert together(regime(), config(budget=Budget(20)), 1, 4) > 0
    assert together(regime(), config(budget=Budget(4)), 2, 4) == 0
    monkeypatch.setattr(packing_plan.Run, "reports", lambda self, **options: iter([][1]))
    with pytest.raises(IndexError):
        together(regime(), config(), 1, 4)


@pytest.fixture
def gpu(monkeypatch):
    """Stands in for a GPU on which two trials at a time are 1.5 times as fast as one, four hardly more."""
    tried = []

    def together(regime, config, K, steps):
        tried.append(K)
        return {1: 100.0, 2: 150.0, 4: 152.0, 8: 0.0}[K]

    monkeypatch.setattr(packing_plan, "together", together)
    return tried


def asked(gpu, *arguments, **flags):
    """What it comes to, and what had to be tried."""
    gpu.clear()
    best, gain, said = measure(*arguments, **flags)
    return best, gain, said, gpu.copy()


def test_another_study_of_the_same_does_not_measure(gpu):
    best, gain, said, tried = asked(gpu, config(), regime(), 8)
    assert (best, gain, tried) == (2, 1.5, [1, 2, 4])
    assert asked(gpu, config(), regime(), 8) == (best, gain, said, [])
    assert asked(gpu, config(), regime(), 8, again=True)[3] == [1, 2, 4]
    for changed in (dataclasses.replace(config(), recipe=Recipe(mixup=0.2)), dataclasses.replace(config(), threads=3)):
        assert asked(gpu, changed, regime(), 8)[3] == [1, 2, 4]
    larger = published("fixed", BatchShape(24, 32), [24], 4)
    assert asked(gpu, config(), larger, 8)[3] == [1, 2, 4]


def test_fewer_that_fit_are_known_and_more_are_measured(gpu):
    assert asked(gpu, config(), regime(), 2)[3] == [1, 2]
    assert asked(gpu, config(), regime(), 1)[::3] == (1, [])
    assert asked(gpu, config(), regime(), 3)[::3] == (2, [])  # four were not tried, and do not fit
    assert asked(gpu, config(), regime(), 4)[3] == [1, 2, 4]
    assert asked(gpu, config(), regime(), 16)[::3] == (2, [])  # four were not worth it: eight are not tried


def test_a_shortage_of_memory_is_not_kept(gpu, monkeypatch):
    monkeypatch.setattr(packing_plan, "together", lambda regime, config, K, steps: gpu.append(K) or {1: 9.0, 2: 0.0}[K])
    assert [asked(gpu, config(), regime(), 2)[::3] for _ in range(2)] == [(1, [1, 2])] * 2


def test_the_memory_of_now_bounds_what_is_known(gpu, monkeypatch):
    found = packing_plan.Measured(10.0, {1: 100.0, 2: 150.0, 4: 152.0})
    for free, fits in ((100, 8), (50, 4), (25, 2), (5, 1)):
        monkeypatch.setattr(packing_plan, "room", lambda _, free=free: float(free))
        assert found.fits(16, None) == fits
        assert found.told(fits)[0] == min(2, fits)


def test_a_damaged_file_is_measured_anew(gpu, cache):
    asked(gpu, config(), regime(), 8)
    (file,) = (cache / "mixtune/packs").iterdir()
    for damage in ("", "one: 0.0\nspeeds: {1: fast}\n", "one: 0.0\n"):
        file.write_text(damage)
        assert asked(gpu, config(), regime(), 8)[3] == [1, 2, 4]
