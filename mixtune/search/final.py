"""The final evaluation after a search: which regimes are trained again, and how often, so that luck does not win.

Two rounds. *Leaders*: the best searched regimes and the published ones, with fresh seeds on the held-out images; their
means choose the winner. *Final*: the best searched regime by that evidence and the published ones, on the whole
training set, evaluated once on the test set; that result is reported and chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixtune.tasks.base import Judge

Round = Literal["leaders", "final"]
ROUNDS: dict[Round, Judge] = {"leaders": "validation", "final": "test"}


@dataclass(frozen=True)
class Final:
    """``leaders``: how many searched regimes are trained again beside the published ones, with ``replicates`` fresh
    seeds each (0: the one run of the search decides). ``seeds``: trainings of each finalist for the test set.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    leaders: int = 3
    replicates: int = 2
    seeds: int = 5

    def __post_init__(self) -> None:
        if self.leaders < 1:
            raise ValueError(f"leaders must be at least 1, not {self.leaders}")
        if self.replicates < 0:
            raise ValueError(f"replicates must be at least 0, not {self.replicates}")
        if self.seeds < 2:
            raise ValueError(f"seeds must be at least 2 (one run has no deviation), not {self.seeds}")

    def runs(self, published: int, folds: int) -> tuple[int, int]:
        """Return how many runs of the whole budget each of the two rounds is."""
        return (self.leaders + published) * self.replicates * folds, (1 + published) * self.seeds

    def cost(self, published: int, folds: int, trials: int) -> str:
        """Return in words what it costs after a search of ``trials``, in runs of the whole budget."""
        repeats, tested = self.runs(published, folds)
        return (
            f"final: {repeats} runs of the leaders with fresh seeds and {tested} for the test set, each of the whole "
            f"budget; the search takes {trials * folds} such runs at most"
        )


@dataclass(frozen=True)
class Repeat:
    """One run of a round: trial ``of`` of the search, with another seed or for other images."""

    of: int
    seed: int
    round: Round

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Repeat | None:
        """Read a trial's user attributes; None where it is one of the search's own."""
        return cls(**attributes["repeat"]) if "repeat" in attributes else None

    @property
    def judge(self) -> Judge:
        """The images it is judged on."""
        return ROUNDS[self.round]

    def folder(self, published: str) -> Path:
        """Return its folder within its round's, laid out as ``mixtune.train --seeds`` does."""
        return Path(published or f"searched{self.of}") / f"seed{self.seed}"


def seeds_of(final: Final, round_: Round, seed: int) -> range:
    """Return the seeds of a round in a study with this seed.

    Leaders get fresh ones: the run of the search that made a regime a leader was chosen for its luck. The test set's
    begin with the study's own, as those of ``mixtune.train --seeds`` do.
    """
    if round_ == "leaders":
        return range(seed + 1, seed + 1 + final.replicates)
    return range(seed, seed + final.seeds)
