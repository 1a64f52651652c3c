"""The GPU benchmarks' commands run from start to end where there is no GPU, in small; nothing is written."""

import sys

import pytest

from benchmarks import common, gpu_step, packing
from benchmarks.common import conclude, random_images, spread
from benchmarks.trial import description, images, steps
from mixtune.training.run import Run


def test_quartiles_are_those_between_the_measurements():
    assert spread([3.0, 1.0, 2.0, 5.0, 4.0]) == {
        "n": 5,
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "values": [3.0, 1.0, 2.0, 5.0, 4.0],
    }
    assert spread([7.0])["median"] == 7.0


def test_the_last_line_ends_with_the_headline_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [
        {"what": "first", "ratio": 2.5, "at_least": 1.5, "aim": 3},
        {"what": "second", "ratio": 1.2, "at_least": 1.03, "aim": 1.01},
    ]
    conclude("x", "?", {}, rows)
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[-1].split()[-1]) == 2.5
    assert "reached): 2.500" in lines[-1].replace("aim 3: ", "")
    assert "NOT reached" in lines[0]  # smaller is better there
    assert (tmp_path / "x.json").exists()


def test_random_images_are_there_in_the_block_only():
    from mixtune.training.images import data

    before = data.load
    with random_images(50):
        assert len(data.load("cifar10", None).train) == 50
    assert data.load is before


def test_the_timed_steps_are_those_that_are_asked_for_and_train():
    with images("cpu"):
        trial = Run.prepare(*description("cpu", 1))
        before = trial.network.fc.weight.detach().clone()
        assert [n for n, _ in zip(steps(trial, trial.schedule, captured=False), range(3), strict=False)] == [0, 1, 2]
    assert not (trial.network.fc.weight == before).all()


@pytest.mark.slow
def test_the_packing_benchmark_rehearses_without_ray(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert packing.main(["--device", "cpu", "--repeats", "1", "--steps", "2", "--trials", "2"]) == 0
    out = capsys.readouterr().out
    assert "without Ray" in out
    assert float(out.split()[-1]) > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_gpu_step_benchmark_rehearses_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert gpu_step.main(["--device", "cpu", "--repeats", "1", "--steps", "2"]) == 0
    assert float(capsys.readouterr().out.split()[-1]) > 0
    assert not list(tmp_path.iterdir())
