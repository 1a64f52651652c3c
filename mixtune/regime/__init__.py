"""The size regime as plain values: shapes, mixtures, phases, schedules. Needs numpy only."""

from mixtune.regime.catalogue import LITERATURE, from_literature
from mixtune.regime.literature import PUBLISHED, published
from mixtune.regime.regime import Mixture, Phase, Regime
from mixtune.regime.schedule import Budget, Schedule, apportion
from mixtune.regime.shapes import BatchShape
from mixtune.regime.shard import WHOLE, Shard
from mixtune.regime.step_cost import CostTable

__all__ = [
    "LITERATURE",
    "PUBLISHED",
    "WHOLE",
    "BatchShape",
    "Budget",
    "CostTable",
    "Mixture",
    "Phase",
    "Regime",
    "Schedule",
    "Shard",
    "apportion",
    "from_literature",
    "published",
]
