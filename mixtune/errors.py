"""The exceptions that are said in one sentence, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Bad input. The message is one sentence that names the file, the key and what would be right."""


class TrainingError(Exception):
    """A run that could not go on, neither for bad input nor for a bug: said in one sentence, exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing half-sentence: the nearest known word when one is near, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing is allowed here"
