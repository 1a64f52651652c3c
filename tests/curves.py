"""Curves of classification, for tests that train nothing."""

from mixtune.evaluation.curve import Curve, Point
from mixtune.evaluation.predictions import METRICS


def point(S, gmacs, top1, top5=1.0, loss=0.5, ece=0.1, **measured):
    return Point(S, gmacs, {"top1": top1, "top5": top5, "loss": loss, "ece": ece}, **measured)


def curve_of(*points):
    return Curve(points, METRICS)


def from_rows(rows):
    return Curve.from_rows(rows, METRICS)
