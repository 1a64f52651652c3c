"""Searching over regimes: the only floor that knows Ray, Optuna and MLflow."""
