import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import optuna
import pytest

from mixtune.cli import duration
from mixtune.config import load_config, parse
from mixtune.errors import InputError
from mixtune.profiling import forecast, messages, preflight
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.feasibility import Room, gib, infeasible
from mixtune.profiling.trial_parts import whole_runs
from mixtune.regime import BatchShape
from mixtune.search.fidelity import Fidelity
from mixtune.search.final import Final
from mixtune.search.optuna_factories import make_pruner, surviving
from mixtune.search.space import Named, Space
from tests.accounts import ROOT
from tests.conftest import TINY
from tests.profiling.test_resource_profile import GIB, made

ONE = Concurrency(cpus=1, gpus=0, at_once=2)
GPU = Concurrency(cpus=12, gpus=1, at_once=8)
NODES = [(96.0, 8.0)]


def space(**changes):
    return parse(TINY | changes, Space, "f")


def linear(s, bytes_at_base=1.0 * GIB, **changes):
    """A footprint in which memory and time are proportional to pixels: 1 ns each."""
    half = replace(s.base, B=s.base.B // 2)
    steps = [(x, 1e-9 * x.pixels, bytes_at_base * x.pixels / s.base.pixels) for x in (half, s.base)]
    return made(steps, **{"setup": 0.0, "judging": {8: 0.0, 12: 0.0}} | changes)


def planned(s, slots=ONE, **changes):
    found = linear(s, **changes)
    return forecast.plan(s, s.training(1), Room(found, found.room), slots, 300)


def test_the_probes_are_the_base_half_of_it_and_the_ends(tiny):
    s = space()
    probes, shapes = forecast.probes(s), s.shapes()
    parts = {s.base, BatchShape(8, 16), BatchShape(8, 8)}
    assert parts <= set(probes) <= parts | set(shapes)
    for key in ("S", "B", "D", "pixels"):
        ends = [pick(getattr(x, key) for x in shapes) for pick in (min, max)]
        assert {getattr(x, key) for x in probes} >= set(ends), key


def test_a_base_that_does_not_fit_is_refused_with_the_one_that_would():
    s = space(base={"S": 8, "B": 256})
    found = linear(s, 91 * GIB)
    said = r"at 8 px a batch of 256 needs about 91 GiB and a trial has 80 GiB of the GPU: base\.B (\d+) would fit"
    with pytest.raises(InputError, match=said) as err:
        forecast.placed(s, GPU, found, 1)
    fits = int(str(err.value).split("base.B ")[1].split()[0])
    assert found.memory(BatchShape(8, fits)) <= found.room < found.memory(BatchShape(8, fits + 1))
    with pytest.raises(InputError, match=r"has 40 GiB of the GPU: base\.B 112 would fit"):
        forecast.placed(s, replace(GPU, pack=2), found, 1)
    assert forecast.placed(s, GPU, linear(s, 79 * GIB), 1)[0] == GPU


def test_on_cpus_as_many_trials_run_at_once_as_memory_holds():
    s = space()
    dearest = max(x.pixels for x in s.shapes()) / s.base.pixels
    found = linear(s, 4 * GIB / dearest, device="cpu", room=9.0 * GIB)
    slots, room, said = forecast.placed(s, replace(ONE, at_once=8), found, 1)
    assert (slots.at_once, room.bytes) == (2, 4.5 * GIB)
    assert said == "memory holds 2 trials at once, of 4 GiB each"
    slots, _, said = forecast.placed(s, replace(ONE, at_once=4), found, 2)
    assert (slots.at_once, said) == (4, "")
    with pytest.raises(InputError, match=r"a trial has 9 GiB of the machine: base\.B"):
        forecast.placed(s, ONE, linear(s, 10 * GIB, device="cpu", room=9.0 * GIB), 1)


def test_a_candidate_whose_shape_does_not_fit_is_infeasible_and_others_are_not():
    s = space(base={"S": 8, "B": 33}, search={"sizes": [4, 8, 12], "split": [0, 1]})
    found = linear(s, 80 * GIB)
    room = Room(found, found.room)
    over = [x for x in s.shapes() if x.pixels > s.base.pixels]
    assert over, "the test needs a shape that rounding makes dearer than the base"
    for x in s.shapes():
        params = {f"w_{S}": float(S == x.S) for S in s.search.sizes} | {"split": 1, "growth": "none"}
        regime = s.regime(params)
        said = infeasible(s, regime, s.training(1), 300, room)
        assert bool(said) == any(y in over for y in regime.shapes)
        if said:
            assert f"at {x.S} px a batch of" in said
            assert "base.B 32 would fit" in said


def test_hours_are_those_of_every_rung_of_every_trial():
    s = space(fidelity={"kind": "compress", "rungs": 3, "factor": 3}, budget={"epochs": 90}, trials=32)
    one = 1e-9 * 90 * 300 * 64 / 3600  # a whole budget
    found = planned(s)
    assert found.hours == pytest.approx(32 * one * (1 / 9 + 1 / 3 + 1), rel=0.01)
    searched = 1 / 9 + (1 / 3) * (1 / 3) + 1 / 9
    assert found.expected == pytest.approx(one * (2 * (1 / 9 + 1 / 3 + 1) + 30 * searched), rel=0.01)
    assert found.stepping == pytest.approx(1)
    assert whole_runs(s) == pytest.approx((found.hours / one, found.expected / one), rel=0.01)
    proven = replace(s, final=Final())  # published regimes may be pruned
    assert whole_runs(proven) == pytest.approx((found.hours / one, planned(proven).expected / one), rel=0.01)
    assert whole_runs(proven)[1] < whole_runs(s)[1]
    folds = replace(s, folds=2)  # the second one trains on the whole budget once more
    assert planned(folds).hours == pytest.approx(32 * one * (1 / 9 + 1 / 3 + 2), rel=0.01)
    assert whole_runs(folds)[0] == pytest.approx(32 * (1 / 9 + 1 / 3 + 2))


def test_a_dry_run_tells_the_whole_search_in_training_runs():
    """search_spaces/imagenet.yaml: 6 published regimes go through all rungs, of 58 others a third through each."""
    s = load_config(ROOT / "search_spaces/imagenet.yaml", Space)
    (said,) = (line for line in preflight.plan(s, 1_255_544, sampled=0).splitlines() if line.startswith("search: "))
    rungs = 1 / 9 + 1 / 3 + 1
    assert f"64 trials, in all the compute of {6 * rungs + 58 / 3:.3g} runs of the whole budget if halving" in said
    assert said.endswith(f"{64 * rungs:.3g} runs of the whole budget if nothing is pruned")
    whole = replace(s, fidelity=Fidelity("compress", rungs=1), pruner=Named("none"))
    assert preflight.plan(whole, 1_255_544, sampled=0).endswith("in all the compute of 64 runs of the whole budget")
    assert whole_runs(replace(s, pruner=Named("median"))) == (pytest.approx(64 * rungs), None)


def test_folds_at_once_take_the_time_of_one_and_the_cores_of_all():
    s = space(folds=4, budget={"epochs": 90}, trials=10, pruner={"name": "none"}, fidelity={"kind": "compress"})
    more = {"setup": 2.0, "judging": {8: 1.0, 12: 1.0}}
    in_turn = planned(s, **more)
    for count, waves in ((2, 2), (3, 2), (4, 1)):
        at_once = replace(s, resources=replace(s.resources, folds_at_once=count))
        found = planned(at_once, replace(ONE, folds=count), **more)
        one = 1e-9 * 90 * 300 * 64
        assert found.hours == pytest.approx(10 * (one * (1 / 9 + 1 / 3 + waves) + (2 + waves) * 4) / 3600, rel=1e-3)
        assert 1 - found.stepping == pytest.approx(10 * (2 + waves) * 4 / 3600 / found.hours)
        assert messages.occupied(found.slots, 1.0).startswith(f"{count} core-hours")
    whole = 10 * (1e-9 * 90 * 300 * 64 * (1 / 9 + 1 / 3 + 4) + 6 * 4) / 3600
    assert in_turn.hours == pytest.approx(whole, rel=1e-3)


def test_a_fold_that_trains_beside_a_pruned_one_is_paid_for():
    s = space(folds=3, trials=32, fidelity={"kind": "compress", "rungs": 1})
    both = replace(s, resources=replace(s.resources, folds_at_once=3))
    (most, spared), (same, paid) = whole_runs(s), whole_runs(both)
    assert most == same == 32 * 3
    assert spared < paid == most


def test_memory_is_counted_for_every_fold_that_trains_at_once():
    s = space()
    dearest = max(x.pixels for x in s.shapes()) / s.base.pixels
    found = linear(s, 4 * GIB / dearest, device="cpu", room=17.0 * GIB)
    slots, room, said = forecast.placed(s, replace(ONE, at_once=8, folds=2), found, 1)
    assert (slots.at_once, room.bytes) == (2, 17 * GIB / 4)
    assert said == "memory holds 2 trials at once, of 4 GiB each"


def test_evaluations_and_starts_are_counted():
    s = space(budget={"epochs": 90}, evaluate={"sizes": [8, 12], "reports": 5}, trials=10, pruner={"name": "none"})
    plain = planned(s)
    found = planned(s, setup=2.0, judging={8: 1.0, 12: 1.0})
    assert found.hours == pytest.approx(plain.hours + 10 * (2 + 5 * 2) / 3600)
    assert found.expected == pytest.approx(found.hours)
    assert found.stepping == pytest.approx(plain.hours / found.hours)
    assert planned(replace(s, pruner=Named("median"))).expected is None


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
    found = planned(space(), weights=1.0 * GIB)
    assert found.disk == pytest.approx((2 * 4 + 4 * 2) * GIB)  # twice each trial's; checkpoints of two that run
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(8 * GIB))
    said = r"--out .*/not/there: .* of 4 trials take about 16 GiB and 8 GiB are free; trials=2 would fit"
    with pytest.raises(InputError, match=said):
        forecast.check_disk(found, tmp_path / "not" / "there", 4)
    assert forecast.check_disk(found, tmp_path, 1) == 8 * GIB  # three of them are there already
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(20 * GIB))
    assert forecast.check_disk(found, tmp_path, 4) == 20 * GIB


def test_the_plan_says_what_is_asked_for():
    s = space(budget={"epochs": 9000}, trials=100, fidelity={"kind": "compress"})
    found = linear(s, 20 * GIB, setup=1.0)
    room = Room(found, found.room)
    plan = forecast.plan(s, s.training(1), room, GPU, 300)
    told = "\n".join(messages.lines(s, plan, room, 1e12, NODES, s.training(1)))
    assert "measured  here" in told
    assert "a trial has 80 GiB" in told
    assert "within 0 % for every shape that was tried" in told
    assert "100 trials, 8 at once, each on 12 CPU cores and 1 GPU" in told
    assert f"{plan.expected:.3g} GPU-hours in {duration(plan.expected / 8 * 3600)} if halving keeps its share" in told
    assert f"{plan.hours:.3g} GPU-hours in {duration(plan.hours / 8 * 3600)} if nothing is pruned" in told
    uneven = replace(found, steps=(*found.steps, replace(found.steps[1], shape=BatchShape(12, 14), seconds=1e-5)))
    assert "% more" in "\n".join(messages.lines(s, plan, Room(uneven, room.bytes), 1e12, NODES, s.training(1)))
    for slots, said in (
        (Concurrency(12, 1, 1, workers=8), "16 GPU-hours in 2 h 00 min"),
        (ONE, "4 core-hours in 2 h 00 min"),
    ):
        two = replace(plan, slots=slots, hours=2.0 * slots.at_once, expected=None)
        assert said in "\n".join(messages.lines(s, two, room, 1e12, NODES, s.training(1)))


@pytest.mark.parametrize(
    ("slots", "workers", "nodes", "said"),
    [
        (
            GPU,
            None,
            NODES,
            "11 readers for a trial; at most {} of images made ahead, {} of a machine that has 8 at once",
        ),
        (replace(GPU, at_once=16), 2, NODES * 2, "2 readers for a trial; at most {} of images made ahead, {} of a"),
        (
            replace(GPU, at_once=1, workers=8),
            0,
            NODES,
            "no readers, each of its processes decodes; at most {} of images",
        ),
        (replace(GPU, at_once=1), 3, NODES, "3 readers for a trial; at most {} of images made ahead"),
    ],
)
def test_what_images_made_ahead_take_is_told_of_a_trial_and_of_a_machine(slots, workers, nodes, said):
    files = {"dataset": "folder", "network": "cifar_resnet8", "data": "nowhere", "workers": workers}
    wanted = {"base": {"S": 64, "B": 40_000}, "search": {"sizes": [32, 64]}, "budget": {"epochs": 20}}
    s = space(task=files, resources={"workers": slots.workers}, **wanted)
    found = linear(s)
    plan = forecast.plan(s, s.training(slots.cpus), Room(found, found.room), slots, 200_000)
    # One step where nobody works ahead, three where readers do, which are more here than the limit.
    largest = max(-(-shape.B // slots.workers) * shape.D * shape.S**2 * 3 for shape in s.shapes())
    assert plan.ahead == largest * (1 if workers == 0 else 3)
    (line,) = (
        x
        for x in messages.lines(s, plan, Room(found, found.room), 1e12, nodes, s.training(1))
        if x.startswith("loader")
    )
    on_one = min(slots.at_once * slots.workers, 8)
    assert said.format(gib(plan.ahead), gib(on_one * plan.ahead)) in line
    assert (f"has {on_one} at once" in line) == (on_one > 1)
    small = messages.lines(space(), planned(space()), Room(linear(space()), GIB), 1e12, NODES, space().training(1))
    assert not any(x.startswith("loader") for x in small)


def test_trials_that_share_a_gpu_take_it_for_as_long_as_was_measured():
    s = space(budget={"epochs": 90}, trials=16)
    alone, shared = planned(s, GPU), planned(s, replace(GPU, pack=4, gain=2.5))
    assert shared.hours == pytest.approx(alone.hours * 4 / 2.5)
    assert shared.longest == pytest.approx(alone.longest * 4 / 2.5)
    assert shared.stepping == pytest.approx(alone.stepping)
    slots = shared.slots
    assert messages.occupied(slots, 4.0) == "1 GPU-hours in 30 min 00 s"
