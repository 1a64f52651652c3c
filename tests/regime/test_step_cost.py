import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.errors import InputError
from mixtune.regime import BatchShape, Budget, Mixture, Regime, Schedule, published
from mixtune.regime.step_cost import CostTable, step_cost
from tests.regime.strategies import shapes

SMALL, LARGE = BatchShape(16, 256), BatchShape(32, 64)
N = 6400
REGIME = Regime.of(LARGE, [Mixture.of([SMALL, LARGE])], name="mixed")


@given(st.dictionaries(shapes, st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_tables_round_trip_to_the_bit(tmp_path_factory, costs):
    path = tmp_path_factory.mktemp("cost") / "seconds.yaml"
    CostTable("seconds", costs, "resnet18 on a test").save(path)
    again = CostTable.load(path, "resnet18 on a test")
    assert (again.unit, dict(again.costs), again.measured_on) == ("seconds", costs, "resnet18 on a test")


def test_gmacs_of_a_step_are_those_of_one_image_times_its_views():
    table = CostTable.from_gmacs({16: 0.5, 32: 2.0}, [BatchShape(16, 3, 4), LARGE])
    assert (table(BatchShape(16, 3, 4)), table(LARGE)) == (6.0, 128.0)
    with pytest.raises(ValueError, match=r"GMACs.*\bS = 48\b"):
        CostTable.from_gmacs({16: 0.5}, [BatchShape(48, 1)])


def test_equal_seconds_when_small_images_are_slower_than_their_pixels():
    # Both shapes have the same pixels; the small one takes 1.5 times as long here, so fewer of its steps are paid for.
    seconds = {SMALL: 0.15, LARGE: 0.1}
    schedule = Schedule.build(REGIME, Budget(10, cost="seconds"), N, 0, cost=seconds)
    assert schedule.spent == pytest.approx(10 * N / 64 * 0.1, rel=0.002)
    assert len(schedule) == pytest.approx(1000 / 1.25, abs=1)
    assert schedule.progress[-1] == pytest.approx(1, abs=0.002)
    assert len(Schedule.build(REGIME, Budget(10), N, 0)) == 1000


def test_a_budget_of_one_hour_takes_one_hour():
    table = CostTable("seconds", {SMALL: 0.15, LARGE: 0.1})
    budget = Budget.of_total(3600, "seconds", LARGE, N, table)
    assert budget.epochs == pytest.approx(3600 / 0.1 * 64 / N)
    assert Schedule.build(REGIME, budget, N, 0, table).spent == pytest.approx(3600, abs=0.15)
    assert budget.scaled(0.5) == Budget(budget.epochs / 2, "compute", "seconds")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.build(REGIME, Budget(1, cost="seconds"), N, 0), "budget.*seconds"),
        (lambda: step_cost(CostTable("gmacs", {}), "seconds"), "seconds.*gmacs"),
        (lambda: CostTable("seconds", {SMALL: 1.0})(LARGE), "32x64.*seconds.*16x256"),
        (lambda: CostTable("seconds", {SMALL: 0.0}), r"16x256.*seconds.*0\.0"),
        (lambda: Budget(3, "epochs", "seconds"), "epochs.*seconds.*cost"),
    ],
)
def test_what_cannot_be_costed_is_refused_with_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_measured_on_something_else_is_refused(tmp_path):
    CostTable("seconds", {SMALL: 1.0}, "a laptop").save(tmp_path / "t.yaml")
    with pytest.raises(InputError, match=r"t\.yaml.*a laptop.*a server"):
        CostTable.load(tmp_path / "t.yaml", "a server")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit: hours\nsteps: []", "unit.*'pixels'.*'gmacs'.*'seconds'.*'hours'"),
        ("unit: seconds\nsteps: [{S: 16, B: 2, D: 1, cost: -1}]", r"steps.*16x2\b.*-1"),
        ("unit: seconds\nsteps: [{S: 0, B: 2, D: 1, cost: 1}]", r"steps\.0.*\bS\b.*\b0\b"),
    ],
)
def test_a_malformed_table_is_one_sentence_with_the_file(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        CostTable.load(tmp_path / "t.yaml")
    assert "t.yaml" in str(error.value)


def test_an_amount_is_spent_by_every_regime():
    cost = {BatchShape(8, 64): 0.5, BatchShape(16, 16): 2.0}
    budget = Budget(amount=600.0, cost="seconds")
    for name in ("fixed", "stepwise"):
        regime = published(name, BatchShape(16, 16), [8, 16], 4)
        schedule = Schedule.build(regime, budget, 1000, 0, cost)
        assert sum(cost[shape] for shape in schedule) == pytest.approx(600, abs=2)
    assert budget.scaled(0.5).amount == 300
    assert str(budget) == "600 seconds"


@pytest.mark.parametrize(
    "bad", [dict(), dict(amount=0.0), dict(epochs=1.0, amount=5.0), dict(amount=5.0, spend="epochs")]
)
def test_a_budget_is_epochs_or_an_amount(bad):
    with pytest.raises(ValueError, match="epochs"):
        Budget(**bad)
