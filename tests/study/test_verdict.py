import numpy as np
import pytest

from mixtune.study.statistics import holm
from mixtune.study.verdict import verdict

SEEDS = range(5)


def planted(means, deviation=0.004, seed=0):
    """Scores of five runs of each regime, drawn around a mean that is known."""
    rng = np.random.default_rng(seed)
    return {name: {s: float(rng.normal(mean, deviation)) for s in SEEDS} for name, mean in means.items()}


def test_a_winner_that_is_better_is_called_better_than_what_it_beats():
    found = verdict("searched #14", planted({"fixed": 0.80, "mixsize_d": 0.90, "searched #14": 0.95}))
    assert found.sentence() == (
        "searched #14 is better than fixed and mixsize_d (paired t-test over 5 seeds, 5 % level, p adjusted by Holm's "
        "method for 2 comparisons)"
    )


def test_equal_regimes_are_called_indistinguishable():
    said = verdict("mixsize_d", planted(dict.fromkeys(["fixed", "mixsize_d", "gradual"], 0.9))).sentence()
    assert said.startswith("no regime is distinguishable from mixsize_d at this noise (paired t-test over 5 seeds")


def test_of_several_regimes_each_gets_the_word_that_is_true_of_it():
    means = {"fixed": 0.80, "multiscale": 0.95, "mixsize_d": 0.99, "searched #3": 0.95}
    said = verdict("searched #3", planted(means)).sentence()
    assert said.startswith(
        "searched #3 is better than fixed, and worse than mixsize_d, and not distinguishable from multiscale at this "
        "noise ("
    )


def test_nothing_is_called_indistinguishable_that_was_not_tested():
    once = {"fixed": {0: 0.8}, "searched #1": {0: 0.9}}
    said = verdict("searched #1", once).sentence()
    assert said.startswith("whether searched #1 is better than another regime was not tested: one run each")
    assert "distinguishable" not in said
    alone = verdict("fixed", {"fixed": {0: 0.8, 1: 0.81}}).sentence()
    assert alone.endswith("was not tested: there is nothing to compare it with")
    some = planted({"fixed": 0.9, "searched #1": 0.9}) | {"gradual": {0: 0.9}}
    said = verdict("searched #1", some).sentence()
    assert said.startswith("no regime that was tested is distinguishable from searched #1 at this noise (")
    assert said.endswith("; not tested: gradual")


def test_a_regime_whose_runs_all_failed_is_not_compared():
    scores = planted({"fixed": 0.8, "w": 0.9}) | {"gradual": {}}
    found = verdict("w", scores)
    assert [a.name for a in found.against] == ["fixed"]
    assert found.sentence().startswith("w is better than fixed (")
    assert found.sentence().endswith("; no run was completed of gradual")
    alike = planted({"fixed": 0.9, "w": 0.9}) | {"gradual": {}}
    assert verdict("w", alike).sentence().startswith("no regime that was tested is distinguishable from w")
    assert verdict("gradual", scores).against == ()
    assert verdict("gradual", scores).sentence().endswith("was not tested: no run of it was completed")


def test_p_values_are_adjusted_over_all_comparisons():
    scores = planted({"a": 0.900, "b": 0.902, "c": 0.905, "w": 0.907})
    found = verdict("w", scores)
    assert [a.p for a in found.against] == holm([a.difference.p for a in found.against])
    assert all(a.p >= a.difference.p for a in found.against)


def test_a_false_better_is_as_rare_as_the_level_says():
    """Six regimes that are equal: without the adjustment about one study in four would name one better or worse."""
    names = ["fixed", "mixsize_b", "mixsize_d", "multiscale", "gradual", "stepwise", "searched #9"]
    studies = [verdict("searched #9", planted(dict.fromkeys(names, 0.9), seed=s)) for s in range(400)]
    false = np.mean([any(a.significant for a in v.against) for v in studies])
    unadjusted = np.mean([any(a.difference.significant for a in v.against) for v in studies])
    assert false <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert unadjusted > 0.12  # the test would not notice the adjustment missing otherwise


@pytest.mark.parametrize("gap", [0.01, 0.02])
def test_unequal_seeds_are_compared_by_welch(gap):
    scores = planted({"fixed": 0.9, "w": 0.9 + gap}, deviation=0.002)
    del scores["fixed"][4]
    assert verdict("w", scores).sentence().startswith("w is better than fixed (Welch's t-test, 4 and 5 seeds")
