import copy
from functools import partial

import numpy as np
import pytest
import torch

from mixtune.config import parse, to_plain
from mixtune.data import splits
from mixtune.errors import InputError
from mixtune.evaluation.curve import mean_curve
from mixtune.execution.coordinator import Coordinator
from mixtune.execution.trial import trial_reports
from mixtune.profiling.feasibility import infeasible
from mixtune.regime import Schedule
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.callbacks import Callbacks
from mixtune.search.domains import Uniform
from mixtune.search.fidelity import Fidelity, Stage, stages
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.training.run import Run
from tests.conftest import TINY
from tests.execution.published_trial import published_spec


def space(**change):
    settings = copy.deepcopy(TINY) | {"published": ["fixed"]} | change
    return parse(settings, Space, "f")


def results(s, folder):
    return list(trial_reports(SINGLE_PROCESS, published_spec(s, folder, "fixed")))


def test_rungs_come_first_and_other_folds_after_the_whole_budget():
    assert stages(Fidelity("compress", 3, 3), 1, 4, False) == (
        Stage(1 / 9, 0, 1),
        Stage(1 / 3, 0, 3),
        Stage(1.0, 0, 9),
    )
    assert stages(Fidelity("compress", 2, 2), 3, 4, False)[1:] == (
        Stage(1.0, 0, 2),
        Stage(1.0, 1, 3),
        Stage(1.0, 2, 4),
    )
    assert stages(Fidelity("truncate"), 2, 6, False) == (Stage(1.0, 0, 6), Stage(1.0, 1, 7))
    assert [s.step for s in stages(Fidelity("compress", 3, 3), 3, 4, True)] == [1, 2, 3]


def test_a_rung_trains_the_whole_schedule_on_its_share_of_the_budget(tmp_path):
    s = space(budget={"epochs": 4}, fidelity={"kind": "compress", "rungs": 2, "factor": 2})
    made = results(s, tmp_path)
    assert [(r["number"], r["progress"], r["last"]) for r in made] == [(1, 0.5, False), (2, 1.0, True)]
    # Each is what a run of that share gives by itself; the second begins anew.
    for r, share in zip(made, (0.5, 1.0), strict=True):
        training = parse(to_plain(s.training(1)) | {"share": share}, type(s.training()), "f")
        job = Run.prepare(s.regime(s.published_params("fixed", 4)), training)
        alone = list(job.reports())[-1]
        assert r["score"] == s.score.of(alone.curve)
        assert job.schedule.pixels == pytest.approx(share * 4 * 300 * 64, rel=0.05)


def test_a_trial_that_was_cut_off_does_not_train_its_finished_rungs_again(tmp_path, monkeypatch):
    s = space(budget={"epochs": 4}, fidelity={"kind": "compress", "rungs": 2, "factor": 2})
    whole = results(s, tmp_path / "a")
    stopped = trial_reports(SINGLE_PROCESS, published_spec(s, tmp_path / "b", "fixed"))
    next(stopped)
    stopped.close()
    steps = []
    forward = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *a, **k: (steps.append(1), forward(*a, **k))[1])
    again = results(s, tmp_path / "b")
    assert [r["score"] for r in again] == [r["score"] for r in whole]
    assert len(steps) == len(Run.prepare(s.regime(s.published_params("fixed", 4)), s.training(1)).schedule)


def test_folds_are_judged_in_turn_and_the_score_is_that_of_the_mean_curve(tmp_path):
    s = space(folds=3)
    made = results(s, tmp_path)
    assert [r["number"] for r in made] == [1, 2, 3, 4]  # two reports on the first fold, then one per fold
    assert [r["fold"] for r in made] == [0, 0, 1, 2]
    assert [r["last"] for r in made] == [False, False, False, True]
    # hypervolume is linear in the accuracies where a larger size is never worse, so only the curve is compared
    means = np.mean([[row["top1"] for row in r["curve"]] for r in made[1:2]], axis=0)
    assert [row["top1"] for row in made[1]["curve"]] == pytest.approx(means)
    assert made[-1]["own"] != made[-1]["score"]


def test_the_mean_curve_is_the_mean(tmp_path):
    s = space(folds=2)
    from tests.curves import from_rows

    one, both = results(s, tmp_path)[-2:]
    regime = s.regime(s.published_params("fixed", 4))
    training = parse(
        to_plain(s.training(1)) | {"task": to_plain(s.training(1).task) | {"fold": 1}}, type(s.training()), "f"
    )
    second = list(Run.prepare(regime, training).reports())[-1].curve
    assert from_rows(both["curve"]) == mean_curve([from_rows(one["curve"]), second])


def test_folds_are_disjoint_stratified_and_cover_everything():
    labels = torch.arange(10).repeat_interleave(13)
    parts = [splits.fold_split(labels, 4, i, seed=0) for i in range(4)]
    held = np.concatenate([part for _, part in parts])
    assert sorted(held.tolist()) == list(range(130))
    for rest, part in parts:
        assert set(rest) | set(part) == set(range(130))
        counts = np.bincount(labels.numpy()[part], minlength=10)
        assert counts.min() >= 3
        assert counts.max() <= 4
        assert 31 <= len(part) <= 34
    with pytest.raises(ValueError, match="too few for 14 folds"):
        splits.fold_split(labels, 14, 0, seed=0)


def test_what_cannot_meet_the_budget_is_recorded_in_no_time_and_is_no_trial(tmp_path):
    # Batches of 300 images at a budget of 300 images at 8 px: larger sizes overshoot it.
    s = space(base={"S": 8, "B": 100}, budget={"epochs": 0.7}, search={"sizes": [8, 12]}, trials=8)
    url = f"journal:///{tmp_path}/study.journal"
    trials = OptunaStudy(url, s, 4)
    bridge = Coordinator(trials, s.training(1), tmp_path, Callbacks([]), partial(infeasible, s, n_train=300))
    drawn = [s.suggest(Uniform(i)) for i in range(40)]
    refused = [p for p in drawn if infeasible(s, s.regime(p), s.training(1), 300)]
    assert refused, "the test needs candidates that cannot meet the budget"
    trials._study.enqueue_trial(refused[0])
    before = trials.remaining()
    first, second = bridge.suggest("a"), bridge.suggest("b")
    assert first is not None
    assert second is not None
    assert trials.remaining() == before
    (reason,) = list(trials.infeasible().values())[:1]
    assert "cannot meet its budget" in reason or "less than one step" in reason
    assert all(o.reason != reason for o in trials.outcomes())
    trials.close()


def test_a_space_without_a_feasible_candidate_ends_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("mixtune.execution.coordinator.INFEASIBLE_IN_A_ROW", 5)
    s = space(published=[], base={"S": 8, "B": 300}, budget={"epochs": 0.4}, search={"sizes": [8], "split": 1})
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", s, 4)
    bridge = Coordinator(trials, s.training(1), tmp_path, Callbacks([]), partial(infeasible, s, n_train=300))
    assert bridge.suggest("a") is None
    assert "candidates in a row cannot be trained" in bridge.halted
    trials.close()


def test_phases_too_small_for_a_rung_are_left_out_of_it_and_the_budget_is_spent():
    s = parse(TINY | {"published": []}, Space, "f")
    regime = s.regime({"w_4": 0.05, "w_8": 1.0, "w_12": 0.05, "split": 1.0, "growth": "gradual"})
    whole = Schedule.build(regime, s.budget, 3000, 0)
    part = Schedule.build(regime, s.budget, 3000, 0, share=1 / 9)
    assert len(whole.phase_steps) == 3
    assert len(part.phase_steps) < 3
    assert part.pixels == pytest.approx(whole.pixels / 9, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pruner": {"name": "wilcoxon"}}, "pruner wilcoxon compares folds: set folds to at least 2"),
        ({"fidelity": {"kind": "compres"}}, "fidelity.kind must be 'compress' or 'truncate'"),
        ({"fidelity": {"rungs": 0}}, "rungs must be at least 1"),
        ({"folds": 0}, "folds must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence(change, message):
    with pytest.raises(InputError) as error:
        space(**change)
    assert message in str(error.value)


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc", "cmaes", "nsga2"])
def test_every_sampler_gives_candidates_of_the_space(sampler, tmp_path):
    s = space(sampler={"name": sampler}, published=[], trials=30)
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", s, 4)
    for i in range(14):
        trial, params = trials.ask()
        s.regime(params)
        trials.finish(trial, "COMPLETE", params["w_8"] + i / 100, "", None)
    assert len(trials.outcomes()) == 14
    trials.close()


@pytest.mark.parametrize(
    "pruner",
    [
        {"name": "patient", "options": {"pruner": "median", "patience": 1}},
        {"name": "threshold", "options": {"lower": 0.5}},
        {"name": "wilcoxon"},
    ],
)
def test_pruners_stop_what_is_worse(pruner, tmp_path):
    s = space(pruner=pruner, published=[], folds=6)
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", s, 4)
    for _ in range(6):
        trial, _ = trials.ask()
        for step in range(1, 7):
            trials.report(trial, step, 0.9 + step / 1000, step == 6)
        trials.finish(trial, "COMPLETE", 0.9, "", None)
    trial, _ = trials.ask()
    stopped = [trials.report(trial, step, 0.1 - step / 1000, False) for step in range(1, 6)]
    assert any(stopped)
    trials.close()
