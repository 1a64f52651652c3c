"""What people look for in a repository is there, and says the same as the code."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import mixtune
from tests.test_floors import imports

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn", "cv2": "opencv-python-headless", "PIL": "pillow"}


def test_one_version():
    assert PROJECT["version"] == mixtune.__version__ == CITATION["version"]


def test_one_licence_and_one_name_for_the_authors():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert f"Copyright 2026 {PROJECT['authors'][0]['name']}\n" in text
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert PROJECT["authors"] == CITATION["authors"]


def test_the_papers_are_cited():
    numbers = {i["value"] for paper in CITATION["references"] for i in paper["identifiers"]}
    assert numbers == {f"arXiv:{n}" for n in ("1908.08986", "2309.04502", "2110.02178", "1807.11583", "1812.01187")}


def test_the_changelog_has_a_place_for_the_next_change():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_to_a_file(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (ROOT / "mixtune" / "py.typed").exists()


def test_every_page_is_in_the_navigation_of_the_site():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = {page for entry in nav for page in entry.values()}
    hooks = ast.parse((ROOT / "docs" / "hooks.py").read_text())
    (generated,) = (
        ast.literal_eval(n.value) for n in hooks.body if isinstance(n, ast.Assign) and n.targets[0].id == "PAGES"
    )
    assert all((ROOT / source).exists() for source in generated)
    assert listed == {p.name for p in (ROOT / "docs").glob("*.md")} | set(generated.values())


def test_the_tools_of_the_site_are_pinned():
    pins = [line for line in (ROOT / "docs" / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert any(pin.startswith("mkdocs-material==") for pin in pins)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_hosted_ci_calls_what_developers_call():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert "make check test" in commands
    assert {word for command in commands for word in command.split()[1:]} <= targets


def test_every_library_that_is_imported_is_a_dependency_by_name():
    extras = [d for each in PROJECT["optional-dependencies"].values() for d in each]
    named = {re.match(r"[\w.-]+", d).group().lower().replace("_", "-") for d in (*PROJECT["dependencies"], *extras)}
    modules = {m.split(".")[0] for f in ("mixtune", "analysis") for p in (ROOT / f).rglob("*.py") for m in imports(p)}
    libraries = modules - set(sys.stdlib_module_names) - {"mixtune", "analysis", "benchmarks"}
    assert {DISTRIBUTIONS.get(m, m).replace("_", "-") for m in libraries} <= named
