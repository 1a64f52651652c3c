"""The README and docs/ say only what the code does: tables are committed measurements, commands and files exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from benchmarks import digits, evidence, fidelity, libraries, loader_table, speed
from benchmarks.readme import pages, written
from benchmarks.regimes import PLANS
from mixtune import show
from mixtune.cli import Parser
from tests.commands import module_of

ROOT = Path(__file__).parents[1]
PAGES = {p.name: p.read_text() for p in pages()}


def test_the_table_is_the_committed_measurement():
    data = json.loads((ROOT / "docs/digits.json").read_text())
    assert written("digits") == digits.table(data)
    assert len({r["name"] for r in data["regimes"]}) >= 7
    assert all(len(r["runs"]) == data["seeds"] for r in data["regimes"])


def test_the_evidence_is_the_committed_measurements():
    assert written("evidence") == evidence.block()
    for name in PLANS:  # what was not measured is said not to be
        said = f"Not measured yet: {evidence.WHAT[name]}" in written("evidence")
        assert said is not (ROOT / "benchmarks" / "results" / f"{name}.json").exists()


def test_the_loaders_tables_are_the_committed_measurements():
    assert written("loader") == loader_table.table()
    assert written("libraries") == libraries.table()


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_exists(page):
    named = re.findall(r"`((?:analysis|benchmarks|cluster|docs|mixtune|search_spaces|tests)/[\w/.]+)`", PAGES[page])
    assert [path for path in named if not (ROOT / path).exists()] == []


def anchors(text):
    """The anchors of a page's headings, as Markdown renderers make them."""
    return {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^#+ (.+)", text, re.MULTILINE)}


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.read_text()), target


COMMANDS = [
    c
    for text in PAGES.values()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for c in block.splitlines()
    if c.startswith("python")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_flags_that_parse(line, monkeypatch):

    words = shlex.split(line, comments=True)
    module = module_of(words[2])
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
    assert set(re.findall(r"`?make ([a-z-]+)", PAGES["README.md"])) <= targets


@pytest.mark.parametrize("block", speed.BLOCKS)
def test_the_speeds_are_the_committed_measurements(block):
    assert written(block) == speed.table(block)


def test_the_fidelities_are_the_recorded_table():
    assert written("fidelity") == fidelity.table()


@pytest.mark.parametrize("block", speed.BLOCKS)
def test_a_speed_that_was_not_measured_is_not_claimed(block, tmp_path):
    _, _, *rows = [line for line in speed.table(block, tmp_path).splitlines() if line.startswith("|")]
    assert len(rows) == sum(len(goals) for _, goals in speed.BLOCKS[block][0].values())
    assert all("| not measured |" in row for row in rows)


@pytest.mark.parametrize("block", speed.BLOCKS)
def test_the_goals_are_those_that_the_benchmarks_state(block):
    for name, (_, goals) in speed.BLOCKS[block][0].items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if path.exists():
            stated = [(r["at_least"], r["aim"]) for r in json.loads(path.read_text())["rows"]]
            assert stated == [(goal, aim) for _, goal, aim in goals]


def test_the_regimes_are_what_the_command_prints(capsys):
    files = sorted(str(p) for p in (ROOT / "search_spaces" / "regimes").glob("*.yaml"))
    assert show.main(["--markdown", *files]) == 0
    assert written("regimes").strip() == capsys.readouterr().out.strip()
