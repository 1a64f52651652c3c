"""Mean and deviation over seeds, and tests of the difference between two regimes.

A seed is the unit of observation: its deviation holds initialisation, order of images and augmentation, and not the
choice of test images. scipy computes the tests; it is imported where it is used, because its import takes a second.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from mixtune.errors import InputError

LEVEL = 0.05  # of significance
ROUNDING = 1e-12  # relative: two differences nearer than that are equal


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; None for the deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's coefficient of matched values; None where all values of either are equal."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(a, b).statistic)


def image_error(accuracy: float, images: int) -> float:
    """Return the binomial standard error of an accuracy (0 to 1) measured on ``images`` test images."""
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
    def significant(self) -> bool:
        """Return whether the test rejects equality at the 5 % level."""
        return self.p is not None and self.p < LEVEL

    def sentence(self, a: str, b: str, scale: float = 100.0, unit: str = "points") -> str:
        """Return the difference in one sentence: "no difference is shown" where the test does not reject equality."""
        if self.p is None:
            return f"{b} minus {a}: {scale * self.value:+.2f} {unit}; {self.test}"
        interval = f"95 % interval {scale * self.low:+.2f} to {scale * self.high:+.2f}"
        numbers = f"{scale * self.value:+.2f} {unit}, {interval} ({self.test}, p = {self.p:.2g})"
        if not self.significant:
            return f"no difference is shown between {b} and {a}: {numbers}"
        return f"{b} is {'better' if self.value > 0 else 'worse'} than {a}: {numbers}"


def difference(a: Mapping[int, float], b: Mapping[int, float], images: int | None = None) -> Difference:
    """Return B minus A and the test of it; each is {seed: accuracy or score}.

    Equal seeds, two or more: paired t-test. Else two or more seeds each: Welch's t-test. Else, for accuracies measured
    on a known number of ``images``: two-proportion z-test, which knows the noise of the images and not of the seeds.
    """
    mean_a, mean_b = statistics.fmean(a.values()), statistics.fmean(b.values())

    def untested(reason: str) -> Difference:
        return Difference(mean_a, mean_b, math.nan, math.nan, None, reason)

    if min(len(a), len(b)) >= 2:
        from scipy import stats

        largest = max(map(abs, (*a.values(), *b.values())))
        if set(a) == set(b):
            test = f"paired t-test over {len(a)} seeds"
            pairs = [(b[seed], a[seed]) for seed in sorted(a)]
            varied = _vary([x - y for x, y in pairs], largest)
            result = stats.ttest_rel(*zip(*pairs, strict=True)) if varied else None
        else:
            test = f"Welch's t-test, {len(a)} and {len(b)} seeds"
            varied = _vary(a.values(), largest) or _vary(b.values(), largest)
            result = stats.ttest_ind(list(b.values()), list(a.values()), equal_var=False) if varied else None
        if result is None:
            return untested("the seeds show no spread at all, so that no test applies")
        interval = result.confidence_interval(1 - LEVEL)
        return Difference(mean_a, mean_b, float(interval.low), float(interval.high), float(result.pvalue), test)
    if images is not None:
        return _of_proportions(mean_a, mean_b, images)
    if max(len(a), len(b)) > 1:
        return untested(f"{len(a)} and {len(b)} runs, where a test needs two of each")
    return untested("one run each: seeds decide whether that is noise")


def _vary(values: Collection[float], largest: float) -> bool:
    """Return whether values differ by more than what rounding makes of equal ones, beside the ``largest`` score."""
    return max(values) - min(values) > ROUNDING * largest


def _of_proportions(a: float, b: float, images: int) -> Difference:
    """Return the two-proportion z-test of two accuracies, each measured on ``images`` images; scipy has none."""
    from scipy import stats

    half = float(stats.norm.ppf(1 - LEVEL / 2)) * math.hypot(image_error(a, images), image_error(b, images))
    error = math.sqrt(2) * image_error((a + b) / 2, images)  # of the difference, if both accuracies were equal
    p = 1.0 if error == 0 else float(2 * stats.norm.sf(abs(b - a) / error))
    test = f"two-proportion z-test over {images} images, one run each: the noise of seeds is not in it"
    return Difference(a, b, b - a - half, b - a + half, p, test)


def over_pairs(a: Sequence[float], b: Sequence[float], what: str) -> Difference:
    """Return the mean of B minus A over matched pairs (the same regimes in two studies): paired t-test.

    ``what`` names the pairs. Raises InputError for no pairs.
    """
    if not a:
        raise InputError(f"the two have no {what} in common")
    paired = difference(dict(enumerate(a)), dict(enumerate(b)))
    if paired.p is None:
        reason = "no spread" if len(a) > 1 else "a single pair"
        return replace(paired, test=f"{reason}, so that no test applies")
    return replace(paired, test=f"paired t-test over {len(a)} {what}")


def holm(ps: Sequence[float]) -> list[float]:
    """Return p values adjusted for several tests, in the given order (Holm 1979; scipy has no such function).

    With them the chance of one or more false "better" or "worse" among all tests stays at the level of a single test.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
