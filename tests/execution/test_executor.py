"""Folds that train at the same time, in a real Ray on this machine: what they give, and how they end."""

import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.execution import executor, ray_tune, worker_group
from mixtune.execution.coordinator import Coordinator
from mixtune.execution.trial import RunReport, TrialSpec, run_reports, trial_reports
from mixtune.profiling.concurrency import Concurrency, concurrency_for
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.callbacks import Callbacks
from mixtune.search.fidelity import Stage
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.study.repeats import whole
from tests.accounts import marked
from tests.conftest import TINY
from tests.execution.published_trial import published_config

AT_ONCE = {"folds": 3, "resources": {"cpus": 1, "folds_at_once": 2}, "published": ["multiscale"], "trials": 1}
IN_TURN = AT_ONCE | {"resources": {"cpus": 1}}
RUNGS = {"fidelity": {"kind": "compress", "rungs": 2, "factor": 2}, "budget": {"epochs": 2}}
PAIRED = {"pruner": {"name": "wilcoxon"}}
TIMES = ("seconds", "views_per_second")


@pytest.fixture
def group(group, monkeypatch):
    """Room for two folds; a trial's worker would be told of it by Ray."""
    monkeypatch.setattr(worker_group, "current_group", lambda: group)
    return group


def configuration(folder, settings):
    return published_config(parse(TINY | settings, Space, "f"), folder)


def spec(folder, settings):
    return TrialSpec.from_config(configuration(folder, settings))


def processes(mark):
    """The processes of folds, by Ray's name for them."""
    return sorted(pid for pid, name in marked(mark).items() if name.startswith("ray::_Rank"))


def assert_no_process(mark, seconds=30):
    deadline = time.monotonic() + seconds
    while left := processes(mark):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def without_times(results):
    return [{k: v for k, v in r.items() if k not in TIMES} for r in results]


@pytest.mark.parametrize(
    "settings", [{}, pytest.param(RUNGS, marks=pytest.mark.slow), pytest.param(PAIRED, marks=pytest.mark.slow)]
)
def test_folds_at_once_report_what_folds_in_turn_report_to_the_bit(group, tmp_path, mark, settings):
    in_turn = list(trial_reports(SINGLE_PROCESS, spec(tmp_path / "a", IN_TURN | settings)))
    at_once = list(executor.train_trial(spec(tmp_path / "b", AT_ONCE | settings)))
    assert {r["fold"] for r in at_once} == {0, 1, 2}
    assert without_times(at_once) == without_times(in_turn)
    a, b = (load_file(tmp_path / name / "trials" / "0000" / "weights.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a.keys() | b.keys())
    assert_no_process(mark)


def dies_once(here, trial, stages, notes):
    """Two folds, the second of which is killed once, when the first has reported."""
    for one in run_reports(here, trial, stages):
        with notes.open("a") as file:
            file.write(f"{one.stage.fold} {one.report.seconds!r}\n")
        yield one
    while len(notes.read_text().splitlines()) < 3 and not notes.with_name("killed").exists():
        time.sleep(0.05)
    if stages[0].fold == 1 and not notes.with_name("killed").exists():
        notes.with_name("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_fold_that_is_killed_starts_the_trial_again_from_what_is_kept(group, tmp_path, mark):
    trial, notes = spec(tmp_path, AT_ONCE | {"folds": 2}), tmp_path / "notes"
    teams = [(trial, [stage], notes) for stage in trial.stages]
    results = worker_group.parallel_results(dies_once, group, teams, 1)
    reports = list(executor.in_stage_order((report for _, report in results), trial.stages))
    undisturbed = list(trial_reports(SINGLE_PROCESS, spec(tmp_path / "a", IN_TURN | {"folds": 2})))
    assert without_times(executor.combined_reports(trial, reports)) == without_times(undisturbed)
    seconds = [line.split() for line in notes.read_text().splitlines()]
    assert len(seconds) == 6
    for fold in "01":  # what was told again came out of the checkpoints
        of_fold = [took for name, took in seconds if name == fold]
        assert of_fold[: len(of_fold) // 2] == of_fold[len(of_fold) // 2 :]
    assert_no_process(mark)


@pytest.mark.slow
def test_a_fold_that_fails_ends_the_others_and_is_the_trials_failure(group, tmp_path, mark):
    config = configuration(tmp_path, AT_ONCE | {"budget": {"epochs": 2000}})
    trial = TrialSpec.from_config(config)
    kept = trial.stage_checkpoint(trial.stages[-2])
    kept.parent.mkdir()
    kept.write_bytes(b"of something else")
    reported = []
    ray_tune.train_and_report(config, reported.append)
    assert len(reported) == 1
    assert kept.name in reported[0]["failed"]
    assert "\n" not in reported[0]["failed"]
    assert_no_process(mark)


@pytest.mark.slow
def test_a_trial_that_is_stopped_ends_its_folds(group, tmp_path, mark):
    trial = spec(tmp_path, AT_ONCE | {"budget": {"epochs": 60}, "evaluate": {"sizes": [8], "reports": 20}})
    stream = executor.train_trial(trial)
    next(stream)
    assert len(processes(mark)) == 2
    stream.close()
    assert_no_process(mark)


def study(folder, settings):
    space = parse(TINY | settings, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    slots = concurrency_for(space, [(2, 0)])
    ray_tune.run(Coordinator(trials, space.training(1), folder, Callbacks([])), slots, folder)
    return trials.outcomes()


@pytest.mark.slow
def test_a_study_has_the_same_books_either_way(cluster, tmp_path, mark):
    settings = {"trials": 3, "pruner": {"name": "wilcoxon"}, "sampler": {"name": "random"}}
    # One trial at a time: with two, which of them the pruner sees first is the machine's business.
    one = {"cpus": 1, "at_once": 1}
    books = []
    for name, resources in (("a", one), ("b", one | {"folds_at_once": 2})):
        (tmp_path / name).mkdir()
        books.append(study(tmp_path / name, AT_ONCE | settings | {"resources": resources}))
    assert books[0] == books[1]
    assert len(books[0]) == 3
    assert_no_process(mark)


@pytest.mark.slow
def test_a_pruned_trial_and_one_that_takes_too_long_leave_no_process(cluster, tmp_path, mark):
    lost = {"pruner": {"name": "threshold", "options": {"lower": 2.0}}, "published": [], "budget": {"epochs": 4}}
    (outcome,) = study(tmp_path, AT_ONCE | RUNGS | lost)
    assert (outcome.state, list(outcome.reports)) == ("PRUNED", [1])
    assert_no_process(mark)
    (tmp_path / "long").mkdir()
    slow = {"budget": {"epochs": 50000}, "limits": {"minutes": 0.6}}
    (outcome,) = study(tmp_path / "long", AT_ONCE | slow)
    assert outcome.state == "FAIL"
    assert "limits.minutes" in outcome.reason
    assert "of fold 0, shape" in outcome.reason
    assert "of fold 1, shape" in outcome.reason
    assert_no_process(mark)
    assert not list((tmp_path / "long" / "trials" / "0000").glob("position*"))


def test_reports_come_in_the_order_of_the_folds_and_as_soon_as_they_can():
    path = [Stage(1.0, fold, 4 + fold) for fold in range(3)]

    def one(fold, last=True):
        return RunReport(path[fold], None, last, ())

    arrived = [one(1), one(0, last=False), one(2), one(0)]
    taken = []

    def arriving():
        for each in arrived:
            taken.append(len(given))
            yield each

    given = []
    for each in executor.in_stage_order(arriving(), path):
        given.append((each.stage.fold, each.last))  # noqa: PERF401, arriving looks at it meanwhile
    assert given == [(0, False), (0, True), (1, True), (2, True)]
    assert taken == [0, 0, 1, 1]  # the first fold's report on the way did not wait for its end


def test_room_is_counted_for_every_fold():
    space = parse(TINY | AT_ONCE, Space, "f")
    assert concurrency_for(space, [(5, 0)]) == Concurrency(1, 0, 2, folds=2)
    assert concurrency_for(replace(space, resources=replace(space.resources, workers=2)), [(8, 0)]).at_once == 2
    assert str(Concurrency(4, 0.5, 1, folds=2)) == "1 at once, each on 2 folds at once of 4 CPU cores and 0.5 GPU"
    with pytest.raises(InputError, match=r"resources\.folds_at_once: .*2 folds"):
        concurrency_for(space, [(1, 0)])
    shared = parse(TINY | AT_ONCE | {"resources": {"gpus": 0.5, "folds_at_once": 2}}, Space, "f")
    assert concurrency_for(shared, [(8, 2)]) == Concurrency(2, 0.5, 2, folds=2)


def test_the_final_on_the_whole_training_set_has_no_folds_and_as_many_processes():
    space = parse(TINY | AT_ONCE | PAIRED, Space, "f")
    assert whole(space, "leaders").resources.folds_at_once == 2
    assert whole(space, "final").resources.folds_at_once == 1
    assert Concurrency(1, 0, 2, folds=3).with_folds(1) == Concurrency(1, 0, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": 1}, "resources.folds_at_once is 2, more than folds, 1: raise folds, or leave it out to train folds"),
        ({"resources": {"folds_at_once": 0}}, "resources: folds_at_once must be at least 1, not 0"),
        ({"resources": {"folds_at_once": 2, "pack": 2}}, "pack has trials share a process and folds_at_once gives"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(change, said):
    with pytest.raises(InputError, match=said) as err:
        parse(TINY | AT_ONCE | change, Space, "f")
    assert "\n" not in str(err.value)


def test_folds_at_once_are_no_part_of_what_a_study_is():
    assert parse(TINY | AT_ONCE, Space, "f").digest() == parse(TINY | IN_TURN, Space, "f").digest()
