"""Atomic writes of files, and digests of plain values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from mixtune.errors import DISK_FULL, InputError, disk_full_error


def digest(*parts: Any) -> str:
    """Return a short name for plain values; equal values have equal names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def atomic_write(path: Path, data: bytes) -> None:
    """Replace a file atomically: a reader, or a kill at any moment, leaves the old content or the new, never a part.

    Raise InputError when it cannot be written (DiskFullError on a full disk); the earlier file is intact then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if err.errno in DISK_FULL:
            raise disk_full_error(path) from None
        raise InputError(f"{path}: cannot be written ({err.strerror or err}); the earlier file is intact") from None
