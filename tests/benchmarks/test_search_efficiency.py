import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks import contest
from benchmarks import search_efficiency as bench
from benchmarks.common import RESULTS
from benchmarks.readme import written
from benchmarks.recorded import TABLE, space_of
from benchmarks.simulated import FULL_BUDGET, Simulated, features
from mixtune.search.domains import Uniform
from mixtune.search.fidelity import Fidelity
from mixtune.search.space import Named

ROWS = json.loads(TABLE.read_text())["rows"]
KINDS = [(kind, share) for kind in ("compress", "truncate") for share in ROWS[0][kind]]


@pytest.fixture(scope="module")
def simulated():
    return Simulated(space_of(), ROWS)


@pytest.fixture
def space():
    return replace(space_of(), trials=10**6)


def same(score):
    return lambda params: dict.fromkeys(KINDS, score)


def spent(search, space, answers, values, limit=50.0):
    meter = contest.Meter(values, limit)
    with pytest.raises(contest.Enough):
        search(space, answers, meter, 0)
    return meter


def test_equal_regimes_have_equal_features():
    search = space_of().search
    point = {"w_8": 0.4, "w_12": 0.2, "w_16": 0.01, "w_20": 0.0, "w_24": 0.3, "split": 0.5, "growth": "none"}
    twice = point | {"w_8": 0.8, "w_12": 0.4, "w_16": 0.03, "w_24": 0.6}
    assert features(search, point) == pytest.approx(features(search, twice))
    assert features(search, point)[:5] == pytest.approx([4 / 9, 2 / 9, 0, 0, 3 / 9])
    one = dict.fromkeys(point, 0.0) | {"w_20": 0.02, "growth": "none"}
    assert features(search, one)[:5] == pytest.approx([0, 0, 0, 1, 0])  # the largest of negligible ones


def test_a_regime_has_the_same_scores_whenever_it_is_asked_for(simulated):
    point = simulated.space.suggest(Uniform(1))
    again = dict(reversed(point.items()))
    assert simulated.of(point, 3) == simulated.of(again, 3)
    assert len({simulated.of(point, world)[FULL_BUDGET] for world in range(20)}) > 10


def test_drawn_regimes_score_and_rank_as_those_of_the_table(simulated):
    own = simulated.scores[len(simulated.space.published) :]  # drawn evenly, as these
    drawn = simulated.drawn(5000, 1)
    whole = simulated.fidelities.index(FULL_BUDGET)
    error = own[:, whole].std() / math.sqrt(len(own))
    assert drawn[:, whole].mean() == pytest.approx(own[:, whole].mean(), abs=3 * error)
    assert drawn[:, whole].std() == pytest.approx(own[:, whole].std(), rel=0.3)
    for i, _ in enumerate(simulated.fidelities):
        rho, said = (stats.spearmanr(table[:, i], table[:, whole]).statistic for table in (own, drawn))
        # Fisher's z: three deviations of a correlation of this many regimes.
        if i != whole:
            assert abs(np.arctanh(rho) - np.arctanh(said)) < 3 / math.sqrt(len(own) - 3)


def test_the_meter_notes_when_a_value_is_reached_first():
    meter = contest.Meter((0.5, 0.6), limit=10.0)
    meter.spend(0.25)
    meter.spend(1.0, 0.55)
    meter.spend(1.0, 0.4)
    with pytest.raises(contest.Enough):
        meter.spend(0.5, 0.7)
    assert meter.reached == [1.25, 2.75]
    with pytest.raises(contest.Enough):
        contest.Meter((1.0,), limit=1.0).spend(1.0, 0.5)


@pytest.mark.parametrize("search", [contest.optuna_alone, contest.ray_asha])
def test_a_run_that_is_judged_on_the_way_costs_one_budget(search, space):
    assert spent(search, space, same(0.5), (0.5,)).reached == [pytest.approx(1.0)]


@pytest.mark.parametrize("search", [contest.optuna_alone, contest.ray_asha])
def test_what_is_pruned_costs_what_it_was_trained(search, space):
    scores = iter([1.0, *(0.5 - 0.01 * i for i in range(9))])

    def answers(params):
        return dict.fromkeys(KINDS, next(scores))

    meter = contest.Meter((2.0,), 1.99)
    with pytest.raises(contest.Enough):
        search(space, answers, meter, 0)
    assert meter.spent == pytest.approx(1 + 9 / 9)  # one whole run, then nine that end at 1/9


def test_every_rung_of_mixtune_is_paid_for(space):
    alone = replace(space, published=(), pruner=Named("none"))
    whole = 1 / 27 + 1 / 9 + 1 / 3 + 1
    assert spent(contest.mixtune_search, alone, same(0.5), (0.5,)).reached == [pytest.approx(whole)]
    scores = iter([1.0, *(0.5 - 0.01 * i for i in range(20))])
    pruned = replace(alone, pruner=Named("halving"))
    meter = spent(
        contest.mixtune_search, pruned, lambda params: dict.fromkeys(KINDS, next(scores)), (2.0,), whole + 9.5 / 27
    )
    assert meter.spent == pytest.approx(whole + 10 / 27)  # the first survives, ten end at the first rung
    judged = replace(pruned, fidelity=Fidelity("truncate"))
    assert spent(contest.mixtune_search, judged, same(0.5), (0.5,)).reached == [pytest.approx(1.0)]


def test_workers_at_the_same_time_all_cost(space):
    alone = replace(space, published=(), pruner=Named("none"), fidelity=Fidelity("compress", rungs=1))
    one, three = (
        spent(lambda *a, n=n: contest.mixtune_search(*a, at_once=n), alone, same(0.5), (0.5,)).reached for n in (1, 3)
    )
    assert (one, three) == ([pytest.approx(1.0)], [pytest.approx(3.0)])


def test_random_search_takes_as_long_as_luck_says(simulated):
    drawn = np.linspace(0, 1, 10_001)
    found = contest.Contest(simulated.space, simulated, drawn, (0.95, 0.99)).random_search(4000)
    # Trials until the first of probability p: 1 / p on average, with as large a deviation.
    assert np.mean(found[0]) == pytest.approx(20, rel=4 / math.sqrt(4000))
    assert np.median(found[1]) == pytest.approx(math.log(2) / -math.log(0.99), rel=0.1)


def test_published_regimes_are_tried_first(space):
    asked = []

    def answers(params):
        asked.append(params)
        return dict.fromkeys(KINDS, 0.5)

    spent(contest.mixtune_search, space, answers, (2.0,), limit=10.0)
    assert asked[: len(space.published)] == [space.published_params(name, contest.STRIDE) for name in space.published]


def test_ratios_are_of_medians_and_the_page_says_what_was_measured():
    names = [bench.RANDOM, *bench.SEARCHES]
    found = {name: [[10.0 * (i + 1)] * 3 for _ in bench.TOP] for i, name in enumerate(names)}
    rows = bench.rows_of(found, (bench.MIXTUNE, bench.TO_THE_END, bench.ALONE))
    assert [row["ratio"] for row in rows[:3]] == [pytest.approx(1 / n) for n in (2, 3, 4)]
    assert all(row["at_least"] == 1 for row in rows[3:])
    assert bench.costs([[math.inf, 1.0, math.inf]] * 3)["1 %"]["median"] is None
    made = json.loads((RESULTS / "search_efficiency.json").read_text())
    assert written("search_efficiency") == bench.block(made)
    made = json.loads((RESULTS / "search_alternatives.json").read_text())
    assert written("search_alternatives") == bench.alternatives_block(made)
