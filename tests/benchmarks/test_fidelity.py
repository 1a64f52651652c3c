import pytest

from benchmarks.fidelity import correlations
from benchmarks.recorded import points, space_of
from mixtune.regime import PUBLISHED


def row(whole, compress, truncate):
    return {
        "compress": {"1/3": {"score": compress}, "1/1": {"score": whole}},
        "truncate": {"1/3": {"score": truncate}},
    }


def test_the_correlation_is_that_of_ranks():
    rows = [row(0.1, 1, 9), row(0.2, 2, 4), row(0.3, 50, 1)]
    assert correlations(rows) == {"compress": {"1/3": pytest.approx(1)}, "truncate": {"1/3": pytest.approx(-1)}}
    # 1 - 6 * sum(d^2) / (n (n^2 - 1)) with one swapped pair of three
    rows[0]["compress"]["1/3"]["score"] = 3
    assert correlations(rows)["compress"]["1/3"] == pytest.approx(1 - 6 * 2 / (3 * 8))


def test_the_table_begins_with_the_published_regimes_and_grows_without_changing():
    space = space_of()
    few, more = points(space, 10), points(space, 14)
    assert more[:10] == few
    assert {name for name, _ in few if name} <= set(PUBLISHED)
    assert len({str(p) for _, p in more}) == 14
    assert sum(not name for name, _ in more) == 14 - len(space.published)
