import re

import pytest
import torch

from mixtune import cli, train
from mixtune.config import parse, to_plain
from mixtune.regime import BatchShape, published
from mixtune.regime.files import load_regime, save_regime
from mixtune.search.space import Space

pytestmark = pytest.mark.arithmetic


@pytest.fixture
def regime_file(tmp_path, tiny):
    """A regime file as a search writes it."""
    space = parse(tiny, Space, "f")
    path = tmp_path / "regime.yaml"
    save_regime(path, published("multiscale", space.base, [4, 8, 12], 4), to_plain(space.training(1)))
    return path


def scores(text):
    return re.findall(r"^score +(\S+)", text, re.MULTILINE)


def test_the_same_seed_gives_the_same_score_and_weights(regime_file, tmp_path, capsys):
    from safetensors.torch import load_file

    for out in ("a", "b"):
        train.main(["--regime", str(regime_file), "--out", str(tmp_path / out)])
    first, second = scores(capsys.readouterr().out)
    assert first == second
    a, b = (load_file(tmp_path / out / "weights.safetensors") for out in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_written_re_trains_itself(regime_file, tmp_path, capsys):
    train.main(["--regime", str(regime_file), "--seed", "3", "--out", str(tmp_path / "out")])
    train.main(["--regime", str(tmp_path / "out" / "regime.yaml")])
    first, second = scores(capsys.readouterr().out)
    assert first == second
    assert load_regime(tmp_path / "out" / "regime.yaml")[1]["seed"] == 3


def test_several_seeds_give_mean_and_deviation(regime_file, capsys):
    train.main(["--regime", str(regime_file), "--seeds", "2", "--set", "evaluate.reports=1"])
    text = capsys.readouterr().out
    assert len(set(scores(text))) == 2
    assert re.search(r"8 px +\d+\.\d+ ± \d+\.\d+", text)


def test_a_published_regime_trains_with_a_search_space(tmp_path, tiny, space_file, capsys):
    path = tmp_path / "fixed.yaml"
    save_regime(path, published("fixed", BatchShape(8, 32), [8], 4))
    train.main(["--regime", str(path), "--space", str(space_file(tiny)), "--test"])
    text = capsys.readouterr().out
    assert re.search(r"^task .*\bdigits\b.*\b400 images\b.*\btest set\b", text, re.MULTILINE)
    assert len(scores(text)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--regime", "{missing}"], r"no\.yaml"),
        (["--regime", "{bare}"], r"bare\.yaml.*\btraining\b.*--space"),
        (["--regime", "{file}", "--seeds", "0"], "--seeds .*1.*0"),
        (["--regime", "{file}", "--set", "recipe.lrr=1"], r"regime\.yaml: training: .*\brecipe\.lrr\b.*'lr'"),
        (["--regime", "{file}", "--set", "task.network=resnet18"], r"\b4 px\b.*\bresnet18\b.*\b32\b"),
        (["--regime", "{file}", "--out", "{file}/x"], r"--out .*regime\.yaml/x"),
        (["--regime", "{file}", "--set", "device=cuda"], "CUDA"),
        (["--regime", "{file}", "--set", "task.samples=60"], r"\b128 distinct"),
        (
            ["--regime", "{file}", "--set", "task.dataset=cifar10", "--set", "task.data={empty}"],
            r"task\.data: .*\bCIFAR10\b.*/e\b",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_two(tmp_path, regime_file, capsys, monkeypatch, arguments, message):
    if "cuda" in str(arguments) and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    save_regime(tmp_path / "bare.yaml", published("fixed", BatchShape(8, 32), [8], 4))
    known = {
        "missing": tmp_path / "no.yaml",
        "bare": tmp_path / "bare.yaml",
        "file": regime_file,
        "empty": tmp_path / "e",
    }
    filled = [a.format(**known) for a in arguments]
    with pytest.raises(SystemExit) as stop:
        cli.run_command(lambda: train.main(filled))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1


def test_a_loss_that_is_no_number_ends_with_a_sentence(regime_file, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run_command(lambda: train.main(["--regime", str(regime_file), "--set", "recipe.lr=1e30"]))
    assert stop.value.code == 1
    assert re.search(r"^failed: .*\brecipe\.lr\b", capsys.readouterr().err)


def test_more_ranks_than_gpus_are_refused(regime_file, monkeypatch):
    from contextlib import nullcontext

    from mixtune.errors import InputError
    from mixtune.runtime import rendezvous
    from mixtune.runtime.process_group import ProcessGroup

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(rendezvous, "torchrun_group", lambda: nullcontext(ProcessGroup(0, 2, 2)))
    with pytest.raises(InputError, match=r"--nproc-per-node 2\b.*\b1\b.*device=cpu"):
        train.main(["--regime", str(regime_file)])


def test_another_number_of_ranks_than_the_trials_is_said(regime_file, capsys):
    arguments = ["--regime", str(regime_file), "--set", "evaluate.reports=1", "--set", "ranks=4"]
    train.main(arguments)
    assert re.search(r"^note .*\b4 ranks\b.*\brecipe\.sync_bn\b", capsys.readouterr().out, re.MULTILINE)
    train.main([*arguments, "--set", "recipe.sync_bn=true"])
    assert "note " not in capsys.readouterr().out


def test_a_regime_of_a_study_with_folds_gives_the_studys_score_on_all_of_them(tmp_path, tiny, capsys):
    from mixtune.execution.trial import TrialSpec, trial_reports
    from mixtune.execution.trial_config import make_candidate, trial_config
    from mixtune.runtime.process_group import SINGLE_PROCESS
    from mixtune.search.final import Repeat
    from mixtune.study.repeats import whole

    space = whole(parse(tiny | {"folds": 2, "score": {"measure": "mean"}}, Space, "f"), "leaders")
    noted = {"published": "multiscale", "repeat": vars(Repeat(1, 0, "leaders"))}
    trial = make_candidate(space, 1, space.published_params("multiscale", 4), noted, tmp_path)
    config = trial_config(space, trial, space.training(1), tmp_path / "0000.pt")
    *_, last = trial_reports(SINGLE_PROCESS, TrialSpec.from_config(config))
    train.main(["--regime", str(trial.folder / "regime.yaml"), "--out", str(tmp_path / "out")])
    text = capsys.readouterr().out
    first, second, mean = scores(text)
    assert mean == repr(last["score"])
    assert float(mean) == pytest.approx((float(first) + float(second)) / 2)
    assert "mean over 2 folds" in text
    assert (tmp_path / "out" / "fold1" / "curve.csv").exists()
    train.main(["--regime", str(trial.folder / "regime.yaml"), "--set", "task.fold=1"])
    assert scores(capsys.readouterr().out) == [second]
