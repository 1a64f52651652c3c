"""Repeats: trials of a search trained again, in a study of their own beside it, which nothing samples from.

So test scores never reach the sampler, and resuming, failing and a storage that is away are what they are in a search.
What failed is trained again by the next command, unless it diverged, which it would again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from mixtune.search.fidelity import Fidelity
from mixtune.search.final import Repeat, Round
from mixtune.search.optuna_study import OptunaStudy, round_name
from mixtune.search.space import Named, Space
from mixtune.search.trial_result import TrialResult


def whole(space: Space, round_: Round) -> Space:
    """The space as a round trains it: the whole budget at once, nothing pruned; the test set needs no folds."""
    alone, nothing = Fidelity("compress", rungs=1), Named("none")
    changes: dict[str, Any] = {"fidelity": alone, "pruner": nothing, "sampler": Named("random")}
    if round_ == "final":
        changes |= {"folds": 1, "resources": replace(space.resources, folds_at_once=1)}
    return replace(space, **changes, objectives=("score",))


class Repeats(OptunaStudy):
    """A round: hands out the runs that are wanted and not finished, and records how they ended."""

    def __init__(self, url: str, space: Space, round_: Round, wanted: Sequence[tuple[TrialResult, Repeat]]) -> None:
        """``wanted``: trials of the search, each with how it is to be repeated. Raises what ``OptunaStudy`` raises."""
        self._wanted = {repeat: outcome for outcome, repeat in wanted}
        self.failed_before: dict[Repeat, str] = {}  # what an earlier command left failed and is run again, with reasons
        self._open(url, whole(space, round_), round_name(space, round_))

    def _fill(self) -> None:
        interrupted, trials = self._interrupted(), self._study.get_trials(deepcopy=False)
        again = {
            t.number: repeat
            for t in trials
            if t.state.name == "FAIL" and t.number not in interrupted and "diverged" not in t.user_attrs
            if (repeat := Repeat.from_attributes(t.user_attrs)) in self._wanted
        }
        if again:
            self._add_interrupted(set(again))
            interrupted |= set(again)
            self.failed_before = {repeat: trials[n].user_attrs.get("reason", "") for n, repeat in again.items()}
        there = {Repeat.from_attributes(t.user_attrs) for t in trials if t.number not in interrupted}
        for repeat, outcome in self._wanted.items():
            if repeat not in there:
                known = {"published": outcome.published} if outcome.published else {}
                self._enqueue(outcome.params, {"repeat": asdict(repeat), **known})

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """The next run and its parameters."""
        while True:
            trial, params = super().ask()
            repeat = Repeat.from_attributes(trial.user_attrs)
            if repeat in self._wanted:
                return trial, params
            self.discard(trial)  # an earlier command wanted it
            if repeat is None:
                raise RuntimeError("more runs were asked for than are wanted")

    def remaining(self) -> int:
        """How many runs are still to be made."""
        return len(self._wanted) - len(self.results())

    def results(self) -> dict[Repeat, TrialResult]:
        """What ended by itself, of what is wanted."""
        return {o.repeat: o for o in self.outcomes() if o.repeat in self._wanted}
