"""Prepared folder: what the images of a folder were prepared for (``mixtune.prepare``), and whether all of them are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mixtune.errors import InputError

STATE_FILE = "prepared.json"
KEPT_SHARE = 0.875  # of the shorter side an evaluation keeps S pixels: crops.CROP_RATIO, without importing torch


@dataclass(frozen=True)
class PrepareTarget:
    """How images are encoded.

    size: the largest S that will be trained or evaluated; quality: of JPEGs, from 1 to 95; archives: whether images are
    written into archives instead of as files of their own.
    """

    size: int
    format: Literal["jpeg", "ppm"] = "jpeg"
    quality: int = 90
    archives: bool = False

    @property
    def side(self) -> int:
        """Pixels of the shorter side, at most."""
        return math.ceil(self.size / KEPT_SHARE)


def open_prepared_folder(out: Path, target: PrepareTarget) -> None:
    """Make the folder, or go on with it. Raises InputError when it holds something else, or was begun otherwise."""
    settings = asdict(target)
    state = read_state(out)
    if state is None and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: holds other files; name an empty or a new folder")
    if state and {"archives": False} | {k: state[k] for k in settings if k in state} != settings:
        raise InputError(f"--out {out}: was prepared with {state}; name another folder, or ask for the same")
    out.mkdir(parents=True, exist_ok=True)
    write_state(out, settings | {"complete": False})


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the target of a prepared folder and whether it is complete; None for a folder that was not prepared."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        int(state["size"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{folder / STATE_FILE} is damaged; delete the folder and prepare it again") from None
    return state


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Replace the state as a whole, or not at all."""
    partial = out / f".{STATE_FILE}.part"
    with partial.open("w") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / STATE_FILE)


def check_prepared_size(prepared_for: int | None, wanted: Mapping[str, Iterable[int]]) -> None:
    """Raise InputError when sizes, by the name of who wants them, exceed the one that a folder was prepared for.

    Its images would have to be enlarged, and accuracies would be those of blurred images.
    """
    largest = {name: max(sizes, default=0) for name, sizes in wanted.items()}
    name, size = max(largest.items(), key=lambda item: item[1])
    if prepared_for is not None and size > prepared_for:
        raise InputError(
            f"{name}: {size} px is more than the {prepared_for} px that task.data was prepared for; prepare it for "
            f"that (mixtune.prepare --size {size}, to a new folder), or stay at {prepared_for} px and below"
        )
