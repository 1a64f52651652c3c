"""What timm's own sampler makes of the exported flags, beside the schedule they were made from."""

import argparse

import numpy as np
import pytest

from mixtune.regime import BatchShape, Budget, Mixture, Regime, Schedule
from mixtune.regime.catalogue import IMAGENET, LITERATURE, from_literature
from mixtune.regime.timm_flags import timm_flags

N, EPOCHS = 25_600, 12
BASE = BatchShape(224, 32)


def read(flags):
    """The flags as timm's train.py declares them."""
    p = argparse.ArgumentParser()
    p.add_argument("--img-size", type=int)
    p.add_argument("--train-img-sizes", type=int, nargs="+")
    p.add_argument("--train-batch-sizes", type=int, nargs="+")
    p.add_argument("--train-size-probs", type=float, nargs="+")
    p.add_argument("--train-size-schedule", choices=("constant", "progressive"), default="constant")
    p.add_argument("--train-size-schedule-spread", type=float, default=0.65)
    p.add_argument("--train-size-random-mix", type=float, default=0.1)
    p.add_argument("--train-batches-per-epoch", type=int)
    p.add_argument("--epochs", type=int)
    p.add_argument("--sched-on-updates", action="store_true")
    return p.parse_args(flags)


def timm_steps(flags):
    """(S, B) of every step of timm's run, epoch by epoch."""
    sampler = pytest.importorskip("timm.data.scheduled_sampler").ScheduledBatchSampler(
        range(N),
        flags.train_batch_sizes,
        choice_weights=flags.train_size_probs,
        seed=42,
        num_batches=flags.train_batches_per_epoch,
        choice_schedule=flags.train_size_schedule,
        schedule_epochs=flags.epochs if flags.train_size_schedule == "progressive" else None,
        schedule_spread=flags.train_size_schedule_spread,
        schedule_random_mix=flags.train_size_random_mix,
    )
    for epoch in range(flags.epochs):
        sampler.set_epoch(epoch)
        yield [(flags.train_img_sizes[i], B) for i, B in sampler.schedule]


EXPRESSIBLE = [n for n in LITERATURE if n[-2:] not in ("_d", "bd") and not n.endswith(("_d_authors", "bd_authors"))]
EXPRESSIBLE = [n for n in EXPRESSIBLE if "vbswc" not in n and "cifar" not in n]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_timm_runs_the_exported_regime(name):
    regime = from_literature(name, BASE, 32)
    exported = timm_flags(regime, Budget(EPOCHS), N)
    flags = read(exported.flags)
    schedule = Schedule.build(regime, Budget(EPOCHS), N, 0)
    theirs = [step for epoch in timm_steps(flags) for step in epoch]
    assert flags.img_size == 224
    assert len(theirs) == exported.steps
    assert len(theirs) == pytest.approx(len(schedule), rel=0.005)
    shapes = [(s.S, s.B) for s in schedule.shapes]
    assert set(theirs) <= set(shapes)
    # In tenths of the run: the same sizes, up to chance where timm draws and to a few steps where it does not.
    drawn = flags.train_size_random_mix > 0 or flags.train_size_schedule == "constant"
    chance = 5 * np.sqrt(0.25 / (len(theirs) / 10)) if drawn else 0.02
    for ours, other in zip(np.array_split(schedule.index, 10), np.array_split(np.arange(len(theirs)), 10), strict=True):
        mine = np.bincount(ours, minlength=len(shapes)) / len(ours)
        share = np.bincount([shapes.index(theirs[i]) for i in other], minlength=len(shapes)) / len(other)
        assert np.abs(mine - share).max() <= chance


def test_a_mixture_keeps_its_step_shares_to_ten_digits():
    regime = from_literature("mixsize144_b", BASE, 32)
    assert read(timm_flags(regime, Budget(1), N).flags).train_size_probs == pytest.approx(
        regime.phases[0].mixture.p, rel=1e-8
    )


def test_processes_share_a_batch():
    flags = read(timm_flags(from_literature("entr_gradual_authors", BASE, 32), Budget(1), N, processes=4).flags)
    assert flags.train_batch_sizes == [8] * 4


def test_a_window_with_other_settings_is_found_when_they_are_given():
    from mixtune.regime.literature import window

    regime = window(BASE, [128, 160, 192, 224], 6, spread=1.5, random_mix=0.0)
    with pytest.raises(ValueError, match=r"\b4\b.*0\.65.*0\.1.*\b6\b"):
        timm_flags(regime, Budget(EPOCHS), N)
    flags = read(timm_flags(regime, Budget(EPOCHS), N, spread=1.5, random_mix=0.0).flags)
    assert (flags.train_size_schedule_spread, flags.train_size_random_mix, flags.epochs) == (1.5, 0.0, 6)


def test_a_shrinking_sequence_keeps_its_order():
    shapes = [BatchShape(224, 32), BatchShape(128, 32)]
    regime = Regime.of(BASE, [Mixture.of([s]) for s in shapes], [0.25, 0.75], clock="steps")
    flags = read(timm_flags(regime, Budget(EPOCHS), N).flags)
    assert flags.train_img_sizes == [224, 128, 128, 128]


@pytest.mark.parametrize(
    ("regime", "processes", "message"),
    [
        (from_literature("mixsize144_d", IMAGENET, 32), 1, r"96x279x5.*D = 5"),
        (from_literature("mixsize144_b", IMAGENET, 32), 4, r"96x1394.*\b4\b"),
        (from_literature("multiscale_vbswc", BASE, 32), 1, r"\b\d\d\.\d %"),
    ],
)
def test_what_timm_cannot_express_is_refused_with_the_numbers(regime, processes, message):
    with pytest.raises(ValueError, match=message) as error:
        timm_flags(regime, Budget(EPOCHS), N, processes)
    assert regime.name in str(error.value)
