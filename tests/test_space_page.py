"""docs/space.md lists every key of a search space with its default, and nothing else."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from mixtune.config import to_plain
from mixtune.data.augment import Augment
from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.evaluation.score import Score
from mixtune.optim.distillation import Distillation
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget
from mixtune.search.candidates import Search
from mixtune.search.domains import Range
from mixtune.search.fidelity import Fidelity
from mixtune.search.final import Final
from mixtune.search.space import Named, Resources, Space
from mixtune.search.timeouts import Timeouts
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.run import Evaluation

PAGE = (Path(__file__).parents[1] / "docs/space.md").read_text()
SECTIONS = {
    "The file": Space,
    "task": ClassificationConfig,
    "task.augment": Augment,
    "base": BatchShape,
    "budget": Budget,
    "evaluate": Evaluation,
    "evaluate.recalibrate": Recalibration,
    "search": Search,
    "score": Score,
    "fidelity": Fidelity,
    "sampler and pruner": Named,
    "final": Final,
    "resources": Resources,
    "limits": Timeouts,
    "recipe": Recipe,
    "recipe.distill": Distillation,
}


def rows(section):
    """The section's table: key -> default as it is written; "" where there is none."""
    text = re.split(r"^#+ ", PAGE.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    return {k: d.strip("` ") for k, d in re.findall(r"^\| `(\w+)` \| ([^|]*)\|", text, re.MULTILINE)}


def as_written(value):
    """A default as a file would have it."""
    match value:
        case Named():
            return value.name
        case Range():
            return {"low": value.low, "high": value.high}
        case tuple():
            return [round(v, 4) if isinstance(v, float) else v for v in value]
    return to_plain(value)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_there_with_its_default(section):
    found = rows(section)
    assert list(found) == [f.name for f in fields(SECTIONS[section])]
    for f in fields(SECTIONS[section]):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if (
            default is MISSING
            or default is None
            or (type(default) in SECTIONS.values() and not isinstance(default, Named))
        ):
            assert found[f.name] == ""  # must be given, is decided elsewhere, or has a section of its own
        else:
            assert yaml.safe_load(found[f.name]) == as_written(default), f.name


def test_every_section_has_a_test():
    titles = re.findall(r"^##+ (.+)", PAGE, re.MULTILINE)
    assert titles == list(SECTIONS)
