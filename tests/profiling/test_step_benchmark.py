import dataclasses

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.models import registry
from mixtune.profiling.step_benchmark import StepBenchmark, gmacs_table, load_task
from mixtune.regime import BatchShape, published
from mixtune.search.space import Space
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.tape import TapeRecorder


@pytest.fixture
def config(tiny):
    tiny["budget"] = {"epochs": 2, "cost": "seconds"}
    return parse(tiny, Space, "f").training(1)


def test_a_step_of_nine_times_the_pixels_takes_longer(config):
    benchmark = StepBenchmark(config)
    assert benchmark.step_seconds(BatchShape(24, 32)) > 1.5 * benchmark.step_seconds(BatchShape(8, 32)) > 0


def test_captured_steps_of_a_recipe_that_freezes_layers_are_timed_with_all_of_them_free(config):
    recipe = dataclasses.replace(config.recipe, groups=2, frozen=0.5)
    benchmark = StepBenchmark(dataclasses.replace(config, recipe=recipe))
    benchmark.engine = Engine(benchmark.task, benchmark.engine.network, recipe, 0, recorder=TapeRecorder())
    assert benchmark.step_seconds(BatchShape(8, 32)) > 0
    assert all(p.requires_grad for p in benchmark.engine.network.parameters())


def test_gmacs_of_a_step_are_those_of_its_views(config):
    shape = BatchShape(8, 16, 3)
    table = gmacs_table(load_task(config), [shape])
    assert table.unit == "gmacs"
    assert table(shape) == pytest.approx(48 * registry.gmacs("cifar_resnet8", 10, 8))


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
