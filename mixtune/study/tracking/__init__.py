"""Tracking: trials as runs of MLflow, which is known here and nowhere else in the study."""

from mixtune.study.tracking.tracker import Tracker, check, children, default_uri

__all__ = ["Tracker", "check", "children", "default_uri"]
