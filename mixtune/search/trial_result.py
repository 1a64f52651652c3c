"""A trial that has ended, as everyone but the storage sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mixtune.evaluation.curve import Curve
from mixtune.evaluation.metrics import Metrics
from mixtune.search.final import Repeat


@dataclass(frozen=True)
class TrialResult:
    """A finished trial as the study has recorded it.

    score: None where there was no report. proxy: its score on the proxy task. reports: intermediate scores, by the
    step number that the pruner was given. began, ended: in local time.
    """

    number: int
    state: str
    score: float | None
    params: Mapping[str, Any]
    published: str
    reason: str
    curve: Curve | None
    proxy: float | None = None
    repeat: Repeat | None = None
    reports: Mapping[int, float] = field(default_factory=dict)
    began: datetime | None = None
    ended: datetime | None = None

    @classmethod
    def of(cls, trial: Any, at: int, metrics: Metrics) -> TrialResult:
        """Return the result of one of Optuna's trials that has ended.

        at: the index of the score among its values; metrics: of its task.
        """
        attrs, reports, state = trial.user_attrs, trial.intermediate_values, trial.state.name
        score = trial.values[at] if state == "COMPLETE" else (reports[max(reports)] if reports else None)
        curve = Curve.from_rows(json.loads(attrs["curve"]), metrics) if "curve" in attrs else None
        published, reason = attrs.get("published", ""), attrs.get("reason", "")
        more = {"proxy": attrs.get("proxy"), "repeat": Repeat.from_attributes(attrs), "reports": reports}
        more |= {"began": trial.datetime_start, "ended": trial.datetime_complete}
        return cls(trial.number, state, score, trial.params, published, reason, curve, **more)

    @property
    def name(self) -> str:
        """Its name in sentences: the published regime's, or "searched" with its number."""
        return self.published or f"searched #{self.repeat.of if self.repeat else self.number}"
