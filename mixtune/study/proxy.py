"""Carry: the best regimes of a study on a proxy (less data, fewer epochs, a smaller network) go to the full task.

They are trained there beside the published ones, on the whole budget; how far the proxy ranked them as the full task
does is told at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixtune.config import deep_merge, load_config, parse, to_plain
from mixtune.errors import InputError
from mixtune.search.fidelity import Fidelity
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Named, Space
from mixtune.search.storage import holds_study
from mixtune.search.trial_result import TrialResult
from mixtune.study.statistics import rank_correlation
from mixtune.tasks.registry import task_class

ENOUGH = 3  # regimes, for a rank correlation


def on_proxy(space: Space, source: str) -> Space:
    """The search on the cheaper task that the ``proxy`` section of a space describes. Raises InputError."""
    if not space.proxy:
        raise InputError(
            f"{source}: has no proxy section; say there what is cheaper, e.g. proxy: {{budget: {{epochs: 5}}}}"
        )
    # What follows a search follows the one on the whole task.
    cheaper = deep_merge(to_plain(replace(space, proxy={}, final=None)), space.proxy)
    return parse({**cheaper, "study": f"{space.study}-proxy"}, Space, f"{source}: proxy")


def carried(space: Space, folder: Path, top: int, storage: str | None = None) -> tuple[Space, dict[str, float]]:
    """The study that trains the ``top`` best searched regimes of the study in ``folder`` and the published ones.

    All of them spend the whole budget of ``space``, so that they can be compared; sizes are in proportion to its base.
    storage: where the proxy's study is, if not in its folder. Returns the space and the proxy's scores by published
    name or regime file. Raises InputError when the folder holds no study with a complete trial.
    """
    _check_top(top)
    if not (folder / "space.yaml").exists():
        raise InputError(f"--from {folder}: holds no study (space.yaml); name the folder of a search, as studies/NAME")
    proxy = load_config(folder / "space.yaml", Space)
    own = StudyPaths(folder).storage_url
    url = own if storage is None or holds_study(own, proxy.study) else storage
    if not holds_study(url, proxy.study):
        raise InputError(f"--from {folder}: study {proxy.study!r} is not there; name its database with --storage")
    trials = OptunaStudy(url, proxy, task_class(proxy.task.kind).stride(proxy.task))
    try:
        complete = [o for o in trials.outcomes() if o.state == "COMPLETE" and o.score is not None]
    finally:
        trials.close()
    searched = sorted((o for o in complete if not o.published), key=lambda o: -(o.score or 0.0))[:top]
    scores = {o.published: o.score or 0.0 for o in complete if o.published in space.published}
    found = {str(folder / "trials" / f"{o.number:04d}" / "regime.yaml"): o.score or 0.0 for o in searched}
    if not found and not scores:
        raise InputError(f"--from {folder}: study {proxy.study!r} has no complete trial to carry; let it go on first")
    for path in found:
        if not Path(path).exists():
            raise InputError(f"--from {folder}: {path} is gone, which holds the regime of one of its best trials")
    return _following(space, tuple(found), len(found)), scores | found


def to_follow(space: Space, top: int) -> Space:
    """That study before it is known which regimes it carries, to be planned: others stand for them. Raises InputError
    where there would be none to train.
    """
    _check_top(top)
    if not top and not space.published:
        raise InputError("--top must be at least 1 where no published regimes are trained (published: [])")
    return _following(space, (), top)


def _following(space: Space, known: tuple[str, ...], carried: int) -> Space:
    return replace(
        space,
        study=f"{space.study}-carried",
        known=known,
        trials=len(space.published) + carried,
        fidelity=Fidelity("compress", rungs=1),
        pruner=Named("none"),
        proxy={},
    )


def _check_top(top: int) -> None:
    if top < 0:
        raise InputError(f"--top must be at least 0, not {top}")


@dataclass(frozen=True)
class Agreement:
    """Whether a proxy ranks regimes as the full task does.

    spearman: of n regimes, None where they are too few or all alike. place: on the full task, from 1, of the proxy's
    best; lost: by how much it is worse than the best there.
    """

    n: int
    spearman: float | None
    place: int
    lost: float

    def __str__(self) -> str:
        if self.spearman is None:
            return f"the proxy and this task have {self.n} regimes in common, too few (or too alike) to compare ranks"
        return (
            f"the proxy ranks {self.n} regimes as this task does with Spearman's coefficient {self.spearman:.2f}; its "
            f"best is number {self.place} here" + (f", {self.lost:.4f} below the first" if self.lost else "")
        )

    @property
    def tags(self) -> dict[str, str]:
        """For MLflow."""
        said = "" if self.spearman is None else f"{self.spearman:.4f}"
        return {"mixtune.proxy.spearman": said, "mixtune.proxy.regimes": str(self.n)}


def agreement(outcomes: Sequence[TrialResult]) -> Agreement | None:
    """Of the complete trials that were carried from a proxy; None where none was."""
    pairs = [
        (o.proxy, o.score) for o in outcomes if o.proxy is not None and o.state == "COMPLETE" and o.score is not None
    ]
    if not pairs:
        return None
    before, here = zip(*pairs, strict=True)
    rho = rank_correlation(before, here) if len(pairs) >= ENOUGH else None
    best = here[before.index(max(before))]
    return Agreement(len(pairs), rho, 1 + sum(score > best for score in here), max(here) - best)
