import pytest
from hypothesis import given

from mixtune.regime import BatchShape, Budget, CostTable, Mixture, Regime, Schedule
from mixtune.regime.table import RunTable, to_markdown, to_text
from tests.regime.strategies import regimes

SMALL, LARGE = BatchShape(16, 64, 4), BatchShape(32, 64)
REGIME = Regime.of(LARGE, [Mixture.of([LARGE, SMALL], [0.75, 0.25])], name="mixed", source="A. Nobody 2020, On sizes")


def test_the_table_by_hand():
    table = RunTable.of(REGIME, Budget(10), 6400)  # 1000 steps, all of 64 images and of the same pixels
    assert [(r.shape, r.steps, r.images, r.views) for r in table.rows] == [
        (SMALL, 250, 16_000, 64_000),
        (LARGE, 750, 48_000, 48_000),
    ]
    assert [(r.step_share, r.sample_share, r.cost, r.epochs) for r in table.rows] == [
        (0.25, 0.25, 1.0, 2.5),
        (0.75, 0.75, 1.0, 7.5),
    ]
    assert (table.steps, table.images, table.views, table.epochs) == (1000, 64_000, 112_000, 10)
    assert (table.compute, table.dearest) == (1.0, 1.0)


@given(regimes())
def test_rows_add_up_to_the_schedule(regime):
    budget = Budget(800 * max(s.pixels for s in regime.shapes) / regime.base.pixels * regime.base.B / 2000 + 1)
    table, schedule = RunTable.of(regime, budget, 2000), Schedule.build(regime, budget, 2000, 0)
    assert (table.steps, table.images, table.views) == (len(schedule), schedule.samples, schedule.views)
    assert sum(r.step_share for r in table.rows) == pytest.approx(1)
    assert sum(r.sample_share for r in table.rows) == pytest.approx(1)
    assert sum(r.epochs for r in table.rows) == pytest.approx(table.epochs)
    assert table.compute == pytest.approx(1, abs=0.05)


def test_measured_costs_are_relative_to_the_base_step_even_where_the_base_is_not_trained():
    cost = CostTable("seconds", {LARGE: 0.2, SMALL: 0.3})
    regime = Regime.of(LARGE, [Mixture.of([SMALL])])
    table = RunTable.of(regime, Budget(9, cost="seconds"), 6400, cost)
    assert table.rows[0].cost == pytest.approx(1.5)
    assert table.steps == 600
    assert table.compute == pytest.approx(1)


def test_both_shares_are_in_both_forms():
    regime = Regime.of(
        LARGE, [Mixture.of([BatchShape(16, 256), LARGE], [0.2, 0.8])], name="b", source="A. Nobody 2020, X"
    )
    table = RunTable.of(regime, Budget(10), 6400)
    assert to_text(table).splitlines()[0] == "b: 10 epochs of 6,400 images at 32x64 (equal compute, in pixels)"
    assert to_text(table).splitlines()[4].split() == [
        "1",
        "16x256",
        "20.0",
        "50.0",
        "1.000",
        "200",
        "8.00",
        "51,200",
        "51,200",
    ]
    assert to_text(table).splitlines()[-1].split() == [
        "all",
        "100.0",
        "100.0",
        "1.000",
        "1,000",
        "16.00",
        *["102,400"] * 2,
    ]
    assert to_markdown([table]).splitlines()[-1] == (
        "| b | A. Nobody 2020 | 16x256 20/50 · 32x64 80/50 | 1 | 1,000 | 16.0 | 0.1 M | 0.1 M | 1.00 | 0.62 | 1.00 |"
    )


def test_markdown_has_one_table_per_base_and_budget():
    tables = [RunTable.of(REGIME, Budget(10), 6400), RunTable.of(REGIME, Budget(10, "epochs"), 6400)]
    out = to_markdown([*tables, tables[0]])
    assert out.count("| regime | source |") == 2
    assert out.count("| mixed |") == 3
    assert "(equal epochs):" in out
