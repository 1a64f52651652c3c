import math

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from tests.curves import curve_of, point

CURVE = curve_of(point(8, 0.1, 0.5, 0.9, 1.0))


@pytest.fixture
def opened(tmp_path, tiny):
    """Opens the study in tmp_path, as often as wanted."""

    def open_(**change):
        return OptunaStudy(f"journal:///{tmp_path}/study.journal", parse(tiny | change, Space, "f"), 4)

    return open_


def run_one(trials, scores):
    trial, _ = trials.ask()
    for number, score in enumerate(scores, 1):
        if trials.report(trial, number, score, last=number == len(scores)):
            trials.finish(trial, "PRUNED", score, "pruned", CURVE)
            return trial
    trials.finish(trial, "COMPLETE", scores[-1], "", CURVE)
    return trial


def test_published_regimes_come_first_and_are_never_pruned(opened):
    trials = opened()
    for expected in ("fixed", "multiscale"):
        trial = run_one(trials, [0.0, 0.0])
        assert trial.user_attrs["published"] == expected
    assert [o.state for o in trials.outcomes()] == ["COMPLETE", "COMPLETE"]


def test_published_regimes_that_a_final_trains_again_may_be_pruned(opened):
    trials = opened(final={"leaders": 1, "replicates": 1, "seeds": 2})
    for scores in ([0.8, 0.9], [0.1, 0.2]):
        run_one(trials, scores)
    assert [(o.published, o.state) for o in trials.outcomes()] == [("fixed", "COMPLETE"), ("multiscale", "PRUNED")]


def test_without_fresh_seeds_a_final_prunes_no_published_regime(opened):
    trials = opened(final={"leaders": 1, "replicates": 0, "seeds": 2})
    for scores in ([0.8, 0.9], [0.1, 0.2]):
        run_one(trials, scores)
    assert [o.state for o in trials.outcomes()] == ["COMPLETE", "COMPLETE"]


def test_a_searched_trial_below_the_others_is_pruned_and_recorded_as_such(opened):
    trials = opened()
    run_one(trials, [0.8, 0.9])
    run_one(trials, [0.7, 0.8])
    run_one(trials, [0.1, 0.2])
    last = trials.outcomes()[-1]
    assert (last.state, last.score, last.reason, last.curve) == ("PRUNED", 0.1, "pruned", CURVE)
    assert trials.remaining() == 1


def test_the_last_report_never_prunes(opened):
    trials = opened(pruner={"name": "halving", "options": {"min_resource": 2}})
    run_one(trials, [0.8, 0.9])
    run_one(trials, [0.7, 0.8])
    run_one(trials, [0.1, 0.2])
    assert [o.state for o in trials.outcomes()] == ["COMPLETE"] * 3


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_a_failure_not_the_best(opened, score):
    trials = opened()
    run_one(trials, [0.5])
    trial, _ = trials.ask()
    trials.finish(trial, "COMPLETE", score, "", CURVE)
    assert trials.outcomes()[-1].state == "FAIL"
    assert trials.best().score == 0.5


def test_resuming_closes_what_was_cut_off_and_runs_it_again(opened):
    trials = opened()
    run_one(trials, [0.5, 0.6])
    cut_off, params = trials.ask()  # and the process dies
    again = opened()
    assert again.resumed
    assert again.reconcile() == 1
    assert again.remaining() == 3
    repeated, same = again.ask()
    assert same == params
    assert repeated.user_attrs["published"] == "multiscale"
    again.finish(repeated, "COMPLETE", 0.5, "", CURVE)
    assert [o.number for o in again.outcomes()] == [0, repeated.number]
    assert cut_off.number not in {o.number for o in again.outcomes()}


def test_reconciling_that_is_itself_cut_off_repeats_nothing_twice(opened, monkeypatch):
    trials = opened()
    trials.ask()
    monkeypatch.setattr(trials._study, "tell", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # killed after enqueueing, before closing
        trials.reconcile()
    again = opened()
    again.reconcile()
    seen = [again.ask()[0].user_attrs["published"] for _ in range(2)]
    assert seen == ["multiscale", "fixed"]  # the queue's order; fixed is there once
    third, _ = again.ask()
    assert "published" not in third.user_attrs


def test_a_study_that_was_killed_while_it_was_being_made_is_made_whole(opened, monkeypatch):
    import optuna

    original, calls = optuna.Study.enqueue_trial, []

    def killed(self, *args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(original(self, *args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", killed)
        with pytest.raises(KeyboardInterrupt):
            opened()
    trials = opened()
    assert not trials.resumed
    assert [trials.ask()[0].user_attrs.get("published") for _ in range(3)] == ["fixed", "multiscale", None]


def test_resumed_studies_do_not_repeat_the_samples(opened):
    def searched(trials):
        while True:
            trial, params = trials.ask()
            trials.finish(trial, "COMPLETE", 0.5, "", CURVE)
            if "published" not in trial.user_attrs:
                return params

    assert searched(opened()) != searched(opened())


def test_another_space_under_the_same_name_is_refused(opened):
    opened()
    with pytest.raises(InputError, match="was started with another space"):
        opened(budget={"epochs": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": {"name": "tpee"}}, "sampler.name: unknown sampler 'tpee'; did you mean 'tpe'?"),
        ({"pruner": {"name": "halving", "options": {"factor": 2}}}, "pruner.options: halving has no option 'factor'"),
        ({"pruner": {"name": "median", "options": {"n_startup_trials": -1}}}, "pruner.options: median:"),
    ],
)
def test_bad_samplers_and_pruners_are_refused(opened, change, message):
    with pytest.raises(InputError, match=message):
        opened(**change)


def test_an_unusable_storage_is_one_sentence(tiny):
    with pytest.raises(InputError, match="not a usable Optuna storage"):
        OptunaStudy("sqlite:////nowhere/at/all/study.db", parse(tiny, Space, "f"), 4)
