"""Measurements: what was measured on this machine, as YAML files in the user's cache folder, for later commands."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path

from mixtune.errors import InputError
from mixtune.files import digest, replace_file
from mixtune.runtime.environment import describe_environment

log = logging.getLogger(__name__)
# Of what a step runs through; the last three decode and crop the images.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "opencv-python-headless")


def folder() -> Path | None:
    """``$XDG_CACHE_HOME/mixtune``, else ``~/.cache/mixtune`` (XDG Base Directory Specification); None for no home."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # the specification: ignored
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            return None
    return root / "mixtune"


def place(kind: str, *what: object) -> Path | None:
    """The file of one ``kind`` for ``what``, on this machine with its hardware, system and versions as they are."""
    root = folder()
    name = digest(platform.node(), describe_environment(PACKAGES), *what)
    return root / kind / f"{name}.yaml" if root else None


def keep(path: Path | None, text: str) -> None:
    """Write a file for later commands, whole or not at all. Where that fails they measure for themselves."""
    if path is None:
        return
    try:
        replace_file(path, text.encode())
    except InputError as err:
        log.warning("a measurement could not be kept for other studies: %s", err)
