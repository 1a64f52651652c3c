"""A study's finished trials, read from MLflow alone."""

from __future__ import annotations

from dataclasses import dataclass

from mixtune.errors import InputError
from mixtune.study.tracking import children
from mixtune.training.curve import METRICS, Curve


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that was trained to the end: its number, family (a published name or "searched"), regime and curve."""

    number: int
    family: str
    regime: str
    curve: Curve

    @property
    def searched(self) -> bool:
        """Whether the sampler made it up."""
        return self.family == "searched"


def finished_trials(uri: str, study: str) -> list[FinishedTrial]:
    """The complete trials of a study, by number. Pruned ones are left out: their curves are of half-trained networks.

    Raises InputError for a missing or foreign store, an unknown study and a study without complete trials.
    """
    trials = []
    for tags, points in children(uri, study):
        if tags.get("mixtune.state") != "COMPLETE":
            continue
        rows = [{"S": S, **values} for S, values in sorted(points.items())]
        if not rows or any(set(METRICS) - set(row) for row in rows):
            continue
        number, family = int(tags["mixtune.trial"]), tags["mixtune.family"]
        trials.append(FinishedTrial(number, family, tags["mixtune.regime"], Curve.from_rows(rows)))
    if not trials:
        raise InputError(f"--study {study}: {uri} holds no complete trial of this study yet")
    return sorted(trials, key=lambda t: t.number)
