"""Verdict: what may be said of a study's winner against the other regimes, from runs with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mixtune.study.statistics import LEVEL, Difference, difference, holm


@dataclass(frozen=True)
class Against:
    """The winner beside one other regime: ``difference`` is winner minus regime, ``p`` its adjusted p value.

    ``p`` is None where no test was possible (one run of either, or seeds without any spread).
    """

    name: str
    difference: Difference
    p: float | None

    @property
    def significant(self) -> bool:
        """Whether the adjusted test rejects equality at the 5 % level."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class Verdict:
    """The winner against every other regime, p values adjusted by Holm's method over all of them.

    without: the regimes that no run was completed of, which may be the winner.
    """

    winner: str
    against: tuple[Against, ...]
    without: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The answer. "Not distinguishable" is said of what was tested only; what was not is called untested."""
        tested = [a for a in self.against if a.p is not None]
        if not tested:
            why = self.against[0].difference.test if self.against else "there is nothing to compare it with"
            if self.winner in self.without:
                why = "no run of it was completed"
            return f"whether {self.winner} is better than another regime was not tested: {why}"
        better = [a.name for a in tested if a.significant and a.difference.value > 0]
        worse = [a.name for a in tested if a.significant and a.difference.value < 0]
        open_ = [a.name for a in tested if not a.significant]
        missing = [a.name for a in self.against if a.p is None]
        if len(open_) == len(tested):
            several = "no regime that was tested is" if missing or self.without else "no regime is"
            said = f"{several} distinguishable from {self.winner} at this noise"
        else:
            words = (("better than {}", better), ("worse than {}", worse), ("not distinguishable from {}", open_))
            parts = [said.format(_all(names)) for said, names in words if names]
            noise = " at this noise" if open_ else ""
            said = f"{self.winner} is {', and '.join(parts)}{noise}"
        untested = f"; not tested: {_all(missing)}" if missing else ""
        lacking = f"; no run was completed of {_all(self.without)}" if self.without else ""
        return f"{said} ({self.how()}){untested}{lacking}"

    def how(self) -> str:
        """The tests that were used, and for how many of them their p values were adjusted."""
        tests = sorted({a.difference.test for a in self.against if a.p is not None})
        n = sum(a.p is not None for a in self.against)
        adjusted = f", p adjusted by Holm's method for {n} comparisons" if n > 1 else ""
        return f"{', '.join(tests)}, 5 % level{adjusted}"


def verdict(winner: str, scores: Mapping[str, Mapping[int, float]]) -> Verdict:
    """Compare the winner with every other regime; ``scores``: {regime: {seed: score}}, the winner's among them.

    A regime without a single run is only named; without one of the winner nothing is compared.
    """
    others = [name for name in scores if name != winner and scores[name] and scores.get(winner)]
    found = [difference(scores[name], scores[winner]) for name in others]
    adjusted = iter(holm([d.p for d in found if d.p is not None]))
    ps = [None if d.p is None else next(adjusted) for d in found]
    without = tuple(name for name in scores if not scores[name])
    return Verdict(winner, tuple(Against(*each) for each in zip(others, found, ps, strict=True)), without)


def _all(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
