"""An exported network as an MLflow model whose inference size is a parameter; registered under an alias on request."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mixtune.deploy.network import STATISTICS
from mixtune.errors import InputError
from mixtune.tracking.mlflow_reader import cause, open_tracking

ALIAS = "best"


def save_model(folder: Path, about: Mapping[str, Any]) -> Path:
    """Write FOLDER/mlflow from FOLDER/network.pt2 and FOLDER/deploy.yaml; returns it."""
    import shutil

    import mlflow

    path = folder / "mlflow"
    shutil.rmtree(path, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(path, **_described(folder, about))
    return path


def register(folder: Path, about: Mapping[str, Any], uri: str, name: str) -> str:
    """Log FOLDER/mlflow to a tracking store and register it as NAME with the alias "best"; return its models:/ URI.

    Raise InputError when the store does not take it.
    """
    import mlflow

    client, experiment = open_tracking(uri)
    try:
        mlflow.set_tracking_uri(uri)
        tags = {"mixtune.kind": "model"}
        run = client.create_run(experiment, run_name=f"model {name}", tags=tags).info.run_id
        with mlflow.start_run(run_id=run), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = mlflow.pyfunc.log_model(name="model", registered_model_name=name, **_described(folder, about))
        version = str(model.registered_model_version)
        client.set_registered_model_alias(name, ALIAS, version)
    except Exception as err:
        raise InputError(f"--register {name}: {uri} does not take the model ({cause(err)})") from None
    return f"models:/{name}@{ALIAS}"


def _described(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))])
    outputs = Schema([TensorSpec(np.dtype(np.float32), (-1, int(about["classes"])))])
    params = ParamSchema([ParamSpec("size", DataType.long, int(about["size"]))])
    artifacts = {"program": str(folder / "network.pt2"), "about": str(folder / "deploy.yaml")}
    if (folder / STATISTICS).exists():
        artifacts["statistics"] = str(folder / STATISTICS)
    needed = ["torch", "numpy", "safetensors", "pyyaml"]
    return {
        "python_model": str(Path(__file__).with_name("served_model.py")),
        "artifacts": artifacts,
        "signature": ModelSignature(images, outputs, params),
        "pip_requirements": [f"{name}=={version(name).split('+')[0]}" for name in needed],
        "metadata": {"mixtune": {k: str(v) for k, v in about.items()}, "python": platform.python_version()},
    }
