"""The GPU benchmarks' commands run from start to end where there is no GPU, in small; nothing is written."""

import json
import re
import sys

import pytest
import torch

from benchmarks import common, gpu, gpu_step, packing, readme, regimes, speed, warm_start
from benchmarks.common import conclude, quartiles_of, random_images
from benchmarks.trial import description, images, steps
from mixtune.errors import InputError, TrainingError
from mixtune.regime import BatchShape
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.commands import module_of


def test_quartiles_are_those_between_the_measurements():
    assert quartiles_of([3.0, 1.0, 2.0, 5.0, 4.0]) == {
        "n": 5,
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "values": [3.0, 1.0, 2.0, 5.0, 4.0],
    }
    assert quartiles_of([7.0])["median"] == 7.0


def test_the_last_line_ends_with_the_headline_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [
        {"what": "first", "ratio": 2.5, "at_least": 1.5, "aim": 3},
        {"what": "second", "ratio": 1.2, "at_least": 1.03, "aim": 1.01},
    ]
    conclude("x", "?", {}, rows)
    lines = capsys.readouterr().out.splitlines()
    assert float(lines[-1].split()[-1]) == 2.5
    assert "2.500" in lines[-1]
    assert "NOT reached" in lines[0]  # smaller is better there
    assert (tmp_path / "x.json").exists()


def test_random_images_are_there_in_the_block_only():
    from mixtune.data import datasets

    before = datasets.load_dataset
    with random_images(50):
        assert len(datasets.load_dataset("cifar10", None).train) == 50
    assert datasets.load_dataset is before


def test_the_timed_steps_are_those_that_are_asked_for_and_train():
    with images("cpu"):
        trial = Run.prepare(*description("cpu", 1))
        before = trial.network.fc.weight.detach().clone()
        assert [n for n, _ in zip(steps(trial, trial.schedule, captured=False), range(3), strict=False)] == [0, 1, 2]
    assert not (trial.network.fc.weight == before).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    ("command", "flags"),
    [(gpu, []), (gpu_step, []), (packing, []), (warm_start, ["--device", "cuda"]), (regimes, ["gpu", "--data", "-"])],
)
def test_where_there_is_no_gpu_its_benchmarks_say_so_at_once(command, flags):
    with pytest.raises(InputError, match="CUDA"):
        command.main(flags)


def test_one_command_does_every_part_though_some_fail(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu, "pick_device", lambda _: None)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    parts = {
        "breaks": (["no_such_module"], 1.0),
        "hangs": (["timeit", "-n1", "-r1", "import time; time.sleep(600)"], 0.01),
        "tests": (["platform"], 1.0),
        "regimes": (["platform"], 1.0),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gpu_step.json").write_text("{}")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 1
    for line, fact in zip(
        capfd.readouterr().out.splitlines()[-3:], ("^breaks: .* 1$", r"^hangs: .*\b0\.01 min", "^tests: "), strict=True
    ):
        assert re.search(fact, line)
    assert (tmp_path / "out" / "gpu_step.json").exists()
    assert gpu.main(["--parts", "tests"]) == 0
    with pytest.raises(InputError, match="--data"):
        gpu.main(["--parts", "regimes"])


def test_the_one_command_names_commands_that_there_are():
    for words, _ in gpu.PARTS.values():
        if words[0] != "pytest":
            assert callable(module_of(words[0]).main)
            module_of(words[0]).parser().parse_args([*words[1:], *(["--data", "x"] * ("gpu60" in words))])


def test_the_rows_of_a_benchmark_that_broke_off_are_in_the_table(tmp_path):
    row = {"what": "eager / engine", "ratio": 5.8, "at_least": 5, "aim": 8}
    made = {"hardware": {"cpu": "16 cores", "gpu": "H200", "torch": "2.11"}, "rows": [row]}
    (tmp_path / "gpu_step.json").write_text(json.dumps(made))
    lines = [line for line in speed.table("speed", tmp_path).splitlines() if "`gpu_step`" in line]
    assert len(lines) == 4
    assert "| 5.8 |" in lines[0]
    assert all("not measured" in line for line in lines[1:])


def test_what_was_measured_before_a_part_broke_off_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_step, "pick_device", lambda _: None)
    rows = [{"what": "eager / engine", "ratio": 5.8, "at_least": 5, "aim": 8}]
    monkeypatch.setattr(gpu_step, "small_network", lambda *_: rows)
    monkeypatch.setattr(gpu_step, "large_network", lambda *_: [][1])
    with pytest.raises(IndexError):
        gpu_step.main([])
    assert json.loads((tmp_path / "gpu_step.json").read_text())["rows"] == rows


def test_a_machine_without_git_has_no_commit(monkeypatch):
    assert readme.commit()
    monkeypatch.setenv("PATH", "")
    assert readme.commit() == ""


def test_a_trial_that_never_comes_is_waited_for_in_vain_for_a_while_only(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PATIENCE", 0.1)
    with pytest.raises(TrainingError, match=r"\b2 trials"):
        packing.alone("cpu", 1, 0, str(tmp_path), 2)


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


def test_the_row_of_the_large_network_is_of_the_engines_own_steps(monkeypatch):
    seen, step = [], Engine.step

    def watched(engine, batch, lr, number, progress, shape):
        seen.append((number, shape, engine.smoothing is not None, type(engine.network).__name__))
        return step(engine, batch, lr, number, progress, shape)

    monkeypatch.setattr(Engine, "step", watched)
    (row,) = gpu_step.large_network("cpu", 1)
    assert seen == [(0, BatchShape(32, 2), True, "ResNet")]  # one is under way: it gives each number before its step
    assert row["ratio"] == row["per_second"]["engine"]["median"] / row["per_second"]["roofline"]["median"]
    assert row["said"] == ["steps are issued one by one: capturing is switched off"]
