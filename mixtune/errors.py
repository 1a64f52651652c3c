"""The exceptions that a command prints as one sentence, without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator


class InputError(Exception):
    """Bad input. The message is one sentence that names the file, the key and what would be right."""


class DiskFullError(InputError):
    """A disk is full. What was written before is intact, and the same command goes on once there is room."""


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, of a quota, of a limit on file sizes


def disk_full_error(path: object) -> DiskFullError:
    """Return the error for a file or folder that could not be written."""
    return DiskFullError(
        f"{path}: the disk (or its quota) is full; what was written before is intact, and the same command goes on "
        "once there is room"
    )


class StorageAwayError(InputError):
    """The study's storage does not answer. What it has taken is safe, and the same command goes on when it answers."""


class TrainingError(Exception):
    """A run that could not go on, neither for bad input nor for a bug. One sentence, exit code 1."""


def error_chain(err: BaseException) -> Iterator[BaseException]:
    """Yield the error, then its cause or context, then theirs."""
    current: BaseException | None = err
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known word when one is near, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing is allowed here"
