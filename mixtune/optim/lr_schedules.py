"""Learning-rate schedules: the factor on the peak rate, from the share of the budget after warm-up that is spent."""

from __future__ import annotations

import numpy as np


def cycle_position(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """Return the position, from 0 to 1, of each share of the budget in its cycle. [n] -> [n]

    Each cycle is ``growth`` times as long as the one before (SGDR's T_mult, ENTR's CMult).
    """
    ends = np.cumsum(growth ** np.arange(cycles))
    edges = np.concatenate([[0.0], ends]) / ends[-1]
    cycle = np.clip(np.searchsorted(edges, after, side="right") - 1, 0, cycles - 1)
    position: np.ndarray = (after - edges[cycle]) / np.diff(edges)[cycle]
    return position


def cosine(after: np.ndarray) -> np.ndarray:
    """Return half a cosine, from 1 to 0 (Bag of Tricks, "cosine learning rate decay")."""
    factor: np.ndarray = 0.5 * (1 + np.cos(np.pi * after))
    return factor


def sgdr(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """Return a cosine from 1 to 0 in every cycle (Loshchilov & Hutter 2017, warm restarts)."""
    return cosine(cycle_position(after, cycles, growth))


def cyclic(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """Return a triangle in every cycle, from 0 up to 1 and down again (Smith 2017, "triangular")."""
    factor: np.ndarray = 1 - np.abs(2 * cycle_position(after, cycles, growth) - 1)
    return factor
