"""Grid: every point of a search whose knobs are all values or lists, in an order that is shuffled once.

Optuna's own grid sampler ends a study by stopping ``optimize``, which a study that is asked and told does not run; so
the points are enqueued, and a study that has fewer trials than the grid has points sees an even part of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mixtune.search.candidates import Search
from mixtune.search.domains import Range

MOST = 1_000_000  # points that are shuffled; nobody trains that many


def size(search: Search) -> int:
    """How many points there are. Raises ValueError naming a knob that is a range, and for more than a million."""
    for name, knob in search.knobs.items():
        if isinstance(knob, Range):
            raise ValueError(
                f"sampler grid: {name} is a range from {knob.low:g} to {knob.high:g}; give a list of values"
            )
    found = math.prod(len(knob) for knob in _choices(search))
    if found > MOST:
        raise ValueError(f"sampler grid: the space has {found:,} points; list fewer values")
    return found


def points(search: Search, seed: int, count: int) -> dict[str, dict[str, Any]]:
    """The first ``count`` points in the order of this seed, by their place in the grid. Raises what ``size`` raises."""
    order = np.random.default_rng(seed).permutation(size(search))[: max(0, count)]
    lengths = [len(knob) for knob in _choices(search)]
    found = {}
    for at in order.tolist():
        places = np.unravel_index(at, lengths)
        chosen = [knob[int(i)] for knob, i in zip(_choices(search), places, strict=True)]
        found[str(at)] = dict(zip(search.knobs, chosen, strict=True))
    return found


def _choices(search: Search) -> list[tuple[Any, ...]]:
    return [knob for knob in search.knobs.values() if not isinstance(knob, Range)]
