"""Verdict: whether differences that are paired by seed say anything."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# 97.5 % point of Student's t by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}


def verdict(differences: Sequence[float]) -> str:
    """Mean difference in points with its 95 % interval, and what that says."""
    if len(differences) < 2:
        return f"{differences[0]:+.2f} points from a single seed: no verdict"
    mean, n = statistics.mean(differences), len(differences)
    half = T.get(n - 1, 1.96) * statistics.stdev(differences) / math.sqrt(n)
    word = "better" if mean > half else "worse" if mean < -half else "no difference"
    return f"{mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f}, {n} seeds: {word}"
