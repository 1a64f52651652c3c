import pytest

from mixtune.config import parse, to_plain
from mixtune.errors import InputError
from mixtune.search.space import Space
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.tasks.config import TaskConfig
from mixtune.training.checkpoint import non_default_fields

DIGITS = {"dataset": "digits", "network": "cifar_resnet8"}


def test_a_section_without_a_kind_is_of_classification(tiny):
    space = parse(tiny, Space, "f")
    assert isinstance(space.task, ClassificationConfig)
    named = parse(tiny | {"task": {"kind": "classification", **tiny["task"]}}, Space, "f")
    assert named == space
    assert named.digest() == space.digest()
    assert "kind" not in non_default_fields(space.task)  # a study of a version that knew no kinds is the same study


def test_a_section_survives_being_written():
    config = ClassificationConfig("digits", "cifar_resnet8", samples=200, folds=3, fold=1)
    assert parse(to_plain(config), TaskConfig, "f") == config


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "clasification"}, r"f: task.*clasification.*did you mean 'classification'"),
        ({"augmet": {}}, r"f: unknown key task\.augmet; did you mean 'augment'"),
        ({"augment": {"pads": 1}}, r"f: unknown key task\.augment\.pads; did you mean 'pad'"),
        ({"dataset": "mnist"}, r"f: task\.dataset must be .*'mnist'"),
        ({"classes": 1}, r"f: task: classes must be at least 2"),
        ({"validation": 1.0}, r"f: task: validation .* not 1\.0"),
        ({"samples": "many"}, r"f: task\.samples"),
    ],
)
def test_a_mistake_is_named_with_its_key(tiny, task, message):
    with pytest.raises(InputError, match=message):
        parse(tiny | {"task": tiny["task"] | task}, Space, "f")


def test_a_section_that_is_none_is_named(tiny):
    with pytest.raises(InputError, match=r"f: task: .*'digits'"):
        parse(tiny | {"task": "digits"}, Space, "f")


def test_a_missing_key_is_named(tiny):
    with pytest.raises(InputError, match=r"f: task\.network is missing"):
        parse(tiny | {"task": {"dataset": "digits"}}, Space, "f")
