"""The README says only what the code does: its table is the committed measurement, its commands and files exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import digits, evidence, fidelity, speed
from benchmarks.readme import replaced
from benchmarks.regimes import PLANS
from mixtune.cli import Parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_table_is_the_committed_measurement():
    data = json.loads((ROOT / "docs/digits.json").read_text())
    assert replaced(README, "digits", digits.table(data)) == README
    assert len({r["name"] for r in data["regimes"]}) >= 7
    assert all(len(r["runs"]) == data["seeds"] for r in data["regimes"])


def test_the_evidence_is_the_committed_measurements():
    assert replaced(README, "evidence", evidence.block()) == README
    for name in PLANS:  # what was not measured is said not to be
        said = f"Not measured yet: {evidence.WHAT[name]}" in README
        assert said is not (ROOT / "benchmarks" / "results" / f"{name}.json").exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\((docs/[^)]+)\)|`((?:search_spaces|mixtune|docs)/[\w/.]+)`", README)))
)
def test_every_file_it_names_exists(path):
    assert (ROOT / (path[0] or path[1])).exists()


COMMANDS = [
    c
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for c in block.splitlines()
    if c.startswith("python")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_flags_that_parse(line, monkeypatch):
    import importlib

    words = shlex.split(line, comments=True)
    module = importlib.import_module(words[2])
    seen = []

    def record(self, args=None, namespace=None):
        seen.append(super(Parser, self).parse_args(args, namespace))
        raise KeyboardInterrupt

    monkeypatch.setattr(Parser, "parse_args", record)
    with pytest.raises(KeyboardInterrupt):
        module.main(words[3:])
    assert seen


def test_make_targets_it_names_exist():
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_the_speeds_are_the_committed_measurements():
    assert replaced(README, "speed", speed.table()) == README


def test_the_fidelities_are_the_recorded_table():
    assert replaced(README, "fidelity", fidelity.table()) == README


def test_a_speed_that_was_not_measured_is_not_claimed(tmp_path):
    empty = speed.table(tmp_path)
    rows = [line for line in empty.splitlines() if line.startswith(("| CPU", "| GPU"))]
    assert len(rows) == sum(len(goals) for _, goals in speed.GOALS.values())
    assert all("| not measured |" in row for row in rows)


def test_the_goals_are_those_that_the_benchmarks_state():
    for name, (_, goals) in speed.GOALS.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.exists():
            stated = [(r["at_least"], r["aim"]) for r in json.loads(path.read_text())["rows"]]
            assert stated == [(goal, aim) for _, goal, aim in goals]
