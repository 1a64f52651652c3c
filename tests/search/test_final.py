import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.search.final import Final, seeds_of
from mixtune.search.space import Space


def test_leaders_get_seeds_that_chose_nothing_and_finalists_those_of_a_run_on_its_own():
    final = Final(replicates=2, seeds=3)
    assert list(seeds_of(final, "leaders", 7)) == [8, 9]
    assert list(seeds_of(final, "final", 7)) == [7, 8, 9]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seeds": 1}, "final: seeds must be at least 2"),
        ({"leaders": 0}, "final: leaders must be at least 1"),
        ({"replicates": -1}, "final: replicates must be at least 0"),
        ({"seed": 3}, "final.seed"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(tiny, given, said):
    with pytest.raises(InputError, match=said):
        parse(tiny | {"final": given}, Space, "f")


def test_a_study_without_a_final_can_be_given_one(tiny):
    assert parse(tiny, Space, "f").digest() == parse(tiny | {"final": {"seeds": 3}}, Space, "f").digest()


def test_its_cost_is_counted_in_runs():
    assert Final(3, 2, 5).cost(published=6, folds=1, trials=18).startswith("final: 18 runs of the leaders with fresh")
    assert "and 35 for the test set" in Final(3, 2, 5).cost(published=6, folds=1, trials=18)
    assert Final(3, 2, 5).cost(published=6, folds=5, trials=18).startswith("final: 90 runs")
