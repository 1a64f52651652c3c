"""Make Optuna's samplers and pruners by name, with their options checked."""

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
    """Return the space's sampler. Raises InputError for an unknown name or option."""
    # CMA-ES says at every trial that it leaves ``growth`` to chance.
    defaults = {"cmaes": {"warn_independent_sampling": False}}
    sampler: optuna.samplers.BaseSampler = _make(space.sampler, SAMPLERS, "sampler", defaults, seed=seed)
    return sampler


def make_pruner(space: Space) -> optuna.pruners.BasePruner:
    """Return the space's pruner. ``patient`` takes ``pruner``, the name of the one that it wraps.

    Raises InputError for an unknown name or option.
    """
    defaults = {"halving": _halving_defaults(space), "patient": {"patience": 1}}
    named = space.pruning
    if named.name == "patient":
        wrapped = Named(str(named.options.get("pruner", "median")))
        if wrapped.name == "patient":
            raise InputError("pruner.options: patient cannot wrap itself; name another, for example pruner: median")
        options = {k: v for k, v in named.options.items() if k != "pruner"}
        options["wrapped_pruner"] = _make(wrapped, PRUNERS, "pruner", defaults)
        named = Named("patient", options)
    pruner: optuna.pruners.BasePruner = _make(named, PRUNERS, "pruner", defaults)
    return pruner


def _halving_defaults(space: Space) -> dict[str, Any]:
    return {"min_resource": 1, "reduction_factor": space.fidelity.factor if space.fidelity.kind == "compress" else 2}


def surviving(space: Space, step: int) -> float | None:
    """Return the share of the searched trials that go on after their report at this step; None where it is not set."""
    if space.pruning.name == "none":
        return 1.0
    options = {"min_early_stopping_rate": 0} | _halving_defaults(space) | space.pruning.options
    first, factor, delay = (options[k] for k in ("min_resource", "reduction_factor", "min_early_stopping_rate"))
    if space.pruning.name != "halving" or not isinstance(first, int):
        return None
    rungs = 0  # that were passed
    while first * factor ** (delay + rungs) <= step:
        rungs += 1
    return float(factor**-rungs)


def check_named(space: Space) -> None:
    """Raise InputError when the sampler or pruner cannot be made; nothing is written."""
    make_sampler(space, 0)
    make_pruner(space)


def _make(
    named: Named,
    known: Mapping[str, Callable[..., Any]],
    key: str,
    defaults: Mapping[str, Mapping[str, Any]],
    **extra: Any,
) -> Any:
    if named.name not in known:
        raise InputError(f"{key}.name: unknown {key} {named.name!r}; {did_you_mean(named.name, known)}")
    make = known[named.name]
    options = {**defaults.get(named.name, {}), **named.options}
    accepted: Sequence[str] = list(inspect.signature(make).parameters)
    for option in options:
        if option not in accepted:
            raise InputError(f"{key}.options: {named.name} has no option {option!r}; {did_you_mean(option, accepted)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(**options, **extra)
    except (ValueError, TypeError, ImportError) as err:
        raise InputError(f"{key}.options: {named.name}: {err}") from None
