"""Proving: the rounds after a search (``final``), and what they say of its winner."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mixtune.search.callbacks import Callbacks
from mixtune.search.final import Repeat, Round, seeds_of
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study.console import RoundConsole, spread
from mixtune.study.leaders import finalists, leaders
from mixtune.study.repeats import Repeats
from mixtune.study.run_trials import TrialRunner
from mixtune.study.stores import OpenStudy, open_round_stores
from mixtune.study.verdict import Verdict, verdict

Runs = Mapping[int, Mapping[int, TrialResult]]  # finished repeats by the number of their trial, then by seed


@dataclass(frozen=True)
class FinalResult:
    """What fresh runs say. ``tested``: the winner first; ``replicated`` and ``final`` hold their finished runs, and
    ``failed`` those that did not come to an end.
    """

    tested: tuple[TrialResult, ...]
    replicated: Runs
    final: Runs
    failed: tuple[TrialResult, ...] = ()
    led: str = ""  # how the searched ones were chosen, where that was not by the best scores

    @property
    def winner(self) -> TrialResult:
        """The regime with the best mean over fresh seeds on the held-out images; the test set has no say in it."""
        return self.tested[0]

    @property
    def chosen(self) -> str:
        """How the winner was chosen, in half a sentence."""
        fresh = _scores(self.replicated).get(self.winner.number)
        if not fresh:
            return "the best single run of the search"
        mean, led = spread(list(fresh.values())), f"; {self.led}" if self.led else ""
        return (
            f"the best mean{' score' * bool(led)} of {len(self.replicated)} regimes, each trained with {len(fresh)} "
            f"new seeds and evaluated on validation images ({mean}{led})"
        )

    @property
    def verdict(self) -> Verdict:
        """The winner against every other finalist, by the score on the test set."""
        scores = _scores(self.final)
        return verdict(self.winner.name, {o.name: scores.get(o.number, {}) for o in self.tested})

    @property
    def missing(self) -> list[str]:
        """The runs that failed, each with its reason."""
        where = {"test": "the test set", "validation": "the held-out images"}
        runs = [(o, o.repeat) for o in self.failed if o.repeat]
        return [f"{o.name}, seed {r.seed}, for {where[r.judge]}: {o.reason}" for o, r in runs]

    def table(self) -> str:
        """Return every finalist's mean and deviation of the score, in per cent, and of the primary metric at every
        size on the test set, over the seeds that were completed; then the runs that were not.
        """
        failed = [f"failed: {one}" for one in self.missing]
        rows = [(o, list(self.final.get(o.number, {}).values())) for o in self.tested]
        rows = sorted((r for r in rows if r[1]), key=lambda r: -statistics.fmean(x.score or 0.0 for x in r[1]))
        if not rows:
            return "\n".join(["no run of the final was completed", *failed])
        curves = {o.number: [x.curve for x in runs if x.curve] for o, runs in rows}
        first = curves[rows[0][0].number][0]
        sizes, primary = first.sizes, first.primary
        columns = "".join(f"{f'{S} px':>15}" for S in sizes)
        head = f"{'trial':>5}  {'family':<11} {'seeds':>5}  {'score':>13}{columns}"
        lines = ["final: whole training set, test set, mean ± deviation over seeds in %", head]
        for o, runs in rows:
            by_size = [c.by_size() for c in curves[o.number]]
            values = "".join(f"{spread([each[S] for each in by_size], primary.scale):>15}" for S in sizes)
            mark = "  <- winner" if o is self.winner else ""
            score = spread([x.score or 0.0 for x in runs])
            lines.append(
                f"{f'#{o.number}':>5}  {o.published or 'searched':<11} {len(runs):>5}  {score:>13}{values}{mark}"
            )
        said = f"{self.winner.name} wins by {self.chosen}.\nOn the test set, {self.verdict.sentence()}."
        return "\n".join([*lines, *failed, said])


def run_final(
    space: Space, paths: StudyPaths, study: OpenStudy, runner: TrialRunner, write: Callable[[str], None]
) -> FinalResult | None:
    """Train leaders and finalists as often as ``space.final`` asks, going on with what is there.

    None when it asks for nothing, the search completed no trial, or runs are left that could not be made. Raises what
    ``TrialRunner.run`` raises.
    """
    if space.final is None:
        return None
    front = study.trials.diverse_front() if space.several else ()
    led, how = leaders(study.trials.outcomes(), space.final.leaders, front)
    if not led:
        return None
    if how:
        write(f"leaders: {how}; and the published regimes")
    again = _round("leaders", led, space, paths, study, runner, write)
    if again is None:
        return None
    replicated, lost = again
    tested = finalists(led, _scores(replicated))
    last = _round("final", tested, space, paths, study, runner, write)
    return FinalResult(tuple(tested), replicated, last[0], (*lost, *last[1]), how) if last is not None else None


def _round(
    round_: Round,
    regimes: Sequence[TrialResult],
    space: Space,
    paths: StudyPaths,
    study: OpenStudy,
    runner: TrialRunner,
    write: Callable[[str], None],
) -> tuple[Runs, list[TrialResult]] | None:
    """The finished runs of a round, and those that failed; None where some are still to be made."""
    assert space.final is not None
    folder, seeds = paths.folder / round_, seeds_of(space.final, round_, space.seed)
    wanted = [(o, Repeat(o.number, seed, round_)) for seed in seeds for o in regimes]
    if not wanted:
        return {}, []
    with open_round_stores(study, Repeats(paths.storage_url, space, round_, wanted)) as mine:
        assert isinstance(mine.trials, Repeats)
        for repeat, reason in mine.trials.failed_before.items():
            write(f"{round_}: #{repeat.of} with seed {repeat.seed} failed ({reason}) and starts again")
        if left := mine.trials.remaining():
            done = len(wanted) - left
            write(
                f"{round_}: {len(regimes)} regimes with {len(seeds)} seeds each; {done} of {len(wanted)} runs are done"
            )
            try:
                runner.run(mine, folder, Callbacks([RoundConsole(done, len(wanted), write), study.tracker]))
            finally:
                mine.reconcile()
        if mine.trials.remaining():
            return None
        found: dict[int, dict[int, TrialResult]] = {}
        failed = []
        for repeat, o in mine.trials.results().items():
            if o.state == "COMPLETE":
                found.setdefault(repeat.of, {})[repeat.seed] = o
            else:
                failed.append(o)
        return found, failed


def _scores(runs: Runs) -> dict[int, dict[int, float]]:
    return {n: {seed: o.score or 0.0 for seed, o in sorted(each.items())} for n, each in runs.items()}
