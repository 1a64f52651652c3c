"""Studies with several objectives: Optuna's directions, no pruning, the Pareto set, and going on with one."""

import numpy as np
import optuna
import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling import checks
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.search.storage import open_storage
from mixtune.study.console import pareto_table
from tests.curves import curve_of, point
from tests.execution.test_coordinator import Recorder

TWO = {"objectives": ["score", "ece"]}


def curve(top1, ece):
    return curve_of(point(8, 0.1, top1, ece=ece))


def run_all(trials, curves, folder):
    coordinator = Coordinator(trials, trials.space.training(1), folder, Callbacks([Recorder()]))
    for found in curves:
        coordinator.suggest("one")
        for number, last in ((1, False), (2, True)):
            score = found.points[0].metrics["top1"]
            report = {"number": number, "last": last, "score": score, "progress": number / 2, "curve": found.rows()}
            assert not coordinator.report("one", report)
        coordinator.end("one", error=False)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_it_runs_goes_on_and_gives_the_pareto_set(tmp_path, tiny, sampler):
    space = parse(tiny | TWO | {"sampler": {"name": sampler}, "trials": 9}, Space, "f")
    url = f"journal:///{tmp_path}/study.journal"
    planted = [(0.9, 0.10), (0.8, 0.02), (0.85, 0.05), (0.7, 0.02), (0.85, 0.06), (0.6, 0.3), (0.95, 0.4), (0.5, 0.5)]
    first = OptunaStudy(url, space, 4)
    run_all(first, [curve(*p) for p in planted[:5]], tmp_path)
    again = OptunaStudy(url, space, 4)
    assert again.remaining() == 4
    run_all(again, [curve(*p) for p in planted[5:]], tmp_path)
    assert again.remaining() == 1
    assert again.pareto() == [0, 1, 2, 6]
    assert again.best().number == 6
    assert [o.score for o in again.outcomes()] == pytest.approx([p[0] for p in planted])
    study = optuna.load_study(study_name="tiny", storage=open_storage(url))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.trials[2].values == pytest.approx([0.85, 0.05])
    lines = pareto_table([o for o in again.outcomes() if o.number in again.pareto()], space).split("\n")
    assert lines[0] == (
        "Pareto set of 4 trials (objectives: maximize score, minimize ece (score: hypervolume of top-1 over log "
        "GMACs); several run without pruning)"
    )
    assert [line.split()[0] for line in lines[2:]] == ["#6", "#0", "#2", "#1"]


def crowding(points):
    """NSGA-II's distance of every point, written out: the gaps around it in each objective, in units of its range."""
    found = dict.fromkeys(points, 0.0)
    for i in range(2):
        order = sorted(points, key=lambda p: p[i])
        found[order[0]] = found[order[-1]] = float("inf")
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            found[here] += (after[i] - before[i]) / (order[-1][i] - order[0][i])
    return found


def test_the_front_is_ordered_by_how_far_its_trials_stand_apart(tmp_path, tiny):
    space = parse(tiny | TWO | {"published": [], "trials": 12, "sampler": {"name": "random"}}, Space, "f")
    rng = np.random.default_rng(0)
    front = [(float(s), float(s**3)) for s in rng.uniform(0.2, 0.9, 8)]
    beaten = [(s - 0.1, e + 0.05) for s, e in front[:4]]
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4)
    run_all(trials, [curve(*p) for p in front + beaten], tmp_path)
    distances = crowding(front)
    assert trials.pareto() == list(range(8))
    assert [distances[front[n]] for n in trials.diverse_front()] == sorted(distances.values(), reverse=True)
    assert len(set(distances.values())) > 6  # the order is one


def test_a_value_that_is_not_finite_is_a_failure(tmp_path, tiny):
    trials = OptunaStudy(f"journal:///{tmp_path}/study.journal", parse(tiny | TWO, Space, "f"), 4)
    trial, _ = trials.ask()
    trials.finish(trial, "COMPLETE", 0.9, "", curve(0.9, float("nan")))
    assert [o.state for o in trials.outcomes()] == ["FAIL"]


def test_there_is_nothing_to_prune_by_so_there_are_no_rungs(tiny):
    space = parse(tiny | TWO | {"fidelity": {"kind": "compress"}}, Space, "f")
    assert [s.share for s in space.stages] == [1.0]
    assert space.pruning.name == "none"
    assert "several run without pruning" in space.aim


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (TWO | {"pruner": {"name": "median"}}, "pruner median needs one objective, not 2; leave it out"),
        (TWO | {"pruner": {"name": "halving"}}, "pruner halving needs one objective"),
        (TWO | {"sampler": {"name": "cmaes"}}, "sampler cmaes needs one objective; use tpe or nsga2"),
        ({"objectives": ["ece"]}, "objectives must be different ones, score among them"),
        ({"objectives": ["score", "score"]}, "objectives must be different ones"),
        ({"objectives": ["score", "speed"]}, "objectives"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(tiny, change, said):
    with pytest.raises(InputError, match=said) as raised:
        parse(tiny | change, Space, "f")
    assert "\n" not in str(raised.value)


def test_a_pruner_that_is_named_and_is_the_default_makes_no_other_study(tiny):
    named = parse(tiny | {"pruner": {"name": "halving"}}, Space, "f")
    assert named.digest() == parse(tiny, Space, "f").digest()
    assert parse(tiny | TWO, Space, "f").digest() != parse(tiny, Space, "f").digest()


def test_a_cap_below_every_size_is_found_before_anything_is_trained(tiny):
    space = parse(tiny | {"score": {"measure": "capped", "gmacs": 1e-6}}, Space, "f")
    with pytest.raises(InputError, match=r"f: score.gmacs is 1e-06, and the smallest of evaluate.sizes, 8 px, costs 0"):
        checks.check_data(space, "f")
    checks.check_data(parse(tiny | {"score": {"measure": "capped", "gmacs": 1.0}}, Space, "f"), "f")
