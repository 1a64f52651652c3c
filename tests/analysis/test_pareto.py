import csv

import pytest

from analysis import pareto
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns
from mixtune.errors import InputError
from tests.curves import curve_of, point


def trial(number, family, top1):
    points = (point(S, S**2 / 1e3, a) for S, a in zip((8, 16, 24), top1, strict=True))
    return FinishedTrial(number, family, "8x4 100%", curve_of(*points))


TRIALS = [
    trial(0, "fixed", (0.5, 0.9, 0.6)),
    trial(1, "searched", (0.7, 0.8, 0.9)),
    trial(2, "searched", (0.6, 0.95, 0.7)),
]


STUDY = StudyRuns("sqlite:///x", "study", "id", {}, {}, tuple(TRIALS), {})


def test_the_front_is_of_the_searched_trials_only():
    assert [(t.number, S) for t, S in pareto.searched_front(TRIALS)] == [(1, 8), (2, 16)]


def test_figure_and_table_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pareto, "read_study", lambda uri, study: STUDY)
    paths = pareto.draw_from_store("sqlite:///x", "study", tmp_path / "figures")
    assert [p.name for p in paths] == ["pareto.png", "pareto.svg", "pareto.csv"]
    svg = paths[1].read_text()
    for word in ("inference cost", "GMACs", "top-1 accuracy", "fixed size", "hypervolume", "front of the searched"):
        assert word in svg
    rows = list(csv.DictReader(paths[2].open()))
    assert len(rows) == 9
    assert [(r["trial"], r["S"]) for r in rows if r["searched_front"] == "True"] == [("1", "8"), ("2", "16")]


def test_an_unwritable_folder_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(pareto, "read_study", lambda uri, study: STUDY)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written to"):
        pareto.draw_from_store("sqlite:///x", "study", tmp_path / "file" / "figures")
