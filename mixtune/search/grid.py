"""Every point of a search whose domains are all values or lists, in an order that is shuffled once.

Optuna's own grid sampler ends a study by stopping ``optimize``, which a study that is asked and told does not run; so
the points are enqueued, and a study that has fewer trials than the grid has points sees an even part of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mixtune.search.candidates import Search
from mixtune.search.domains import Range

MAX_POINTS = 1_000_000  # that are shuffled; nobody trains that many


def grid_size(search: Search) -> int:
    """Return how many points there are. Raises ValueError naming a domain that is a range, and for over a million."""
    for name, domain in search.domains.items():
        if isinstance(domain, Range):
            raise ValueError(
                f"sampler grid: {name} is a range from {domain.low:g} to {domain.high:g}; give a list of values"
            )
    count = math.prod(len(values) for values in _choices(search))
    if count > MAX_POINTS:
        raise ValueError(f"sampler grid: the space has {count:,} points; list fewer values")
    return count


def grid_points(search: Search, seed: int, count: int) -> dict[str, dict[str, Any]]:
    """Return the first ``count`` points in the order of this seed, by their index in the grid.

    Raises what ``size`` raises.
    """
    order = np.random.default_rng(seed).permutation(grid_size(search))[: max(0, count)]
    choices = _choices(search)
    lengths = [len(values) for values in choices]
    by_index = {}
    for index in order.tolist():
        indices = np.unravel_index(index, lengths)
        point = [values[int(i)] for values, i in zip(choices, indices, strict=True)]
        by_index[str(index)] = dict(zip(search.domains, point, strict=True))
    return by_index


def _choices(search: Search) -> list[tuple[Any, ...]]:
    return [domain for domain in search.domains.values() if not isinstance(domain, Range)]
