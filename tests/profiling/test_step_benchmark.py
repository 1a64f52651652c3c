import dataclasses

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.models import registry
from mixtune.profiling import step_benchmark
from mixtune.regime import BatchShape, CostTable, published
from mixtune.search.space import Space
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.tape import TapeRecorder

pytestmark = pytest.mark.usefixtures("cache")

SHAPES = [BatchShape(8, 32), BatchShape(24, 32), BatchShape(4, 128)]


@pytest.fixture
def config(tiny):
    tiny["budget"] = {"epochs": 2, "cost": "seconds"}
    return parse(tiny, Space, "f").training(1)


def test_a_step_of_nine_times_the_pixels_takes_longer(config):
    table = step_benchmark.step_seconds(config, SHAPES)
    assert table.unit == "seconds"
    assert table(BatchShape(24, 32)) > 1.5 * table(BatchShape(8, 32)) > 0


def test_captured_steps_of_a_recipe_that_freezes_layers_are_timed_with_all_of_them_free(config):
    recipe = dataclasses.replace(config.recipe, groups=2, frozen=0.5)
    stand = step_benchmark.StepBenchmark(dataclasses.replace(config, recipe=recipe))
    stand.engine = Engine(stand.task, stand.engine.network, recipe, 0, recorder=TapeRecorder())
    assert stand.seconds(SHAPES[0]) > 0
    assert all(p.requires_grad for p in stand.engine.network.parameters())


def test_shapes_are_timed_once_and_kept_beside_the_study(config, tmp_path):
    path = tmp_path / "costs.yaml"
    first = step_benchmark.step_costs(config, SHAPES[:2], path)
    again = step_benchmark.step_costs(config, SHAPES, path)
    assert {k: again[k] for k in first} == first
    assert set(again) == {"8x32", "24x32", "4x128"}
    assert CostTable.load(path).measured_on == "cifar_resnet8 on digits, cpu, 1 threads"


@pytest.fixture
def clock(monkeypatch):
    """Stands in for steps: each shape that is timed takes longer than all before."""
    timed = []

    class Stand:
        def __init__(self, *_):
            pass

        def seconds(self, shape):
            timed.append(shape)
            return float(len(timed))

    monkeypatch.setattr(step_benchmark, "StepBenchmark", Stand)
    return timed


def test_another_study_of_the_same_makes_equal_schedules_and_a_study_keeps_its_own(config, clock, tmp_path):
    first = step_benchmark.step_costs(config, SHAPES, tmp_path / "a.yaml")
    assert step_benchmark.step_costs(config, SHAPES[::-1], tmp_path / "b.yaml") == first
    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b.yaml").read_text()
    anew = step_benchmark.step_costs(config, SHAPES, tmp_path / "c.yaml", again=True)
    assert (list(first.values()), list(anew.values())) == ([1, 2, 3], [4, 5, 6])
    assert step_benchmark.step_costs(config, SHAPES, tmp_path / "d.yaml") == anew  # the later measurement
    assert (
        step_benchmark.step_costs(config, SHAPES, tmp_path / "a.yaml", again=True) == first
    )  # its trials were given these
    assert len(clock) == 6


def test_other_shapes_recipes_and_what_cannot_be_read_are_timed(config, clock, tmp_path, cache):
    def timed(changed=config, shapes=SHAPES):
        before = len(clock)
        step_benchmark.step_costs(changed, shapes, tmp_path / f"{before}.yaml")
        (tmp_path / f"{before}.yaml").unlink()
        return len(clock) - before

    mixup = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, mixup=0.2))
    assert [timed(), timed(shapes=SHAPES[:2]), timed(mixup), timed(), timed(mixup)] == [3, 2, 3, 0, 0]
    for file in (cache / "mixtune/costs").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert [timed(), timed()] == [3, 0]


def test_times_of_another_place_are_refused(config, tmp_path):
    path = tmp_path / "costs.yaml"
    CostTable("seconds", {BatchShape(8, 32): 1.0}, "resnet50 on imagenet, H200").save(path)
    with pytest.raises(InputError, match="measured on 'resnet50 on imagenet, H200', not on 'cifar_resnet8 on digits"):
        step_benchmark.step_costs(config, SHAPES, path)


def test_gmacs_of_a_step_are_those_of_its_views(tiny, tmp_path):
    tiny["budget"] = {"epochs": 2, "cost": "gmacs"}
    config = parse(tiny, Space, "f").training(1)
    costs = step_benchmark.step_costs(config, [BatchShape(8, 16, 3)], tmp_path / "costs.yaml")
    assert costs == {"8x16x3": pytest.approx(48 * registry.gmacs("cifar_resnet8", 10, 8))}


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_a_run_spends_its_budget_in_measured_cost(tiny, slow):
    """Where steps at 4 px take ``slow`` times as long as pixels say, there are that many fewer of them."""
    tiny["budget"] = {"epochs": 4, "cost": "seconds"}
    space = parse(tiny, Space, "f")
    costs = {"8x32": 1.0, "4x128": slow}
    regime = published("stepwise", space.base, [4, 8], 4)
    schedule = Run.prepare(regime, space.training(1, costs)).schedule
    assert schedule.pixels < 4 * 300 * 64 * 1.05
    small = sum(shape.S == 4 for shape in schedule)
    large = sum(shape.S == 8 for shape in schedule)
    assert small * slow == pytest.approx(large, abs=slow)


def test_a_run_without_its_costs_is_refused(config):
    with pytest.raises(InputError, match="no seconds were measured for a step of 8x32"):
        Run.prepare(published("fixed", BatchShape(8, 32), [8], 4), config)
