"""The house rule: a floor imports only from floors below it, and runs without the libraries of those above."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Lowest first. A package imports from those before it, never from those after it.
FLOORS = (
    "regime",
    "runtime",
    "data",
    "models",
    "optim",
    "evaluation",
    "tasks",
    "training",
    "search",
    "profiling",
    "execution",
    "tracking",
    "study",
    "deploy",
    "integrations",
)
WITHOUT_STUDY = FLOORS[: FLOORS.index("search")]  # these run where ray, optuna and mlflow are not installed
ONLY = {  # the packages and files that import a library
    "ray": ("mixtune/execution/",),
    "optuna": ("mixtune/search/",),
    "mlflow": ("mixtune/tracking/", "mixtune/deploy/serving.py", "mixtune/deploy/served_model.py"),
}


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(p): p for p in (ROOT / "mixtune").rglob("*.py")}


def imports(path):
    """Yield the modules that a file imports, except what only a type checker reads."""
    tree = ast.parse(path.read_text())
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    unread = {n for guard in guards for n in guard.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node not in unread:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def within(name, package):
    return name == package or name.startswith(package + ".")


def test_every_package_has_a_floor():
    assert {p.parent.name for p in (ROOT / "mixtune").glob("*/__init__.py")} == set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor):
    above = {f"mixtune.{name}" for name in FLOORS[FLOORS.index(floor) + 1 :]} | {"analysis", "benchmarks"}
    if floor in WITHOUT_STUDY:
        above |= {"ray", "optuna", "mlflow"}
    if floor == "regime":
        above |= {"torch", "torchvision", "timm"}
    for path in (ROOT / "mixtune" / floor).rglob("*.py"):
        if path.name == "__main__.py":  # a command: the top floor
            continue
        up = [name for name in imports(path) if any(within(name, bad) for bad in above)]
        assert not up, f"{path} imports {up}"


def test_no_module_leads_back_to_itself():
    below = {name: {n for n in imports(path) if n in MODULES and n != name} for name, path in MODULES.items()}
    TopologicalSorter(below).prepare()  # its error names those in the circle


@pytest.mark.parametrize("library", ONLY)
def test_few_modules_import_each_library_of_the_study(library):
    users = {str(p.relative_to(ROOT)) for p in MODULES.values() if any(within(i, library) for i in imports(p))}
    assert not [user for user in users if not user.startswith(ONLY[library])]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mixtune.regime.files", ["torch", "ray", "optuna", "mlflow"]),
        ("mixtune.train", ["ray", "optuna", "mlflow"]),
    ],
)
def test_lower_floors_run_where_upper_libraries_are_not_installed(module, absent):
    block = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    subprocess.run([sys.executable, "-c", f"import sys; {block}import {module}"], check=True, cwd=ROOT)


COLLECT = ["-q", "-p", "no:cacheprovider", "-m", "gpu", "--collect-only", "tests/training"]


@pytest.mark.parametrize(
    "work",
    [
        "import benchmarks.gpu, benchmarks.gpu_step, benchmarks.packing, benchmarks.warm_start, benchmarks.regimes",
        pytest.param(f"import pytest; sys.exit(pytest.main({COLLECT}))", marks=pytest.mark.slow),
    ],
)
def test_what_a_gpu_machine_runs_needs_no_library_of_the_study(work):
    """The GPU benchmarks, and the tests that ``pytest -m gpu tests/training`` finds."""
    block = "".join(f"sys.modules[{name!r}] = None; " for name in ("ray", "optuna", "mlflow"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {block}{work}"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_stay_small():
    long = {
        str(p.relative_to(ROOT)): n
        for folder in ("mixtune", "analysis", "benchmarks")
        for p in (ROOT / folder).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > 300
    }
    assert not long
