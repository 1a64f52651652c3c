"""The house rule: a floor imports only from floors below it, and runs without the libraries of those above."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "mixtune/regime": {
        "torch",
        "torchvision",
        "timm",
        "ray",
        "optuna",
        "mlflow",
        "mixtune.training",
        "mixtune.study",
        "mixtune.deploy",
        "analysis",
    },
    "mixtune/training": {"ray", "optuna", "mlflow", "mixtune.study", "mixtune.deploy", "analysis"},
    "mixtune/study": {"mixtune.deploy", "analysis"},
    "mixtune/deploy": {"ray", "optuna", "analysis"},
}
ONLY = {
    "ray": {f"mixtune/study/running/{name}.py" for name in ("tuning", "hosting", "ranks", "visible", "watch")},
    "optuna": {
        f"mixtune/study/{name}.py" for name in ("sampling", "space/named", "durable/storage", "durable/journal")
    },
    "mlflow": {
        "mixtune/study/tracking/store.py",
        "mixtune/study/tracking/delivery.py",
        "mixtune/study/tracking/opening.py",
        "mixtune/study/tracking/recorded.py",
        "mixtune/deploy/serving.py",
        "mixtune/deploy/served_model.py",
    },
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def within(name, package):
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_imports_point_down(floor):
    for path in (ROOT / floor).rglob("*.py"):
        up = [i for i in imports(path) for bad in FORBIDDEN[floor] if within(i, bad)]
        assert not up, f"{path.name} imports {up}"


def needed(path, modules):
    """The modules that this one imports; names that only a type checker reads are free."""
    tree = ast.parse(path.read_text())
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    free = {n for guard in guards for n in guard.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and within(node.module, "mixtune") and node not in free:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module for name in names)


def test_packages_have_an_order():
    """No sub-package, nor a module beside one, leads back to itself."""
    modules = {".".join(p.with_suffix("").relative_to(ROOT).parts): p for p in (ROOT / "mixtune").rglob("*.py")}

    def unit(name):
        parts = name.removesuffix(".__init__").split(".")
        return ".".join(parts[:3] if (ROOT / Path(*parts[:3])).is_dir() else parts)

    below = {}
    for name, path in modules.items():
        below.setdefault(unit(name), set()).update(unit(n) for n in needed(path, modules))
    TopologicalSorter({u: others - {u} for u, others in below.items()}).prepare()  # its error names those in the circle


@pytest.mark.parametrize("library", ONLY)
def test_few_modules_know_each_library_of_the_study(library):
    users = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "mixtune").rglob("*.py")
        if any(within(i, library) for i in imports(p))
    }
    assert users <= ONLY[library]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mixtune.regime.files", ["torch", "ray", "optuna", "mlflow"]),
        ("mixtune.train", ["ray", "optuna", "mlflow"]),
        ("mixtune.study.tracking.deliverer", ["torch", "ray", "optuna"]),  # beside every search: small
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
        if (n := len(p.read_text().splitlines())) > 250
    }
    assert not long
