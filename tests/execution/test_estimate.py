"""What a search does before its first trial; steps are stand-ins, and Ray is not started."""

import time

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.execution import estimate, ray_tune
from mixtune.profiling import forecast, messages, resource_profile
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.forecast import Plan
from mixtune.search import __main__ as search_command
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from tests.conftest import TINY
from tests.profiling.test_resource_profile import MIB, Stand, device

pytestmark = pytest.mark.usefixtures("cache")

__all__ = ["device"]  # a fixture
SLOTS = Concurrency(1, 0, 2)
LONG = TINY | {"budget": {"epochs": 40}}  # whole steps are near enough to it for every candidate


@pytest.fixture
def alone(device, monkeypatch):
    """This machine, with a stand-in for what is measured on it."""
    monkeypatch.setattr(ray_tune, "connect", lambda *_: None)
    monkeypatch.setattr(ray_tune, "disconnect", lambda: None)
    monkeypatch.setattr(ray_tune, "nodes", lambda: [(2.0, 0.0)])
    monkeypatch.setattr(Stand, "has", 4096 * MIB)


def test_the_plan_is_told_and_kept_and_nothing_is_measured_twice(alone, tmp_path):
    space, said = parse(LONG, Space, "f"), []
    first = estimate.ready(space, SLOTS, StudyPaths(tmp_path), 300, space.trials, said.append)
    assert [line.split()[0] for line in said] == ["measuring", "measured", "memory", "step", "plan", "hours", "disk"]
    tried = len(Stand.tried)
    assert tried > 3
    said.clear()
    assert estimate.ready(space, SLOTS, StudyPaths(tmp_path), 300, space.trials, said.append) == first
    assert said[0].startswith("measured")
    assert len(Stand.tried) == tried
    assert (tmp_path / estimate.MEASURED).exists()
    hours = space.trials  # of each trial, one
    assert "% against the plan" in estimate.compared(tmp_path, hours)
    assert estimate.compared(tmp_path, hours).startswith("the trials took 4 core-hours in 2 h 00 min, +")
    assert estimate.compared(tmp_path / "nothing", hours) == ""


@pytest.mark.parametrize(
    ("device", "hours", "workers", "more", "said"),
    [
        ("cuda", 0.08, 1, {}, True),
        ("cuda", 0.07, 1, {}, False),  # 252 s: too short to earn it back
        ("cpu", 5.0, 1, {}, False),  # nothing is compiled there
        ("cuda", 5.0, 1, {"task": {"dataset": "digits"}}, False),  # its steps are captured
        ("cuda", 5.0, 2, {"task": {"dataset": "digits"}}, True),
        ("cuda", 5.0, 2, {"recipe": {"sync_bn": True}}, False),
        ("cuda", 5.0, 1, {"recipe": {"sync_bn": True}}, True),  # alone, there is nothing to agree on
    ],
)
def test_hours_of_steps_that_will_be_compiled_are_said_to_be_of_others(device, hours, workers, more, said):
    task = TINY["task"] | {"dataset": "folder", "data": "somewhere"} | more.get("task", {})
    training = parse(TINY | more | {"task": task}, Space, "f").training(1)
    plan = Plan(4, Concurrency(1, 1, 2, workers), 4 * hours, None, hours, 0.99, 0.0, 4)
    assert ("one by one" in messages.uncompiled(training, device, plan)) == said


def test_a_second_study_with_a_budget_in_seconds_measures_nothing_and_is_given_the_same(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tune, "call", lambda function, slots, *arguments: function(*arguments))
    space, found = parse(LONG | {"budget": {"epochs": 40, "cost": "seconds"}}, Space, "f"), []
    for study, tried in (("a", True), ("b", False), ("a", False)):
        Stand.tried = []
        found.append(estimate.ready(space, SLOTS, StudyPaths(tmp_path / study), 300, 4, lambda _: None).training.costs)
        assert bool(Stand.tried) == tried
    assert found[0] == found[1] == found[2]
    Stand.tried = []
    estimate.ready(space, SLOTS, StudyPaths(tmp_path / "c"), 300, 4, lambda _: None, again=True)
    assert set(space.shapes()) <= set(Stand.tried)


def test_another_base_is_measured_too(alone, tmp_path):
    for B in (32, 64):
        space = parse(LONG | {"base": {"S": 8, "B": B}}, Space, "f")
        Stand.tried = []
        estimate.ready(space, SLOTS, StudyPaths(tmp_path), 300, 4, lambda _: None)
        assert space.base in Stand.tried


def test_a_study_that_does_not_fit_is_refused_before_it_is_begun(alone, tmp_path, space_file, monkeypatch):
    monkeypatch.setattr(Stand, "has", 17 * MIB)  # a step of 8x32 takes 18
    with pytest.raises(InputError, match=r"base: at 8 px a batch of 32 needs about .* MiB .*: base\.B \d+ would fit"):
        search_command.main(["--space", str(space_file(TINY)), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"lock", estimate.MEASURED}


def test_a_dry_run_measures_when_asked_and_leaves_nothing(alone, tmp_path, space_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = str(space_file(TINY))
    assert search_command.main(["--space", file, "--dry-run"]) == 0
    assert "--measure does that here" in capsys.readouterr().out
    assert Stand.tried == []
    assert search_command.main(["--space", file, "--dry-run", "--measure"]) == 0
    said = capsys.readouterr().out
    assert "core-hours" in said
    tried = len(Stand.tried)
    assert tried
    assert [p.name for p in tmp_path.iterdir()] == ["space.yaml"]
    assert search_command.main(["--space", file, "--dry-run", "--measure"]) == 0  # as asked, anew
    assert len(Stand.tried) == 2 * tried


def test_the_next_study_on_this_machine_is_spared_the_measurement(alone, tmp_path, cache):
    space, said = parse(LONG, Space, "f"), []
    first = estimate.ready(space, SLOTS, StudyPaths(tmp_path / "a"), 300, 4, said.append)
    tried = len(Stand.tried)
    second = estimate.ready(space, SLOTS, StudyPaths(tmp_path / "b"), 300, 4, said.append)
    assert second == first
    assert len(Stand.tried) == tried
    assert sum(line.endswith(time.strftime(", on %Y-%m-%d")) for line in said) == 2
    estimate.ready(space, SLOTS, StudyPaths(tmp_path / "b"), 300, 4, said.append, again=True)
    assert len(Stand.tried) == 2 * tried
    (file,) = (cache / "mixtune/footprints").iterdir()
    assert file.read_text() == (tmp_path / "b" / estimate.MEASURED).read_text()


def test_ranks_begin_anew_after_each_shortage_until_what_is_left_fits(alone, tmp_path, monkeypatch):
    space, asked = parse(LONG, Space, "f"), []
    shapes = forecast.probes(space)[::-1]

    def call(function, slots, *arguments):
        asked.append(arguments[-1])
        if len(asked) < 3:
            raise resource_profile.TooLargeError("short", shapes[len(asked) - 1])
        return "found"

    monkeypatch.setattr(ray_tune, "call", call)
    found = estimate._measured(
        space, space.training(1), Concurrency(1, 0, 1, 2), StudyPaths(tmp_path), tmp_path / "f", False
    )
    assert (found, asked) == ("found", [None, *shapes[:2]])
