"""Checkpoint: all that a run needs to go on as if it had not stopped, in one file that is replaced atomically.

All randomness is keyed by (seed, step), so the number of steps is the state of every random generator.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import InputError
from mixtune.files import atomic_write

CHECKPOINT_VERSION = 1


def non_default_fields(value: Any) -> Any:
    """Return a dataclass as plain values, without the fields that have their default values.

    A setting that a later version adds then does not change the identity of an old run, as long as it is off.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    values = {}
    for f in fields(value):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if (field_value := getattr(value, f.name)) != default:
            values[f.name] = non_default_fields(field_value)
    return values


@dataclass
class Checkpoint:
    """One run's checkpoint file, written at every report and, in between, every ``every`` seconds.

    ``network`` and ``run`` identify the run: a file of another one is refused.
    """

    path: Path
    network: str
    run: str
    every: float = 300.0
    _written: float = field(default_factory=time.monotonic)

    @property
    def due(self) -> bool:
        """Whether ``every`` seconds have passed since it was written."""
        return time.monotonic() - self._written >= self.every

    def save(self, state: Mapping[str, Any]) -> None:
        """Write tensors and plain values. Raise InputError where that fails; the earlier file is intact then."""
        buffer = io.BytesIO()
        torch.save({"version": CHECKPOINT_VERSION, "network": self.network, "run": self.run, **state}, buffer)
        atomic_write(self.path, buffer.getvalue())
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return what was saved, on the CPU; None without a file. Nothing in the file can execute.

        Raise InputError for a file that is damaged, of another network or of another run.
        """
        if not self.path.exists():
            return None
        state = read_checkpoint(self.path)
        if state["network"] != self.network:
            raise InputError(
                f"{self.path} is a checkpoint of {state['network']}, not of {self.network}; name another folder"
            )
        if state["run"] != self.run:
            raise InputError(
                f"{self.path} belongs to a run with another regime, recipe, task or seed; "
                "name another folder, or delete the file to start over"
            )
        return state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file. Raise InputError when it is missing or damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        whole = isinstance(state, dict) and state.get("version") == CHECKPOINT_VERSION
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception:  # a truncated file fails in many ways, inside torch, zip and pickle
        whole = False
    if not whole:
        raise InputError(f"{path} is no whole mixtune checkpoint (truncated or foreign); delete it to start over")
    return dict(state)
