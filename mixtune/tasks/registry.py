"""Which kinds of task there are, by the name that a file's ``task.kind`` has for them.

A package of its own can add one: an entry point in the group ``mixtune.tasks``, named after the kind.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from mixtune.errors import did_you_mean

if TYPE_CHECKING:
    from mixtune.tasks.base import Task

DEFAULT = "classification"  # what files mean that name no kind
GROUP = "mixtune.tasks"
TASKS = {DEFAULT: "mixtune.tasks.classification:Classification"}  # kind -> module:class, imported when it is needed


def task_class(kind: str) -> type[Task[Any]]:
    """Return the class of a kind of task. Raise ValueError when it is not known."""
    place = TASKS.get(kind) or _installed().get(kind)
    if place is None:
        raise ValueError(f"kind: unknown task {kind!r}; {did_you_mean(str(kind), TASKS | _installed())}")
    module, _, name = place.partition(":")
    task: type[Task[Any]] = getattr(importlib.import_module(module), name)
    return task


@cache
def _installed() -> dict[str, str]:
    """Return the kinds that other installed packages add, as ``TASKS`` has them."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}
