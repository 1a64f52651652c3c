"""What a study takes, from a profile that is made up, and what is said of it."""

import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import optuna
import pytest

from mixtune.cli import format_duration
from mixtune.config import load_config, parse
from mixtune.errors import InputError
from mixtune.profiling import forecast, messages
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.feasibility import infeasible
from mixtune.profiling.forecast import fit_memory, search_runs
from mixtune.regime import BatchShape
from mixtune.search.fidelity import Fidelity
from mixtune.search.final import Final
from mixtune.search.optuna_factories import make_pruner, surviving
from mixtune.search.space import Named, Space
from tests.accounts import ROOT
from tests.conftest import TINY
from tests.profiling.test_resource_profile import GIB, make_profile

ONE = Concurrency(cpus=1, gpus=0, at_once=2)
GPU = Concurrency(cpus=12, gpus=1, at_once=8)
NODES = [(96.0, 8.0)]
RUN = 1e-9 * 90 * 300 * 64  # seconds of 90 epochs of 300 images at 8 px and 1 ns per pixel


def space(**changes):
    return parse(TINY | changes, Space, "f")


def linear(s, bytes_at_base=1.0 * GIB, **changes):
    """A profile in which memory and time are proportional to pixels: 1 ns each."""
    half = replace(s.base, B=s.base.B // 2)
    steps = [(x, 1e-9 * x.pixels, bytes_at_base * x.pixels / s.base.pixels) for x in (half, s.base)]
    return make_profile(steps, **{"setup": 0.0, "evaluation": {8: 0.0, 12: 0.0}} | changes)


def forecast_of(s, concurrency=ONE, **changes):
    return forecast.forecast_study(s, s.training(1), linear(s, **changes), concurrency, 300)


def test_a_base_that_does_not_fit_is_refused_with_the_one_that_would():
    s = space(base={"S": 8, "B": 256})
    profile = linear(s, 91 * GIB)
    with pytest.raises(InputError, match=r"base: .* 256 .*91 GiB .*80 GiB .*base\.B (\d+)") as err:
        fit_memory(s, GPU, profile, 1)
    fits = int(str(err.value).split("base.B ")[1].split()[0])
    assert profile.memory(BatchShape(8, fits)) <= profile.available_memory < profile.memory(BatchShape(8, fits + 1))
    with pytest.raises(InputError, match=r"40 GiB .*base\.B 112 "):
        fit_memory(s, replace(GPU, pack=2), profile, 1)
    with pytest.raises(InputError, match=r"base: .*no batch"):
        fit_memory(s, GPU, replace(profile, evaluation_memory=81.0 * GIB), 1)
    assert fit_memory(s, GPU, linear(s, 79 * GIB), 1)[0] == GPU


def test_on_cpus_as_many_trials_run_at_once_as_memory_holds():
    s = space()
    dearest = max(x.pixels for x in s.shapes()) / s.base.pixels
    profile = linear(s, 4 * GIB / dearest, device="cpu", available_memory=9.0 * GIB)
    for wanted, machines, folds, fits, memory in ((8, 1, 1, 2, 4.5), (4, 2, 1, 4, 4.5), (8, 2, 2, 2, 4.5)):
        concurrency, each = fit_memory(s, replace(ONE, at_once=wanted, folds=folds), profile, machines)
        assert (concurrency.at_once, each.available_memory) == (fits, memory * GIB)
    with pytest.raises(InputError, match=r"base: .*9 GiB of the machine: .*base\.B"):
        fit_memory(s, ONE, linear(s, 10 * GIB, device="cpu", available_memory=9.0 * GIB), 1)


def test_a_candidate_whose_shape_does_not_fit_is_infeasible_and_others_are_not():
    s = space(base={"S": 8, "B": 33}, search={"sizes": [4, 8, 12], "split": [0, 1]})
    profile = linear(s, 80 * GIB)
    over = [x for x in s.shapes() if x.pixels > s.base.pixels]
    assert over, "the test needs a shape that rounding makes dearer than the base"
    for x in s.shapes():
        params = {f"w_{S}": float(S == x.S) for S in s.search.sizes} | {"split": 1, "growth": "none"}
        regime = s.regime(params)
        reason = infeasible(s, regime, s.training(1), 300, profile)
        assert bool(reason) == any(y in over for y in regime.shapes)
        if reason:
            assert f"{x.S} px" in reason
            assert "base.B 32 " in reason


def test_hours_are_those_of_every_rung_of_every_trial():
    s = space(fidelity={"kind": "compress", "rungs": 3, "factor": 3}, budget={"epochs": 90}, trials=32)
    one = RUN / 3600
    found = forecast_of(s)
    assert found.hours == pytest.approx(32 * one * (1 / 9 + 1 / 3 + 1), rel=0.01)
    searched = 1 / 9 + (1 / 3) * (1 / 3) + 1 / 9
    assert found.expected_hours == pytest.approx(one * (2 * (1 / 9 + 1 / 3 + 1) + 30 * searched), rel=0.01)
    assert found.step_share == pytest.approx(1)
    assert search_runs(s) == pytest.approx((found.hours / one, found.expected_hours / one), rel=0.01)
    with_final = replace(s, final=Final())  # published regimes may be pruned
    expected = forecast_of(with_final).expected_hours
    assert search_runs(with_final) == pytest.approx((found.hours / one, expected / one), rel=0.01)
    assert search_runs(with_final)[1] < search_runs(s)[1]
    folds = replace(s, folds=2)  # the second one trains on the whole budget once more
    assert forecast_of(folds).hours == pytest.approx(32 * one * (1 / 9 + 1 / 3 + 2), rel=0.01)
    assert search_runs(folds)[0] == pytest.approx(32 * (1 / 9 + 1 / 3 + 2))


def test_a_dry_run_tells_the_whole_search_in_training_runs():
    """search_spaces/imagenet.yaml: 6 published regimes go through all rungs, of 58 others a third through each."""
    s = load_config(ROOT / "search_spaces/imagenet.yaml", Space)
    rungs = 1 / 9 + 1 / 3 + 1
    assert search_runs(s) == pytest.approx((64 * rungs, 6 * rungs + 58 / 3))
    (line,) = (x for x in messages.dry_run_table(s, 1_255_544, sampled=0).splitlines() if x.startswith("search: "))
    assert f"{6 * rungs + 58 / 3:.3g} runs" in line
    assert f"{64 * rungs:.3g} runs" in line
    assert search_runs(replace(s, fidelity=Fidelity("compress", rungs=1), pruner=Named("none"))) == (64, 64)
    assert search_runs(replace(s, pruner=Named("median"))) == (pytest.approx(64 * rungs), None)


def test_folds_at_once_take_the_time_of_one_and_the_cores_of_all():
    s = space(folds=4, budget={"epochs": 90}, trials=10, pruner={"name": "none"}, fidelity={"kind": "compress"})
    more = {"setup": 2.0, "evaluation": {8: 1.0, 12: 1.0}}
    for count, waves in ((1, 4), (2, 2), (3, 2), (4, 1)):
        at_once = replace(s, resources=replace(s.resources, folds_at_once=count))
        found = forecast_of(at_once, replace(ONE, folds=count), **more)
        assert found.hours == pytest.approx(10 * (RUN * (1 / 9 + 1 / 3 + waves) + (2 + waves) * 4) / 3600, rel=1e-3)
        assert 1 - found.step_share == pytest.approx(10 * (2 + waves) * 4 / 3600 / found.hours)
        assert messages.occupied(found.concurrency, 1.0).startswith(f"{count} core-hours")


def test_a_fold_that_trains_beside_a_pruned_one_is_paid_for():
    s = space(folds=3, trials=32, fidelity={"kind": "compress", "rungs": 1})
    both = replace(s, resources=replace(s.resources, folds_at_once=3))
    (most, spared), (same, paid) = search_runs(s), search_runs(both)
    assert most == same == 32 * 3
    assert spared < paid == most


def test_evaluations_and_starts_are_counted():
    s = space(budget={"epochs": 90}, evaluate={"sizes": [8, 12], "reports": 5}, trials=10, pruner={"name": "none"})
    plain = forecast_of(s)
    found = forecast_of(s, setup=2.0, evaluation={8: 1.0, 12: 1.0})
    assert found.hours == pytest.approx(plain.hours + 10 * (2 + 5 * 2) / 3600)
    assert found.expected_hours == pytest.approx(found.hours)
    assert found.step_share == pytest.approx(plain.hours / found.hours)
    assert forecast_of(replace(s, pruner=Named("median"))).expected_hours is None


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"fidelity": {"kind": "compress"}}, (1, 3, 9)),
        ({"evaluate": {"sizes": [8], "reports": 6}}, range(1, 7)),
        (
            {
                "evaluate": {"sizes": [8], "reports": 6},
                "pruner": {"name": "halving", "options": {"min_resource": 2, "reduction_factor": 2}},
            },
            range(1, 7),
        ),
    ],
)
def test_the_share_that_goes_on_is_what_optunas_pruner_lets_through(changes, steps):
    s, n, rng = space(**changes), 400, np.random.default_rng(0)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=make_pruner(s))
    through = dict.fromkeys(steps, 0)
    for _ in range(n):
        trial, score = study.ask(), rng.random()
        for step in steps:
            trial.report(score, step)
            if trial.should_prune():
                break
            through[step] += 1
        study.tell(trial, score)
    for step in list(steps)[:-1]:
        assert through[step] / n == pytest.approx(surviving(s, step), abs=0.08), step


def test_a_study_larger_than_the_disk_is_refused_with_the_trials_that_would_fit(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    found = forecast_of(space(), weights=1.0 * GIB)
    assert found.disk == pytest.approx((2 * 4 + 4 * 2) * GIB)  # twice each trial's; checkpoints of two that run
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8 * GIB))
    with pytest.raises(InputError, match=r"--out .*/not/there: .* 16 GiB .* 8 GiB .*trials=2 "):
        forecast.check_disk(found, tmp_path / "not" / "there", 4)
    assert forecast.check_disk(found, tmp_path, 1) == 8 * GIB  # three of them are there already
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(20 * GIB))
    assert forecast.check_disk(found, tmp_path, 4) == 20 * GIB


def test_the_lines_say_what_is_asked_for():
    s = space(budget={"epochs": 9000}, trials=100, fidelity={"kind": "compress"}, final={"leaders": 1})
    profile = linear(s, 20 * GIB, setup=1.0)

    def text(found, profile=profile):
        return "\n".join(messages.forecast_lines(s, found, profile, 1e12, NODES))

    found = forecast.forecast_study(s, s.training(1), profile, GPU, 300)
    lines = text(found).splitlines()
    assert [line.split()[0] for line in lines] == ["measured", "memory", "step", "plan", "hours", "final", "disk"]
    assert "here" in lines[0]
    assert "80 GiB" in lines[1]
    assert "100 trials, 8 at once, each on 12 CPU cores and 1 GPU" in lines[3]
    for hours in (found.expected_hours, found.hours):
        assert f"{hours:.3g} GPU-hours in {format_duration(hours / 8 * 3600)} if" in lines[4]
    slow = replace(profile, steps=(*profile.steps, replace(profile.steps[1], shape=BatchShape(12, 14), seconds=1e-5)))
    assert "ms at 12x14" in text(found, slow)
    packed = replace(found, concurrency=replace(GPU, pack=2))
    assert "2: 150" in text(packed, replace(profile, packing={1: 100.0, 2: 150.0}))
    for concurrency, hours in (
        (Concurrency(12, 1, 1, workers=8), "16 GPU-hours in 2 h 00 min"),
        (ONE, "4 core-hours in 2 h 00 min"),
    ):
        two = replace(found, concurrency=concurrency, hours=2.0 * concurrency.at_once, expected_hours=None)
        assert hours in text(two)


def test_trials_that_share_a_gpu_take_it_for_as_long_as_was_measured():
    s = space(budget={"epochs": 90}, trials=16)
    alone, shared = forecast_of(s, GPU), forecast_of(s, replace(GPU, pack=4, gain=2.5))
    assert shared.hours == pytest.approx(alone.hours * 4 / 2.5)
    assert shared.longest_hours == pytest.approx(alone.longest_hours * 4 / 2.5)
    assert shared.step_share == pytest.approx(alone.step_share)
    assert messages.occupied(shared.concurrency, 4.0) == "1 GPU-hours in 30 min 00 s"
