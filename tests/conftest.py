import copy
import os

import pytest
import yaml

# Threads that wait for each other sleep instead of spinning: where cores are shared, that is a tenth of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A study of seconds: real images, a real network, a tiny budget.
TINY = {
    "study": "tiny",
    "task": {"dataset": "digits", "network": "cifar_resnet8", "validation": 0.25, "samples": 400},
    "base": {"S": 8, "B": 32},
    "budget": {"epochs": 1},
    "evaluate": {"sizes": [8, 12], "reports": 2},
    "search": {"sizes": [4, 8, 12]},
    "published": ["fixed", "multiscale"],
    "fidelity": {"kind": "truncate"},  # one short run: a ninth of an epoch would be less than a step
    "trials": 4,
}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """Puts an empty MLflow database into a folder: a copy, because making one takes seconds."""
    import shutil

    from mixtune.search.paths import default_uri

    made = tmp_path_factory.mktemp("store")
    from mlflow import MlflowClient

    MlflowClient(default_uri(made)).search_experiments(max_results=1)

    def into(folder):
        shutil.copy(made / "mlflow.db", folder / "mlflow.db")
        return default_uri(folder)

    return into


@pytest.fixture
def tiny():
    """The settings of a tiny study, to be changed freely."""
    return copy.deepcopy(TINY)


@pytest.fixture
def space_file(tmp_path):
    """Writes settings to a YAML file and returns its path."""

    def write(settings, name="space.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(settings, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A run of seconds, as mixtune.train writes it."""
    from mixtune import published, train
    from mixtune.config import parse, to_plain
    from mixtune.regime.files import save_regime
    from mixtune.search.space import Space

    folder = tmp_path_factory.mktemp("run")
    space = parse(TINY, Space, "f")
    save_regime(
        folder / "fixed.yaml", published("fixed", space.base, space.search.sizes, 4), to_plain(space.training(1))
    )
    train.main(["--regime", str(folder / "fixed.yaml"), "--out", str(folder / "out")])
    return folder / "out"
