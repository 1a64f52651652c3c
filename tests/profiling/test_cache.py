"""What is measured on a machine is measured once, for whatever study asks for the same; and again in doubt."""

import dataclasses
import os

import pytest
import yaml

from mixtune.config import parse
from mixtune.profiling import cache as measurements
from mixtune.profiling import resource_profile
from mixtune.profiling.resource_profile import Footprint, measured
from mixtune.regime import BatchShape
from mixtune.search.space import Space
from tests.profiling.test_resource_profile import MIB, Stand, device

pytestmark = pytest.mark.usefixtures("cache")

__all__ = ["device"]  # a fixture
SHAPES = [BatchShape(8, B) for B in (16, 32, 64)]


@pytest.fixture
def config(tiny):
    return parse(tiny, Space, "f").training(1)


@pytest.fixture
def tried(config, device, tmp_path):
    """The number of shapes that a study of its own has to try."""
    studies = []

    def count(changed=config, shapes=SHAPES, **flags):
        Stand.tried = []
        studies.append(tmp_path / f"{len(studies)}.yaml")
        measured(changed, shapes, studies[-1], **flags)
        return len(Stand.tried)

    return count


def test_another_study_asks_and_nothing_is_tried(tried):
    assert [tried(), tried(), tried(again=True), tried()] == [3, 0, 3, 0]


@pytest.mark.parametrize(
    "section",
    [
        ("task", {"network": "cifar_resnet14"}),
        ("task", {"samples": 300}),
        ("task", {"classes": 5}),
        ("recipe", {"mixup": 0.2}),
        ("evaluate", {"sizes": (8,)}),
    ],
)
def test_another_network_recipe_or_task_is_measured(tried, config, section):
    name, change = section
    changed = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **change)})
    assert [tried(), tried(changed), tried(), tried(changed)] == [3, 3, 0, 0]


def test_other_shapes_versions_and_machines_are_measured_and_do_not_displace_each_other(tried, monkeypatch):
    assert [tried(), tried(shapes=SHAPES[:2]), tried()] == [3, 2, 0]
    versions = measurements.environment(measurements.PACKAGES)
    assert {"torch", "timm", "mixtune", "cpu", "gpu", "system"} <= set(versions)
    monkeypatch.setattr(measurements, "environment", lambda _: versions | {"torch": "9.9"})
    assert tried() == 3
    monkeypatch.setattr(measurements.platform, "node", lambda: "elsewhere")
    assert [tried(), tried()] == [3, 0]


def test_memory_is_that_of_now(tried, config, tmp_path, monkeypatch):
    assert tried() == 3
    monkeypatch.setattr(resource_profile, "room", lambda _: 30.0 * MIB)
    found = measured(config, SHAPES, tmp_path / "now.yaml")
    assert (found.room, len(Stand.tried)) == (30 * MIB, 3)  # those of the first


def test_what_did_not_fit_is_tried_where_there_is_more_memory(tried, monkeypatch):
    shapes = [*SHAPES, BatchShape(8, 160)]  # takes 50 MiB
    assert [tried(shapes=shapes), tried(shapes=shapes)] == [3, 0]  # there are 40, and the line says so
    monkeypatch.setattr(resource_profile, "room", lambda _: 45.0 * MIB)
    assert tried(shapes=shapes) == 0
    monkeypatch.setattr(Stand, "has", 60 * MIB)
    monkeypatch.setattr(resource_profile, "room", lambda _: 60.0 * MIB)
    assert [tried(shapes=shapes), tried(shapes=shapes)] == [4, 0]


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
def test_a_damaged_file_is_measured_and_written_anew(tried, cache, damage):
    assert tried() == 3
    (file,) = (cache / "mixtune/footprints").iterdir()
    whole = file.read_text()
    damage(file)
    assert [tried(), tried()] == [3, 0]
    now, before = (parse(yaml.safe_load(text), Footprint, "f") for text in (file.read_text(), whole))
    assert (now.key, now.steps) == (before.key, before.steps)


def test_a_cache_that_cannot_be_written_or_is_no_folder_only_costs_time(tried, cache, monkeypatch, caplog):
    (cache / "mixtune").write_text("a file")
    assert [tried(), tried()] == [3, 3]
    assert "could not be kept for other studies" in caplog.text
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(measurements.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert [tried(), tried()] == [3, 3]


def test_the_folder_is_where_the_desktop_specification_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert measurements.folder() == tmp_path / "mixtune"
    for invalid in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", invalid)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert measurements.folder() == tmp_path / ".cache/mixtune"


def test_a_reader_finds_the_whole_file_or_none(tmp_path, monkeypatch):
    """The file is put in its place by a rename: a kill before it leaves the earlier one."""
    file = tmp_path / "footprints/a.yaml"
    measurements.keep(file, "first: 1\n")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        measurements.keep(file, "second: 2\n")
    assert file.read_text() == "first: 1\n"
