"""docs/architecture.md names files that exist, every package, and where to make the changes that people ask for."""

import re
from pathlib import Path

import pytest

from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PATHS = re.findall(r"`((?:analysis|benchmarks|cluster|docs|mixtune|search_spaces|tests)/[\w./]*)`", TEXT)
ROWS = dict(re.findall(r"^\| (.+?) \| (.+) \|$", TEXT.split("## To add or change")[1], re.MULTILINE))
CHANGES = (
    "a data set", "a network", "an optimiser", "learning-rate schedule", "an augmentation", "a pruner", "a sampler",
    "a growth", "a published regime", "a metric", "a score", "a task", "a figure", "best.yaml", "checkpoint",
    "MLflow tag or metric", "time-out", "flag",
)  # fmt: skip


@pytest.mark.parametrize("path", sorted(set(PATHS)))
def test_every_file_it_names_exists(path):
    assert (ROOT / path).exists()


def test_every_package_is_listed_lowest_first():
    assert re.findall(r"^\| `mixtune/(\w+)/` \|", TEXT, re.MULTILINE) == list(FLOORS)


def test_every_command_is_listed():
    commands = {f"mixtune/{p.name}" for p in (ROOT / "mixtune").glob("*.py") if "__main__" in p.read_text()}
    assert commands | {"mixtune/search/__main__.py"} <= set(PATHS)


@pytest.mark.parametrize("change", CHANGES)
def test_it_says_where_to_make_a_change(change):
    files = [row for name, row in ROWS.items() if change in name]
    assert files
    assert all(re.search(r"`(mixtune|analysis)/", row) for row in files)


def test_it_is_one_page():
    assert len(TEXT.splitlines()) <= 120
