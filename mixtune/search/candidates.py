"""Candidates: points of the search space and the regimes they are, in both directions.

A point has one weight per candidate size, ``split``, ``growth`` and, where asked for, settings of the recipe. Its
length is fixed and no name is conditional, so that multivariate sampling, importances and seeding with known regimes
all work.
S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, Literal, get_args

from mixtune.errors import did_you_mean
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Mixture, Regime
from mixtune.regime.literature import window
from mixtune.search.domains import (
    Domain,
    Domains,
    Range,
    Suggests,
    contains_value,
    extreme_values,
    shown,
    suggest_value,
)

Growth = Literal["none", "gradual", "stepwise", "window"]
GROWTHS: tuple[Growth, ...] = get_args(Growth)
NEGLIGIBLE = 0.05  # a weight below this is none: otherwise no candidate would ever leave a size out
WINDOW_PHASES = 10  # how many steps a sliding window takes over the sizes
SHARES = Range(0.0, 1.0)


@dataclass(frozen=True)
class Search:
    """What is searched: each of these may be a value, a list of values or a range (``domains``).

    sizes: the candidates. weights: by size, where not 0 to 1. split: 1 grows batches, 0 adds copies. growth: the order
    of sizes: "none" draws them at random throughout; "gradual" trains one size after the other, smallest first;
    "stepwise" first the sizes below the base, then the others; "window" slides a window of sizes from the smallest to
    the largest (timm's scheduled sampler). recipe: settings of the recipe, by name, for example
    ``{lr: {low: 0.03, high: 0.3, log: true}, smoothing: [true, false]}``.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    sizes: tuple[int, ...]
    split: Domain = SHARES
    growth: Domain = ("none", "gradual", "stepwise")
    weights: dict[int, Domain] = field(default_factory=dict)
    recipe: dict[str, Domain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise ValueError(f"sizes must be different positive image sizes, not {list(self.sizes)}")
        for S, domain in self.weights.items():
            if S not in self.sizes:
                raise ValueError(f"weights has {S} px, which is not among sizes {list(self.sizes)}")
            _in_unit(f"weights.{S}", domain)
        _in_unit("split", self.split)
        if isinstance(self.growth, Range) or not set(self.growth) <= set(GROWTHS):
            raise ValueError(f"growth must be one or several of {', '.join(GROWTHS)}, not {shown(self.growth)}")
        known = {f.name: f for f in fields(Recipe)}
        for name, domain in self.recipe.items():
            if name not in known:
                raise ValueError(f"recipe: unknown key {name}; {did_you_mean(name, known)}")
            for value in extreme_values(domain):
                try:
                    with_settings(Recipe(), {f"recipe.{name}": value})
                except ValueError as err:
                    raise ValueError(f"recipe: {err}") from None

    def weight(self, S: int) -> Domains:
        """What may be the weight of a size."""
        domain: Domains = self.weights.get(S, SHARES)
        return domain

    @property
    def splits(self) -> tuple[float, float]:
        """The least and the greatest split."""
        values = [float(v) for v in extreme_values(self.split)]
        return min(values), max(values)

    @property
    def domains(self) -> dict[str, Domains]:
        """Every parameter of a point by name, in order."""
        found: dict[str, Domains] = {f"w_{S}": self.weight(S) for S in self.sizes}
        found |= {"split": self.split, "growth": self.growth}
        return found | {f"recipe.{name}": domain for name, domain in self.recipe.items()}


def _in_unit(name: str, domain: Domains) -> None:
    for value in extreme_values(domain):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], not {shown(domain)}")


def with_settings(recipe: Recipe, params: Mapping[str, Any]) -> Recipe:
    """The recipe with a point's ``recipe.NAME`` parameters. Raises ValueError for a value it cannot have."""
    changes = {}
    for key, value in params.items():
        if key.startswith("recipe."):
            name = key.removeprefix("recipe.")
            there = getattr(Recipe(), name)
            wanted = type(there)
            if wanted is float and isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
            if wanted in (bool, int, float, str) and type(value) is not wanted:
                raise ValueError(f"{name} must be a {wanted.__name__}, not {value!r}")
            changes[name] = value
    return replace(recipe, **changes)


def suggest(search: Search, trial: Suggests) -> dict[str, Any]:
    """A point: the parameters of one trial."""
    return {name: suggest_value(trial, name, domain) for name, domain in search.domains.items()}


def regime_of(search: Search, base: BatchShape, params: Mapping[str, Any], name: str = "") -> Regime:
    """The point as a regime: compute shares proportional to the weights, negligible ones left out."""
    weights = {S: float(params[f"w_{S}"]) for S in sorted(search.sizes)}
    kept = {S: w for S, w in weights.items() if w >= NEGLIGIBLE}
    if not kept:  # all negligible: the largest stands for the mixture
        kept = {max(weights, key=lambda S: weights[S]): 1.0}
    split, source = float(params["split"]), "mixtune search"
    parts = {S: (base.resized(S, split), w) for S, w in kept.items()}
    growth: Growth = params["growth"]
    if growth == "window" and len(kept) > 1:
        slid = window(base, list(kept), WINDOW_PHASES, split=split, weights=list(kept.values()), name=name)
        return replace(slid, source=source)
    match growth:
        case "gradual":
            groups = [[part] for part in parts.values()]
        case "stepwise":
            small = [part for S, part in parts.items() if S < base.S]
            large = [part for S, part in parts.items() if S >= base.S]
            groups = [group for group in (small, large) if group]
        case _:
            groups = [list(parts.values())]
    mixtures = [Mixture.of([s for s, _ in group], [w for _, w in group]) for group in groups]
    return Regime.of(base, mixtures, [sum(w for _, w in group) for group in groups], name, source)


def point_of(search: Search, regime: Regime) -> dict[str, Any]:
    """The point of the space that is, or is nearest to, a regime on the same base; recipe settings are not in it.

    The inverse of ``regime_of`` where there is one. Raises ValueError saying what the space lacks.
    """
    missing = sorted(set(regime.sizes) - set(search.sizes))
    if missing:
        raise ValueError(
            f"{regime.name or regime} at base {regime.base.S} px trains on {', '.join(map(str, regime.sizes))} px; add "
            f"{', '.join(map(str, missing))} to search.sizes or leave {regime.name or 'it'} out"
        )
    orders, split = _growths(regime), _split(regime)
    growth = next((g for g in orders if contains_value(search.growth, g)), orders[0])
    weights = dict.fromkeys(search.sizes, 0.0)
    # A window that slides passes all sizes alike: what differs between them is seen in their whole shares.
    shares = _shares(regime) if growth != "window" else dict.fromkeys(regime.sizes, 1.0)
    top = max(shares.values())
    weights |= {S: share / top for S, share in shares.items()}
    point = {**{f"w_{S}": w for S, w in weights.items()}, "split": split, "growth": growth}
    wrong = [k for k, v in point.items() if not contains_value(search.domains[k], v)]
    if wrong:
        has = " and ".join(f"{k} {point[k]:g}" if isinstance(point[k], float) else f"{k} {point[k]}" for k in wrong)
        keys = " and ".join(f"search.{'weights' if k.startswith('w_') else k}" for k in wrong)
        raise ValueError(
            f"{regime.name or regime} has {has}, which {keys} {'do' if len(wrong) > 1 else 'does'} not allow; widen "
            f"{'them' if len(wrong) > 1 else 'it'} or leave {regime.name or 'it'} out"
        )
    return point


def _shares(regime: Regime) -> dict[int, float]:
    """Each size's share of the run, as ``regime_of`` makes mixtures and phases from weights."""
    found = dict.fromkeys(regime.sizes, 0.0)
    for phase in regime.phases:
        for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
            found[shape.S] += phase.share * p
    return found


def _growths(regime: Regime) -> list[Growth]:
    """How a regime orders its sizes, the likeliest name first; an order the space does not know counts as none."""
    phases = [sorted({s.S for s in ph.mixture.shapes}) for ph in regime.phases]
    found: list[Growth] = []
    if len(phases) > 1:
        rising = all(a[-1] < b[0] for a, b in pairwise(phases))
        if rising and len(phases) == 2 and phases[0][-1] < regime.base.S <= phases[1][0]:
            found.append("stepwise")
        if rising and all(len(sizes) == 1 for sizes in phases):
            found.append("gradual")
        means = [ph.mixture.expected(lambda s: float(s.S)) for ph in regime.phases]
        if not found and len(phases) > 2 and means == sorted(means) and means[0] < means[-1]:
            found.append("window")
    return found or ["none"]


def _split(regime: Regime) -> float:
    """The split that gives the regime's copies; where several do, 1 before 0 before the middle of them."""

    def error(split: float) -> float:
        return sum(abs(s.D - regime.base.resized(s.S, split).D) / s.D for s in regime.shapes)

    tried = [1.0, 0.0, 0.5, *(i / 100 for i in range(1, 100))]
    best = min(error(split) for split in tried)
    fits = [split for split in tried if error(split) <= best + 1e-9]
    return fits[0] if fits[0] in (1.0, 0.0, 0.5) else fits[len(fits) // 2]
