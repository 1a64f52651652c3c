"""Search on a proxy (less data, fewer epochs, a smaller network), then train its best regimes on the full task.

They are trained there beside the published ones, on the whole budget; the study ends with how far the proxy ranked
them as the full task does.
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

LEAST_REGIMES = 3  # for a rank correlation


def proxy_space(space: Space, source: str) -> Space:
    """Return the search on the cheaper task that the space's section ``proxy`` describes.

    Raises InputError where there is no such section or it is no space.
    """
    if not space.proxy:
        raise InputError(
            f"{source}: has no proxy section; say there what is cheaper, e.g. proxy: {{budget: {{epochs: 5}}}}"
        )
    # The final follows the search on the full task.
    cheaper = deep_merge(to_plain(replace(space, proxy={}, final=None)), space.proxy)
    return parse({**cheaper, "study": f"{space.study}-proxy"}, Space, f"{source}: proxy")


def full_space(space: Space, folder: Path, top: int, storage: str | None = None) -> tuple[Space, dict[str, float]]:
    """Return the study that trains the published regimes and the ``top`` best searched ones of the study in ``folder``.

    All of them spend the whole budget of ``space``, so that they can be compared; sizes are in proportion to its base.
    storage: where the proxy's study is, if not in its folder. Returns also the proxy's scores by published name or
    regime file. Raises InputError when the folder holds no study with a complete trial.
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
    published = {o.published: o.score or 0.0 for o in complete if o.published in space.published}
    files = {str(folder / "trials" / f"{o.number:04d}" / "regime.yaml"): o.score or 0.0 for o in searched}
    if not files and not published:
        raise InputError(f"--from {folder}: study {proxy.study!r} has no complete trial; let it go on first")
    for path in files:
        if not Path(path).exists():
            raise InputError(f"--from {folder}: {path} is gone, which holds the regime of one of its best trials")
    return _whole_budget(space, tuple(files), len(files)), published | files


def expected_full_space(space: Space, top: int) -> Space:
    """Return that study before the proxy's best regimes are known, for a forecast: random ones stand for them.

    Raises InputError where there would be no regimes to train.
    """
    _check_top(top)
    if not top and not space.published:
        raise InputError("--top must be at least 1 where no published regimes are trained (published: [])")
    return _whole_budget(space, (), top)


def _whole_budget(space: Space, known: tuple[str, ...], searched: int) -> Space:
    return replace(
        space,
        study=f"{space.study}-carried",
        known=known,
        trials=len(space.published) + searched,
        fidelity=Fidelity("compress", rungs=1),
        pruner=Named("none"),
        proxy={},
    )


def _check_top(top: int) -> None:
    if top < 0:
        raise InputError(f"--top must be at least 0, not {top}")


@dataclass(frozen=True)
class ProxyAgreement:
    """Whether a proxy ranks regimes as the full task does.

    spearman: over the n regimes that both have trained, None where they are too few or all alike. rank: on the full
    task, from 1, of the proxy's best; deficit: its score there below the best.
    """

    n: int
    spearman: float | None
    rank: int
    deficit: float

    def __str__(self) -> str:
        if self.spearman is None:
            return f"the proxy and this task have {self.n} regimes in common, too few (or too alike) to compare ranks"
        return (
            f"the proxy ranks {self.n} regimes as this task does with Spearman's coefficient {self.spearman:.2f}; its "
            f"best is number {self.rank} here" + (f", {self.deficit:.4f} below the first" if self.deficit else "")
        )

    @property
    def tags(self) -> dict[str, str]:
        """Return the agreement as tags of the study in MLflow."""
        spearman = "" if self.spearman is None else f"{self.spearman:.4f}"
        return {"mixtune.proxy.spearman": spearman, "mixtune.proxy.regimes": str(self.n)}


def proxy_agreement(outcomes: Sequence[TrialResult]) -> ProxyAgreement | None:
    """Return the agreement over the complete trials that have a score on a proxy; None where none has."""
    pairs = [
        (o.proxy, o.score) for o in outcomes if o.proxy is not None and o.state == "COMPLETE" and o.score is not None
    ]
    if not pairs:
        return None
    proxy, full = zip(*pairs, strict=True)
    spearman = rank_correlation(proxy, full) if len(pairs) >= LEAST_REGIMES else None
    best = full[proxy.index(max(proxy))]
    return ProxyAgreement(len(pairs), spearman, 1 + sum(score > best for score in full), max(full) - best)
