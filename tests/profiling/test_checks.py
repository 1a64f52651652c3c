"""What is told of a study before anything of it is measured."""

import re
from dataclasses import replace

import pytest

from mixtune import prepare
from mixtune.config import load_config, parse
from mixtune.errors import InputError
from mixtune.profiling.checks import check_batches, check_data, expected_images
from mixtune.search import __main__ as search_command
from mixtune.search.space import Space
from mixtune.tasks.classification import Classification
from tests.accounts import ROOT
from tests.conftest import TINY
from tests.data.test_datasets import write
from tests.data.test_tar_index import packed

FILES = TINY | {"base": {"S": 8, "B": 4}, "budget": {"epochs": 4}}
FEW = {"base": {"S": 8, "B": 9, "D": 3}, "budget": {"epochs": 20}, "task": TINY["task"] | {"samples": 20}}


def on_files(folder, **changes):
    task = {"dataset": "imagenet", "network": "cifar_resnet8", "validation": 0.25, "data": str(folder)} | changes
    return FILES | {"task": task}


def prepared(loose, out):
    assert prepare.main(["--data", str(loose), "--out", str(out), "--size", "12"]) == 0
    return out


@pytest.mark.parametrize("make", [lambda loose, out: loose, packed, prepared], ids=["files", "archives", "prepared"])
@pytest.mark.parametrize("changes", [{}, {"classes": 2}, {"samples": 30}])
def test_a_dry_run_counts_the_images_that_are_there_as_the_loader_does(make, changes, tmp_path, space_file, capsys):
    loose = write(tmp_path / "loose", n=14, classes=("ant", "bee", "longer name"))
    settings = on_files(make(loose, tmp_path / "out"), **changes)
    capsys.readouterr()
    assert search_command.main(["--space", str(space_file(settings)), "--dry-run"]) == 0
    n = Classification(parse(settings, Space, "f").task, device="cpu").n_train
    assert n == {"classes": 20, "samples": 24}.get(next(iter(changes), ""), 30)
    assert capsys.readouterr().out.startswith(f"{n} training images; base 8x4")


def test_a_dry_run_without_the_data_says_so_and_one_that_measures_needs_them(tmp_path, capsys):
    file, nowhere = str(ROOT / "search_spaces/imagenet.yaml"), tmp_path / "nothing"
    words = ["--space", file, "--set", f"task.data={nowhere}", "--dry-run"]
    assert search_command.main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"1,255,544 training images of the full ImageNet (nothing is at {nowhere}/train yet); base")
    with pytest.raises(InputError, match=rf"no imagenet images in {re.escape(str(nowhere))}: the folder train/"):
        search_command.main([*words, "--measure"])
    assert capsys.readouterr().out == ""


def test_data_that_are_there_in_part_or_too_few_are_refused_and_not_taken_for_the_full_set(tmp_path, capsys):
    file = str(ROOT / "search_spaces/imagenet.yaml")
    few = write(tmp_path / "few")
    for flags in ([], ["--measure"]):
        with pytest.raises(InputError, match="there are 4 to train on"):
            search_command.main(["--space", file, "--set", f"task.data={few}", "--dry-run", *flags])
    (tmp_path / "part/val").mkdir(parents=True)
    space = load_config(file, Space)
    with pytest.raises(InputError, match="the folder train/ with one folder per class is missing"):
        expected_images(replace(space, task=replace(space.task, data=str(tmp_path / "part"))), file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "said", "key"),
    [
        ({"base": {"S": 8, "B": 500}}, r"f: base: .*8x500.*base\.B (\d+)", "B"),
        ({"base": {"S": 8, "B": 110}}, r"f: search\.sizes: 4 px .* 440 .*base\.B (\d+)", "B"),
        (FEW, r"base\.B (\d+)", "B"),
        ({"resources": {"workers": 15}}, r"f: resources\.workers: .* resources\.workers to (\d+)", "workers"),
        ({"budget": {"epochs": 0.01}}, r"f: budget\.epochs: .*budget\.epochs=([\d.]+)", "epochs"),
    ],
)
def test_what_is_refused_is_refused_with_the_number_that_would_do(changes, said, key):
    """With it the same space is taken; with one more, where more is too many, it is not."""
    n = 15 if "task" in changes else 300
    with pytest.raises(InputError, match=said) as err:
        check_batches(parse(TINY | changes, Space, "f"), n, "f")
    number = float(re.search(said, str(err.value))[1])
    section = {"B": "base", "workers": "resources", "epochs": "budget"}[key]

    def tried(value):
        return parse(TINY | changes | {section: changes[section] | {key: value}}, Space, "f")

    check_batches(tried(number if key == "epochs" else int(number)), n, "f")
    if key != "epochs":
        with pytest.raises(InputError):
            check_batches(tried(int(number) + 1), n, "f")


def test_with_folds_the_images_of_the_other_folds_are_counted():
    space = parse(TINY | {"folds": 5}, Space, "f")
    assert check_data(space, "f") == pytest.approx(320, abs=1)  # as many of every class as there can be
    assert expected_images(space, "f") == (320, "")
