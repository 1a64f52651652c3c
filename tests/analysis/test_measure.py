"""What a search does not measure is measured afterwards, from what MLflow holds, and drawn."""

import csv

import pytest

from analysis.measure import main
from analysis.study_runs import read_study
from mixtune.errors import InputError
from mixtune.evaluation.corruptions import FAMILIES, robustness
from mixtune.evaluation.latency import peak_memory
from mixtune.models.weights import load_weights
from mixtune.tasks.classification import Classification
from mixtune.tracking.mlflow_reader import parent_of
from tests.analysis.conftest import curve
from tests.analysis.test_commands import call


@pytest.fixture
def kept(made, finished):
    """Two trials whose weights MLflow keeps, as a search leaves them."""
    made.trial(0, "fixed", curve(0.5, 0.6), weights=finished / "weights.safetensors")
    made.trial(1, "searched", curve(0.6, 0.7), weights=finished / "weights.safetensors")
    made.trial(2, "searched", curve(0.4, 0.5))
    return made


def measure(made, *flags):
    return main(["--study", "tiny", "--tracking-uri", made.uri, *flags])


def test_latency_and_memory_hold_for_every_trial_and_make_an_axis(kept, tmp_path, capsys):
    assert measure(kept, "--latency", "2") == 0
    assert "batch 2" in capsys.readouterr().out
    trials = read_study(kept.uri, "tiny").trials
    task = Classification(kept.space.task)
    for t in trials:
        assert all(p.latency > 0 for p in t.curve.points)
        x = next(task._whole(task._held_out, 12))[0][:2]
        assert t.curve.at(12).memory == peak_memory(task.network(0).eval(), x)
    for cost in ("latency", "memory"):
        call("pareto", kept, tmp_path, "--cost", cost)
        assert "batch 2" in (tmp_path / "pareto.svg").read_text()
        rows = list(csv.DictReader((tmp_path / "pareto.csv").open()))
        assert len({r[cost] for r in rows}) == 2  # one figure per size
    _, _, tags = parent_of(kept.uri, "tiny")
    assert tags["mixtune.latency"].startswith("batch 2, float32, ")
    before = [p.latency for p in trials[0].curve.points]
    measure(kept, "--latency", "1")  # measured again, it replaces
    again = read_study(kept.uri, "tiny")
    assert [p.latency for p in again.trials[0].curve.points] != before
    assert again.tags["mixtune.latency"].startswith("batch 1")


def test_corruptions_are_those_of_the_kept_weights(kept, finished, tmp_path):
    assert measure(kept, "--corruptions", "8") == 0
    task = Classification(kept.space.task)
    network = task.network(0)
    load_weights(network, finished / "weights.safetensors", "cifar_resnet8")
    rows = robustness(task, network, 8)
    study = read_study(kept.uri, "tiny")
    for family in FAMILIES:
        values = [r["top1"] for r in rows if r["family"] == family]
        for t in study.shown:
            assert t.more[f"corruption/{family}"] == {8: pytest.approx(sum(values) / len(values))}
    call("robustness", kept, tmp_path)
    assert "pixelate" in (tmp_path / "robustness.svg").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--latency", "0"], "--latency must be at least 1, not 0"),
        (["--corruptions", "9"], "--corruptions 9: 9 px is not a multiple of cifar_resnet8's total stride 4"),
    ],
)
def test_bad_input_is_one_sentence(kept, flags, message):
    with pytest.raises(InputError, match=message):
        measure(kept, *flags)


def test_a_trial_without_weights_is_one_sentence(made):
    made.trial(0, "fixed", curve(0.5, 0.6))
    with pytest.raises(InputError, match=r"holds no file weights.safetensors that can be read"):
        measure(made, "--corruptions", "8")
