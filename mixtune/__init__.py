"""mixtune finds how ConvNet training should mix image sizes."""

from mixtune.errors import InputError
from mixtune.regime import BatchShape, Budget, Mixture, Phase, Regime, Schedule, published
from mixtune.regime.files import load_regime

__version__ = "0.1.0"

__all__ = ["BatchShape", "Budget", "InputError", "Mixture", "Phase", "Regime", "Schedule", "load_regime", "published"]
