"""What may be said of two regimes: mean, deviation over seeds, and whether a difference is one.

Seeds are the unit: a deviation over seeds holds initialisation, order and augmentation, not the choice of test images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixtune.errors import InputError

LEVEL = 0.05


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's coefficient of matched values; None where either has no spread."""
    from scipy import stats

    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    return float(stats.spearmanr(a, b).statistic)


def image_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy (0 to 1) from the choice of ``images`` test images: binomial."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


@dataclass(frozen=True)
class Difference:
    """B minus A with its 95 % confidence interval; ``test`` names where interval and ``p`` come from.

    ``p`` is None where no test is possible: one run each and an unknown number of images, or no spread at all.
    """

    a: float
    b: float
    low: float
    high: float
    p: float | None
    test: str

    @property
    def value(self) -> float:
        """B minus A."""
        return self.b - self.a

    @property
    def proven(self) -> bool:
        """Whether the test rejects equality at the 5 % level."""
        return self.p is not None and self.p < LEVEL

    def sentence(self, a: str, b: str, scale: float = 100.0, unit: str = "points") -> str:
        """The difference in one sentence; an honest "no difference" where the test does not reject equality."""
        if self.p is None:
            return f"{b} minus {a}: {scale * self.value:+.2f} {unit}; {self.test}"
        said = f"{scale * self.value:+.2f} {unit}, 95 % interval {scale * self.low:+.2f} to {scale * self.high:+.2f}"
        how = f"({self.test}, p = {self.p:.2g})"
        if not self.proven:
            return f"no difference is shown between {b} and {a}: {said} {how}"
        return f"{b} is {'better' if self.value > 0 else 'worse'} than {a}: {said} {how}"


def difference(a: Mapping[int, float], b: Mapping[int, float], images: int | None = None) -> Difference:
    """B minus A, each {seed: accuracy or score}.

    Equal seeds, two or more: paired t-test. Else two or more each: Welch's t-test. Else, for accuracies on a known
    number of ``images``: a two-proportion z-test, which knows the noise of the images and not that of the seeds.
    """
    from scipy import stats

    mean_a, mean_b = statistics.fmean(a.values()), statistics.fmean(b.values())
    if min(len(a), len(b)) >= 2:
        if set(a) == set(b):
            each = [b[seed] - a[seed] for seed in sorted(a)]
            error, free = statistics.stdev(each) / math.sqrt(len(each)), float(len(each) - 1)
            test = f"paired t-test over {len(each)} seeds"
        else:
            va, vb = (statistics.variance(x.values()) / len(x) for x in (a, b))
            error = math.sqrt(va + vb)
            free = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if error else 1.0
            test = f"Welch's t-test, {len(a)} and {len(b)} seeds"
        if error == 0:
            said = "the seeds show no spread at all, so that no test applies"
            return Difference(mean_a, mean_b, math.nan, math.nan, None, said)
        p = float(2 * stats.t.sf(abs(mean_b - mean_a) / error, free))
        half = float(stats.t.ppf(1 - LEVEL / 2, free)) * error
    elif images is not None:
        pooled = (mean_a + mean_b) / 2
        test = f"two-proportion z-test over {images} images, one run each: the noise of seeds is not in it"
        half = float(stats.norm.ppf(1 - LEVEL / 2)) * math.hypot(
            image_error(mean_a, images), image_error(mean_b, images)
        )
        error = math.sqrt(2) * image_error(pooled, images)
        p = 1.0 if error == 0 else float(2 * stats.norm.sf(abs(mean_b - mean_a) / error))
    else:
        said = "one run each: seeds decide whether that is noise"
        if max(len(a), len(b)) > 1:
            said = f"{len(a)} and {len(b)} runs, where a test needs two of each"
        return Difference(mean_a, mean_b, math.nan, math.nan, None, said)
    return Difference(mean_a, mean_b, mean_b - mean_a - half, mean_b - mean_a + half, p, test)


def over_pairs(a: Sequence[float], b: Sequence[float], what: str) -> Difference:
    """Mean of B minus A over matched pairs (the same regimes in two studies): paired t-test.

    Raises InputError for no pairs.
    """
    if not a:
        raise InputError(f"the two have no {what} in common")
    found = difference(dict(enumerate(a)), dict(enumerate(b)))
    if found.p is None:
        said = "no spread" if len(a) > 1 else "a single pair"
        return Difference(found.a, found.b, math.nan, math.nan, None, f"{said}, so that no test applies")
    return Difference(found.a, found.b, found.low, found.high, found.p, f"paired t-test over {len(a)} {what}")


def holm(ps: Sequence[float]) -> list[float]:
    """p values of several tests, adjusted by Holm's method so that the chance of any false "better" stays 5 %."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = worst
    return adjusted
