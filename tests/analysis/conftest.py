"""A study in MLflow with made-up curves: what the analysis reads, without training anything."""

import shutil
from dataclasses import replace

import pytest

from mixtune.config import parse, to_plain
from mixtune.regime import published
from mixtune.regime.files import save_regime
from mixtune.search.callbacks import Candidate
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.tracking.resync import StudyState, note_summary, write_summary
from tests.curves import curve_of, point
from tests.tracking.writers import open_writer


def curve(*top1, ece=0.1):
    """A curve at 8, 12, ... px."""
    return curve_of(*(point(8 + 4 * i, (8 + 4 * i) ** 2 / 1e5, a, ece=ece) for i, a in enumerate(top1)))


POINT = {"w_4": 0.2, "w_8": 1.0, "w_12": 0.6, "split": 0.5, "growth": "none"}


class Made:
    """A study being written: ``trial`` adds one, ``uri`` and ``space`` are what the analysis needs."""

    def __init__(self, folder, settings, empty_store):
        self.folder, self.space = folder, parse(settings, Space, "f")
        self.uri = empty_store(folder)
        # The trials are made up; what is remembered of the study as a whole is not.
        trials = OptunaStudy(f"journal:///{folder}/study.journal", replace(self.space, published=()), 4)
        self.tracker = open_writer(self.uri, self.space, folder, trials)

    def trial(self, number, family, found, state="COMPLETE", weights=None, **params):
        folder = self.folder / "trials" / f"{number:04d}"
        folder.mkdir(parents=True)
        if family == "searched":
            point = POINT | params
            regime = self.space.regime(point, f"searched {number}")
        else:
            point = self.space.published_params(family, 4)
            regime = published(family, self.space.base, self.space.search.sizes, 4)
        save_regime(folder / "regime.yaml", regime, to_plain(self.space.training(1)))
        if weights:
            shutil.copy(weights, folder / "weights.safetensors")
        trial = Candidate(number, regime, point, folder, "" if family == "searched" else family)
        self.tracker.started(trial)
        report = {"progress": 1.0, "loss": 1.0, "lr": 0.0, "views_per_second": 9.0, "seconds": 60.0 + number}
        self.tracker.reported(trial, report | {"curve": found.rows()}, 0.5)
        self.tracker.ended(trial, state, 0.5, "", found)
        assert self.tracker.flush()

    def summarise(self, best, more=None):
        note_summary(self.tracker._trials, best, more)
        write_summary(StudyState.read(self.tracker._trials), self.tracker._runs, self.tracker._study)


@pytest.fixture
def made(tmp_path, tiny, empty_store):
    folder = tmp_path / "made"
    folder.mkdir()
    return Made(folder, tiny, empty_store)


@pytest.fixture(scope="session")
def study(tmp_path_factory, empty_store):
    """A whole study: two published regimes, six searched trials, one of them pruned."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("study")
    whole = Made(folder, TINY, empty_store)
    whole.trial(0, "fixed", curve(0.60, 0.80, ece=0.2))
    whole.trial(1, "multiscale", curve(0.70, 0.75))
    for i in range(5):
        weight = round(0.2 + 0.15 * i, 2)
        whole.trial(2 + i, "searched", curve(0.5 + 0.08 * i, 0.7 + 0.03 * i), w_12=weight, growth="gradual")
    whole.trial(7, "searched", curve(0.9, 0.9), "PRUNED")
    return whole
