"""Tracking: trials as runs of MLflow, which is known here and nowhere else in the study."""
