"""Learning-rate schedules: the factor on the peak rate as a function of the share of the budget spent after warm-up."""

from __future__ import annotations

import numpy as np


def cycle_position(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """Position from 0 to 1 inside the cycle that each share of the budget lies in; each cycle is ``growth`` times as
    long as the one before (SGDR's T_mult, ENTR's CMult). [n] -> [n]
    """
    ends = np.cumsum(growth ** np.arange(cycles))
    edges = np.concatenate([[0.0], ends]) / ends[-1]
    which = np.clip(np.searchsorted(edges, after, side="right") - 1, 0, cycles - 1)
    position: np.ndarray = (after - edges[which]) / np.diff(edges)[which]
    return position


def cosine(after: np.ndarray) -> np.ndarray:
    """From 1 to 0 along half a cosine (Bag of Tricks, "cosine learning rate decay")."""
    factor: np.ndarray = 0.5 * (1 + np.cos(np.pi * after))
    return factor


def sgdr(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """A cosine that starts again in every cycle (Loshchilov & Hutter 2017, warm restarts)."""
    return cosine(cycle_position(after, cycles, growth))


def cyclic(after: np.ndarray, cycles: int, growth: float) -> np.ndarray:
    """A triangle in every cycle, from 0 up to 1 and down again (Smith 2017, "triangular")."""
    factor: np.ndarray = 1 - np.abs(2 * cycle_position(after, cycles, growth) - 1)
    return factor
