from mixtune.search.trial_result import TrialResult
from mixtune.study.leaders import finalists, leaders


def outcome(number, score, published="", state="COMPLETE"):
    return TrialResult(number, state, score, {}, published, "", None)


SEARCH = [
    outcome(0, 0.80, "fixed"),
    outcome(1, 0.90, "gradual"),
    outcome(2, 0.95),
    outcome(3, 0.94),
    outcome(4, 0.93),
    outcome(5, 0.99, state="PRUNED"),
    outcome(6, None, state="FAIL"),
]


def test_leaders_are_the_best_searched_and_all_published_regimes_of_what_was_completed():
    assert [o.number for o in leaders(SEARCH, 2)[0]] == [2, 3, 1, 0]


def test_with_several_objectives_leaders_are_spread_over_the_front_and_its_best_score_is_among_them():
    search = [outcome(0, 0.80, "fixed"), *(outcome(n, 0.90 - n / 100) for n in range(1, 6)), outcome(6, 0.99)]
    front = [6, 0, 5, 2, 4, 3]  # 1 is beaten
    led, how = leaders(search, 3, front)
    assert [o.number for o in led] == [6, 2, 5, 0]
    assert how == (
        "3 of 5 searched regimes on the Pareto front, the best score and then those that stand apart (NSGA-II's "
        "crowding distance)"
    )
    led, how = leaders(search, 9, front)
    assert [o.number for o in led] == [6, 2, 3, 4, 5, 0]
    assert how == "5 of 5 searched regimes on the Pareto front"
    led, how = leaders(search, 1, [0])
    assert [o.number for o in led] == [6, 0]
    assert how == "no searched regime is on the Pareto front, so those with the best scores"
    assert leaders(SEARCH, 2)[1] == ""


def test_a_published_regime_that_the_search_pruned_gets_fresh_seeds_too_and_is_judged_by_them():
    led, _ = leaders([outcome(7, 0.99, "stepwise", "PRUNED"), *SEARCH], 1)
    assert [o.number for o in led] == [2, 1, 0, 7]
    assert [o.number for o in finalists(led, {2: {1: 0.8}, 1: {1: 0.7}, 0: {1: 0.6}, 7: {1: 0.9}})] == [7, 2, 1, 0]


def test_fresh_seeds_and_not_the_luckiest_run_choose_the_winner():
    led, _ = leaders(SEARCH, 3)
    means = {2: 0.85, 3: 0.92, 4: 0.91, 1: 0.90, 0: 0.80}
    replicated = {n: {1: m - 0.01, 2: m + 0.01} for n, m in means.items()}
    assert [o.number for o in finalists(led, replicated)] == [3, 1, 0]
    assert [o.number for o in finalists(led, {})] == [2, 1, 0]


def test_a_published_regime_may_win_and_the_best_searched_one_is_tested_beside_it():
    led, _ = leaders(SEARCH, 1)
    assert [o.number for o in finalists(led, {2: {1: 0.8}, 1: {1: 0.9}, 0: {1: 0.7}})] == [1, 2, 0]


def test_a_regime_whose_fresh_runs_failed_does_not_win():
    led, _ = leaders(SEARCH, 2)
    replicated = {3: {1: 0.85}, 1: {1: 0.84}, 0: {1: 0.7}}
    assert finalists(led, replicated)[0].number == 3
