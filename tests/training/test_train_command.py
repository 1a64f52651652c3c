import csv
import io

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mixtune.cli import ProgressBar, format_duration
from mixtune.config import to_plain
from mixtune.errors import InputError
from mixtune.regime.files import save_regime
from mixtune.tasks.classification import Classification
from mixtune.train import main
from mixtune.training.run_folder import FinishedRun
from tests.training.test_loop import config, regime, same


@pytest.fixture
def regime_file(tmp_path):
    save_regime(tmp_path / "regime.yaml", regime(), to_plain(config()))
    return str(tmp_path / "regime.yaml")


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def score(printed):
    return next(line for line in printed if line.startswith("score"))


def test_out_holds_everything_and_the_same_command_again_repeats_the_result(regime_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--regime", regime_file, "--out", str(out)]) == 0
    first = lines(capsys)
    written = {"checkpoint.pt", "weights.safetensors", "regime.yaml", "curve.csv", "result.yaml"}
    assert {p.name for p in out.iterdir()} == written
    weights = load_file(out / "weights.safetensors")
    with (out / "curve.csv").open() as file:
        assert [row["S"] for row in csv.DictReader(file)] == ["8", "12"]
    assert main(["--regime", regime_file, "--out", str(out)]) == 0
    second = lines(capsys)
    assert any(line.startswith("resuming") for line in second)
    assert score(first) == score(second)
    assert same(load_file(out / "weights.safetensors"), weights)
    # The folder's own regime file repeats the run, too.
    assert main(["--regime", str(out / "regime.yaml")]) == 0
    assert score(lines(capsys)) == score(first)


def test_the_result_says_on_which_images_and_where_it_was_made(regime_file, tmp_path):
    for flags, judge in ([], "validation"), (["--test"], "test"):
        main(["--regime", regime_file, "--out", str(tmp_path / judge), *flags])
        said = yaml.safe_load((tmp_path / judge / "result.yaml").read_text())
        trained = FinishedRun.read(tmp_path / judge)
        assert said["judge"] == trained.judge == judge
        task = Classification(trained.config.task, judge)
        assert said["images"] == {"trained": task.n_train, "judged": len(task._held_out)}
        assert said["score"] == trained.config.score.of(trained.curve)
        assert said["environment"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_folder_of_another_run_is_refused(regime_file, tmp_path):
    out = str(tmp_path / "out")
    assert main(["--regime", regime_file, "--out", out]) == 0
    with pytest.raises(InputError, match="another regime, recipe, task or seed"):
        main(["--regime", regime_file, "--out", out, "--set", "recipe.lr=0.01"])


def test_several_seeds_give_mean_and_deviation(regime_file, tmp_path, capsys):
    assert main(["--regime", regime_file, "--seeds", "2", "--out", str(tmp_path / "out")]) == 0
    assert any("±" in line for line in lines(capsys))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["seed0", "seed1"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_says_speed_and_time_left():
    clock = iter(range(0, 1000, 2))
    stream = Terminal()
    bar = ProgressBar(100, stream, lambda: next(clock))
    for step in range(41, 51):  # a run that was resumed after 40 steps, 2 s a step
        bar.step(step, 64)
    last = stream.getvalue().split("\r")[-1]
    assert "50 %" in last
    assert "32 views/s" in last
    assert "1 min 40 s left" in last
    assert last.count("█") == last.count("░") == 15


def test_no_bar_where_there_is_no_terminal():
    stream = io.StringIO()
    bar = ProgressBar(10, stream)
    for step in range(1, 11):
        bar.step(step, 1)
    bar.clear()
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("seconds", "said"), [(4.4, "4 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds, said):
    assert format_duration(seconds) == said
