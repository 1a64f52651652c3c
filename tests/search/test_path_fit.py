from pathlib import Path

import pytest

from mixtune.regime import BatchShape, Mixture, Regime
from mixtune.regime.files import load_regime
from mixtune.regime.path import SizePath, distance
from mixtune.search.path_fit import nearest_path

ROOT = Path(__file__).parents[2]
BASE, SIZES, SPREADS = BatchShape(16, 64), (8, 12, 16, 20, 24), (0.05, 2.0)
FILES = sorted((ROOT / "search_spaces/regimes").glob("*.yaml"))
# Octaves of size by which the mean pixel of compute is moved. MixSize's ImageNet mixtures have a peak and a far tail.
APART = {"mixsize144": 0.17, "mixsize": 0.08, "entr_gradual": 0.06, "multiscale": 0.05, "window": 0.05}


def grid(regime):
    more = (16, 24, 32, 40, 48) if regime.base.S == 32 else range(96, 321, 32)
    return tuple(sorted({*regime.sizes, *more}))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_published_regime_is_near_a_path(file):
    regime, _ = load_regime(file)
    nearest = nearest_path(regime, grid(regime), 3, SPREADS)
    allowed = next((far for kind, far in APART.items() if file.stem.startswith(kind)), 0.005)
    assert nearest.sizes <= allowed
    assert nearest.copies <= 0.15
    assert (nearest.sizes, nearest.copies) == distance(
        nearest.path.regime(regime.base, grid(regime)), regime, grid(regime)
    )
    assert min(nearest.path.lengths) >= 0.049


WINNERS = {
    "45-35-20": ([(8,), (12,), (8, 12, 16)], [0.45, 0.35, 0.2], None),
    "40-30-30": ([(8,), (12,), (8, 12, 16, 20)], [0.4, 0.3, 0.3], [2, 2, 2, 1]),
    "55-25-20": ([(8,), (12,), SIZES], [0.55, 0.25, 0.2], None),
}


@pytest.mark.parametrize("name", WINNERS)
def test_regimes_that_grow_and_then_revisit_small_sizes_are_near_a_path(name):
    parts, shares, weights = WINNERS[name]
    mixtures = [
        Mixture.of([BASE.resized(S, 1) for S in sizes], weights if len(sizes) == 4 else None) for sizes in parts
    ]
    nearest = nearest_path(Regime.of(BASE, mixtures, shares), SIZES, 3, SPREADS)
    assert nearest.sizes <= 0.02
    assert nearest.path.splits == (1.0, 1.0)


@pytest.mark.parametrize(
    "path",
    [
        SizePath((-1.0, -0.4, 0.0), (0.05, 0.05, 0.8), (0.45, 0.35, 0.2)),
        SizePath((-0.8, 0.2, -0.5), (0.3, 0.2, 1.5), (0.2, 0.5, 0.3), 0.0, (0.0, 0.0)),
        SizePath((-1.0, 0.0, 0.5), (0.1, 0.1, 0.1), (0.3, 0.3, 0.4), 1.0, (1.0, 0.0)),
    ],
)
def test_a_regime_made_from_a_path_is_found_again(path):
    regime = path.regime(BASE, SIZES)
    nearest = nearest_path(regime, SIZES, 3, SPREADS)
    assert nearest.sizes <= 0.03
    assert nearest.copies <= 0.15


def test_two_calls_agree():
    regime, _ = load_regime(FILES[0])
    nearest_path.cache_clear()
    first = nearest_path(regime, grid(regime), 3, SPREADS)
    nearest_path.cache_clear()
    assert nearest_path(regime, grid(regime), 3, SPREADS) == first


def test_more_levels_are_no_further_away():
    regime, _ = load_regime(ROOT / "search_spaces/regimes/entr_gradual.yaml")
    assert nearest_path(regime, grid(regime), 4, SPREADS).sizes <= nearest_path(regime, grid(regime), 3, SPREADS).sizes
