"""Optuna's samplers and pruners by name, with their options checked."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna

from mixtune.errors import InputError, did_you_mean
from mixtune.search.space import Named, Space

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # samples nothing: all its points are enqueued (``grid``)
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
PRUNERS: dict[str, Callable[..., optuna.pruners.BasePruner]] = {
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "patient": optuna.pruners.PatientPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
    "none": optuna.pruners.NopPruner,
}


def make_sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """The space's sampler. Raises InputError for an unknown name or option."""
    # CMA-ES says at every trial that it leaves ``growth`` to chance.
    defaults = {"cmaes": {"warn_independent_sampling": False}}
    sampler: optuna.samplers.BaseSampler = _make(space.sampler, SAMPLERS, "sampler", defaults, seed=seed)
    return sampler


def make_pruner(space: Space) -> optuna.pruners.BasePruner:
    """The space's pruner. ``patient`` takes ``pruner``, the name of the one it waits with.

    Raises InputError for an unknown name or option.
    """
    defaults = {"halving": _halving(space), "patient": {"patience": 1}}
    wanted = space.pruning
    if wanted.name == "patient":
        inner = Named(str(wanted.options.get("pruner", "median")))
        if inner.name == "patient":
            raise InputError(
                "pruner.options: patient cannot wait with itself; name another, for example pruner: median"
            )
        made = _make(inner, PRUNERS, "pruner", defaults)
        wanted = Named("patient", {k: v for k, v in wanted.options.items() if k != "pruner"} | {"wrapped_pruner": made})
    pruner: optuna.pruners.BasePruner = _make(wanted, PRUNERS, "pruner", defaults)
    return pruner


def _halving(space: Space) -> dict[str, Any]:
    return {"min_resource": 1, "reduction_factor": space.fidelity.factor if space.fidelity.kind == "compress" else 2}


def surviving(space: Space, step: int) -> float | None:
    """The share of the searched trials that go on after their report at this step; None where the pruner is not set to
    keep a share.
    """
    if space.pruning.name == "none":
        return 1.0
    options = {"min_early_stopping_rate": 0} | _halving(space) | space.pruning.options
    least, factor, late = (options[k] for k in ("min_resource", "reduction_factor", "min_early_stopping_rate"))
    if space.pruning.name != "halving" or not isinstance(least, int):
        return None
    rungs = 0  # that were passed
    while least * factor ** (late + rungs) <= step:
        rungs += 1
    return float(factor**-rungs)


def check_named(space: Space) -> None:
    """Raise InputError when the sampler or pruner cannot be made; nothing is written."""
    make_sampler(space, 0)
    make_pruner(space)


def _make(
    wanted: Named,
    known: Mapping[str, Callable[..., Any]],
    key: str,
    defaults: Mapping[str, Mapping[str, Any]],
    **extra: Any,
) -> Any:
    if wanted.name not in known:
        raise InputError(f"{key}.name: unknown {key} {wanted.name!r}; {did_you_mean(wanted.name, known)}")
    make = known[wanted.name]
    options = {**defaults.get(wanted.name, {}), **wanted.options}
    accepted: Sequence[str] = list(inspect.signature(make).parameters)
    for option in options:
        if option not in accepted:
            raise InputError(f"{key}.options: {wanted.name} has no option {option!r}; {did_you_mean(option, accepted)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(**options, **extra)
    except (ValueError, TypeError, ImportError) as err:
        raise InputError(f"{key}.options: {wanted.name}: {err}") from None
