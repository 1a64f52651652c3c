import pytest

from mixtune.config import parse
from mixtune.execution.coordinator import Coordinator
from mixtune.search.callbacks import Callbacks
from mixtune.search.final import Repeat
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.study.repeats import Repeats, whole
from tests.execution.test_coordinator import Recorder, report


@pytest.fixture
def space(tiny):
    return parse(tiny | {"final": {"seeds": 2}}, Space, "f")


@pytest.fixture
def outcomes(tmp_path, space):
    """Trial 0 (fixed) and trial 1 (multiscale) of a search that has ended, whose storage is beside them."""
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4)
    for _ in range(4):
        trial, _ = trials.ask()
        trials.finish(trial, "COMPLETE", 0.5, "", None)
    return trials.outcomes()


def opened(tmp_path, space, outcomes, seeds, of=(0, 2)):
    wanted = [(outcomes[n], Repeat(n, seed, "final")) for n in of for seed in seeds]
    return Repeats(f"journal:///{tmp_path}/study.journal", space, "final", wanted)


def take(book, score=0.9):
    trial, params = book.ask()
    book.finish(trial, "COMPLETE", score, "", None)
    return trial, params


def test_every_run_is_handed_out_once_with_the_parameters_of_its_trial(tmp_path, space, outcomes):
    book = opened(tmp_path, space, outcomes, [0, 1])
    taken = []
    while book.remaining():
        trial, params = take(book)
        repeat = Repeat.from_attributes(trial.user_attrs)
        assert params == outcomes[repeat.of].params
        taken.append((repeat.of, repeat.seed))
    assert sorted(taken) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert {(r.of, r.seed): o.published for r, o in book.results().items()}[0, 0] == "fixed"


def test_what_is_finished_is_not_repeated_and_more_seeds_are_added(tmp_path, space, outcomes):
    book = opened(tmp_path, space, outcomes, [0])
    take(book)
    book.ask()  # cut off
    again = opened(tmp_path, space, outcomes, [0, 1])
    again.reconcile()
    assert again.remaining() == 3
    while again.remaining():
        take(again)
    assert opened(tmp_path, space, outcomes, [0, 1]).remaining() == 0
    assert len(again.outcomes()) == 4


def test_a_run_that_was_cut_off_goes_on_from_its_own_checkpoint(tmp_path, space, outcomes):
    book = opened(tmp_path, space, outcomes, [0])
    book.ask()
    again = opened(tmp_path, space, outcomes, [0])
    again.reconcile()
    found = [again.ask()[0].user_attrs for _ in range(again.remaining())]
    assert {a["repeat"]["of"]: a.get("lineage") for a in found} == {2: None, 0: 0}


def test_what_is_not_wanted_any_more_is_left_out(tmp_path, space, outcomes):
    opened(tmp_path, space, outcomes, [0, 1, 2], of=(0, 1))
    book = opened(tmp_path, space, outcomes, [0], of=(1, 2))
    while book.remaining():
        take(book)
    assert {o.repeat.of for o in book.outcomes()} == {1, 2}
    more = opened(tmp_path, space, outcomes, [0, 1], of=(0,))  # wanted again
    assert more.remaining() == 2
    take(more), take(more)
    assert more.remaining() == 0
    with pytest.raises(RuntimeError, match="more runs were asked for"):
        more.ask()


def test_test_scores_do_not_reach_the_sampler(tmp_path, space, outcomes):
    book = opened(tmp_path, space, outcomes, [0, 1])
    while book.remaining():
        take(book, score=0.99)
    search = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4)
    assert search._study.best_value == 0.5
    assert len(search.outcomes()) == 4


def test_a_round_trains_the_whole_budget_at_once(tiny):
    space = parse(tiny | {"folds": 3, "pruner": {"name": "wilcoxon"}}, Space, "f")
    leaders, final = whole(space, "leaders"), whole(space, "final")
    assert [(s.share, s.fold) for s in leaders.stages] == [(1.0, 0), (1.0, 1), (1.0, 2)]
    assert [(s.share, s.fold) for s in final.stages] == [(1.0, 0)]
    assert not leaders.reports_on_the_way
    assert final.training().task.folds == 1


def test_a_worker_is_told_its_seed_and_images_and_the_folder_is_that_of_mixtune_train(tmp_path, space, outcomes):
    book = opened(tmp_path, space, outcomes, [3])
    bridge = Coordinator(book, whole(space, "final").training(1), tmp_path / "final", Callbacks([Recorder()]))
    told = [bridge.suggest(run) for run in "ab"]
    assert [t["judge"] for t in told] == ["test", "test"]
    assert [t["training"]["seed"] for t in told] == [3, 3]
    assert [t["folder"] for t in told] == [str(tmp_path / "final" / at / "seed3") for at in ("fixed", "searched2")]
    assert told[1]["regime"]["name"] == "searched 2"
    bridge.report("a", report(1, 0.9, last=True))
    bridge.end("a", error=False)
    assert book.remaining() == 1
    assert bridge.suggest("c") is None
