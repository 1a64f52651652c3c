"""What a search does before its first trial; steps are stand-ins, and Ray is not started."""

from dataclasses import replace

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.execution import estimate, ray_tune
from mixtune.execution.estimate import StudyToRun, prepare_trials
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.messages import compare_with_forecast
from mixtune.regime import BatchShape, CostTable
from mixtune.search import __main__ as search_command
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from tests.conftest import TINY
from tests.profiling.test_resource_profile import MIB, FakeDevice, device

__all__ = ["device"]  # a fixture
ALONE = Concurrency(1, 0, 2)
LONG = TINY | {"budget": {"epochs": 40}}  # whole steps are near enough to it for every candidate
SECONDS = LONG | {"budget": {"epochs": 40, "cost": "seconds"}}


@pytest.fixture
def alone(device, monkeypatch):
    """This machine, with a stand-in for what is measured on it."""
    monkeypatch.setattr(ray_tune, "connect", lambda *_: None)
    monkeypatch.setattr(ray_tune, "disconnect", lambda: None)
    monkeypatch.setattr(ray_tune, "nodes", lambda: [(2.0, 0.0)])
    monkeypatch.setattr(FakeDevice, "memory", 4096 * MIB)


@pytest.fixture
def prepare(alone, tmp_path):
    """Prepare a study in a folder: what came of it, the lines that were written, and the shapes that were tried."""

    def prepared(settings=LONG, concurrency=ALONE, **flags):
        FakeDevice.tried = []
        lines = []
        space = parse(settings, Space, "f")
        study = StudyToRun(space, StudyPaths(tmp_path / "study"), 300)
        return prepare_trials(study, concurrency, space.trials, lines.append, **flags), lines, FakeDevice.tried

    return prepared


def test_the_plan_is_told_and_kept_and_nothing_is_measured_twice(prepare, tmp_path):
    first, lines, tried = prepare()
    assert [x.split()[0] for x in lines] == ["measuring", "measured", "memory", "step", "plan", "hours", "disk"]
    assert len(tried) > 3
    assert prepare() == (first, lines[1:], [])
    assert prepare(remeasure=True)[2] == tried
    path = tmp_path / "study" / estimate.FORECAST
    hours = 4  # of four trials, one each
    assert compare_with_forecast(path, hours).startswith("the trials took 4 core-hours in 2 h 00 min, +")
    assert compare_with_forecast(tmp_path / "nothing", hours) == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"\x00\xff\x80 no text"),
        lambda path: path.write_text("- not\n- a mapping"),
        lambda path: path.write_text("!!python/object/apply:os.system ['touch /tmp/executed']"),
        lambda path: path.write_text(path.read_text() + "unknown: 1\n"),
        lambda path: path.write_text(path.read_text().replace("setup:", "setup: half a")),
        lambda path: path.write_text(""),
    ],
)
def test_a_damaged_profile_is_measured_and_written_anew(prepare, tmp_path, damage):
    path = tmp_path / "study" / estimate.PROFILE
    first = prepare()[2]
    damage(path)
    assert prepare()[2] == first
    assert prepare()[2] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"base": {"S": 8, "B": 64}},
        {"task": TINY["task"] | {"network": "cifar_resnet14"}},
        {"task": TINY["task"] | {"samples": 300}},
        {"recipe": {"mixup": 0.2}},
        {"evaluate": {"sizes": [8], "reports": 2}},
    ],
)
def test_another_base_network_task_or_recipe_is_measured(prepare, changes):
    prepare()
    _, _, tried = prepare(LONG | changes)
    assert parse(LONG | changes, Space, "f").base in tried


def test_another_machine_or_version_is_measured(prepare, monkeypatch):
    first = prepare()[2]
    monkeypatch.setattr(estimate.platform, "node", lambda: "elsewhere")
    assert (prepare()[2], prepare()[2]) == (first, [])
    monkeypatch.setattr(estimate.torch, "__version__", "9.9")
    assert prepare()[2] == first


def test_with_a_budget_in_seconds_every_shape_is_timed_and_a_study_keeps_its_costs(prepare, tmp_path, monkeypatch):
    space, path = parse(SECONDS, Space, "f"), tmp_path / "study" / estimate.COSTS
    setup, _, tried = prepare(SECONDS)
    assert set(tried) == set(space.shapes())
    assert setup.training.costs == {str(s): pytest.approx(1e-9 * s.pixels) for s in space.shapes()}
    table = CostTable.load(path)
    assert table.measured_on == "cifar_resnet8 on digits, cpu, 1 threads"
    first, *others = sorted(table.costs)
    replace(table, costs={first: 7.0}).save(path)  # its trials were given this, and the rest is measured
    again, _, tried = prepare(SECONDS, remeasure=True)
    assert set(tried) == set(space.shapes())
    assert again.training.costs == setup.training.costs | {str(first): 7.0}
    assert {str(s) for s in others} < again.training.costs.keys()
    CostTable("seconds", {BatchShape(8, 32): 1.0}, "resnet50 on imagenet, H200").save(path)
    with pytest.raises(InputError, match=r"costs\.yaml: measured on 'resnet50 on imagenet, H200'"):
        prepare(SECONDS)


def test_a_budget_in_gmacs_is_counted_for_every_shape(prepare):
    setup, _, _ = prepare(LONG | {"budget": {"epochs": 40, "cost": "gmacs"}})
    costs, base = setup.training.costs, setup.training.cost(BatchShape(8, 32))
    assert costs.keys() == {str(s) for s in parse(LONG, Space, "f").shapes()}
    assert setup.training.cost(BatchShape(4, 128)) == pytest.approx(base, rel=0.1)


def test_fewer_trials_run_at_once_where_memory_holds_fewer(prepare, monkeypatch):
    monkeypatch.setattr(FakeDevice, "memory", 30 * MIB)
    setup, lines, _ = prepare()
    assert setup.concurrency.at_once == 1
    assert any(line.startswith("memory holds 1 trials at once") for line in lines)


def test_a_study_that_does_not_fit_is_refused_before_it_is_begun(alone, tmp_path, space_file, monkeypatch):
    monkeypatch.setattr(FakeDevice, "memory", 17 * MIB)  # a step of 8x32 takes 18
    with pytest.raises(InputError, match=r"base: .*8 px .* 32 .*base\.B \d+"):
        search_command.main(["--space", str(space_file(TINY)), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"lock", estimate.PROFILE}


def test_a_dry_run_measures_when_asked_and_leaves_nothing(alone, tmp_path, space_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(space_file(TINY))
    assert search_command.main(["--space", file, "--dry-run"]) == 0
    assert "--measure does that here" in capsys.readouterr().out
    assert FakeDevice.tried == []
    assert search_command.main(["--space", file, "--dry-run", "--measure"]) == 0
    assert "core-hours" in capsys.readouterr().out
    tried = len(FakeDevice.tried)
    assert tried
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]
    assert search_command.main(["--space", file, "--dry-run", "--measure"]) == 0  # as asked, anew
    assert len(FakeDevice.tried) == 2 * tried


def test_how_many_trials_share_a_gpu_is_measured_once(prepare, monkeypatch):
    asked = []

    def call(function, concurrency, training, *arguments):
        asked.append(function.__name__)
        cpu = replace(training, device="cpu")
        return {1: 100.0, 2: 150.0} if function.__name__ == "measure_packing" else function(cpu, *arguments)

    monkeypatch.setattr(ray_tune, "call", call)
    monkeypatch.setattr(ray_tune, "cluster", lambda: (2.0, 1.0))
    monkeypatch.setattr(ray_tune, "nodes", lambda: [(2.0, 1.0)])
    setup, _, _ = prepare(concurrency=Concurrency(1, 1, 1))
    assert (setup.concurrency.pack, setup.concurrency.gain, setup.gpus) == (2, 1.5, 1)
    assert asked == ["measure_profile", "measure_packing"]
    assert prepare(concurrency=Concurrency(1, 1, 1))[0] == setup
    assert len(asked) == 2
