"""A task of some of the classes: which they are, and that every later step of a run's life keeps to them."""

import dataclasses
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from mixtune import evaluate, export, prepare, train
from mixtune.config import parse, to_plain
from mixtune.data import datasets
from mixtune.data.class_subset import select_classes
from mixtune.errors import InputError
from mixtune.models.registry import create_network
from mixtune.optim.distillation import Distillation
from mixtune.regime.files import save_regime
from mixtune.tasks.classification import Classification
from mixtune.tasks.classification_config import ClassificationConfig
from tests.data.test_datasets import write
from tests.training.test_loop import config, regime

NAMES = ["tench", "goldfish", "shark", "ray", "cock", "hen", "ostrich", "finch"]


def test_the_choice_follows_from_the_names_alone():
    by_digest = sorted(NAMES, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    for n in range(2, len(NAMES) + 1):
        assert {NAMES[i] for i in select_classes(NAMES, n)} == set(by_digest[:n])
        assert select_classes(NAMES, n) == sorted(select_classes(NAMES, n))
        fewer = [name for name in NAMES if name in by_digest[: max(n, 5)]]  # a folder that holds only these
        assert [fewer[i] for i in select_classes(fewer, n)] == [NAMES[i] for i in select_classes(NAMES, n)]


def test_images_keep_their_class_under_its_new_number():
    whole, some = datasets.load_dataset("digits", None), datasets.load_dataset("digits", None, 4)
    kept = [int(name) for name in some.names]
    assert (some.classes, len(kept), kept) == (4, 4, sorted(kept))
    for before, after in ((whole.train, some.train), (whole.test, some.test)):
        there = np.flatnonzero(np.isin(before.labels.numpy(), kept))
        assert torch.equal(after.images, before.images[there])
        assert [kept[label] for label in after.labels] == before.labels[there].tolist()
    task = Classification(ClassificationConfig("digits", "cifar_resnet8", classes=4, samples=200), device="cpu")
    assert task.n_train + task.n_judged == 200
    assert set(task.train_source.labels.tolist()) == set(range(4))
    assert task.network(0)(torch.rand(1, 3, 8, 8)).shape == (1, 4)


def test_cifar_and_a_folder_are_divided_by_the_names_they_come_with(tmp_path, monkeypatch):
    import torchvision

    class Cifar(SimpleNamespace):
        base_folder = filename = "cifar"

        def __init__(self, root, train, download):
            images = np.random.default_rng(train).integers(0, 256, (80, 32, 32, 3), np.uint8)
            super().__init__(data=images, targets=[i % 8 for i in range(80)], classes=NAMES)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    datasets.load_dataset.cache_clear()
    assert [NAMES.index(name) for name in datasets.load_dataset("cifar10", str(tmp_path), 3).names] == select_classes(
        NAMES, 3
    )
    datasets.load_dataset.cache_clear()
    found = datasets.load_dataset("folder", str(write(tmp_path / "images", classes=NAMES)), 3)
    assert set(found.names) == {NAMES[i] for i in select_classes(NAMES, 3)}
    for files in (found.train, found.test):
        assert [path.split("/")[-2] for path in files.paths] == [found.names[label] for label in files.labels]


def test_a_prepared_folder_gives_the_same_classes(tmp_path):
    prepare.main(["--data", str(write(tmp_path / "a", classes=NAMES)), "--out", str(tmp_path / "b"), "--size", "16"])
    assert (
        datasets.load_dataset("folder", str(tmp_path / "a"), 3).names
        == datasets.load_dataset("folder", str(tmp_path / "b"), 3).names
    )


def test_what_cannot_be_chosen_is_one_sentence():
    with pytest.raises(InputError, match=r"^task\.classes: digits has 10 classes, not 11$"):
        datasets.load_dataset("digits", None, 11)
    with pytest.raises(InputError, match="classes must be at least 2, not 1"):
        parse({"dataset": "digits", "network": "resnet18", "classes": 1}, ClassificationConfig, "f")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on four of the digits, as mixtune.train writes it."""
    folder, whole = tmp_path_factory.mktemp("some"), config()
    some = dataclasses.replace(whole, task=dataclasses.replace(whole.task, classes=4))
    save_regime(folder / "regime.yaml", regime(), to_plain(some))
    train.main(["--regime", str(folder / "regime.yaml"), "--out", str(folder / "out")])
    return folder / "out"


def test_a_run_says_which_classes_it_tells_apart_and_is_judged_on_them(trained, tmp_path):
    names = datasets.load_dataset("digits", None, 4).names
    assert yaml.safe_load((trained / "result.yaml").read_text())["classes"] == list(names)
    with safe_open(trained / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["class_names"]) == list(names)
    evaluate.main(["--weights", str(trained), "--out", str(tmp_path)])
    assert (tmp_path / "curve.csv").read_text() == (trained / "curve.csv").read_text()
    export.main(["--run", str(trained), "--network", str(tmp_path), "--formats", "safetensors"])
    about = yaml.safe_load((tmp_path / "deploy.yaml").read_text())
    assert (about["classes"], about["class_names"]) == (4, list(names))


def test_weights_for_other_classes_are_refused_or_lose_their_head(trained, tmp_path):
    names, weights = list(datasets.load_dataset("digits", None, 4).names), str(trained / "weights.safetensors")
    for n in (3, 5):
        with pytest.raises(InputError, match=rf"for other classes than this task's: 4, and here are {n}; the first"):
            evaluate.main(["--weights", str(trained), "--set", f"task.classes={n}"])
    others = [*names[:3], "ten"]
    said = rf"the first that differs is {names[3]} there and ten here$"
    with pytest.raises(InputError, match=said):
        Distillation("cifar_resnet8", weights).teacher(4, torch.device("cpu"), others)
    Distillation("cifar_resnet8", weights).teacher(4, torch.device("cpu"), names)
    fresh = create_network("cifar_resnet8", 4, seed=1).state_dict()
    for its, kept in ((names, True), (others, False)):
        begun = create_network("cifar_resnet8", 4, seed=1, weights=weights, names=its).state_dict()
        (head,) = (k for k in fresh if fresh[k].shape[:1] == (4,) and fresh[k].ndim == 2)
        assert torch.equal(begun[head], fresh[head]) is not kept
        assert not any(torch.equal(begun[k], fresh[k]) for k in fresh if fresh[k].ndim == 4)
