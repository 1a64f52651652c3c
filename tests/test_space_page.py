"""docs/space.md lists every key of a search space with its default, and nothing else."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from mixtune.config import plain
from mixtune.regime import BatchShape, Budget
from mixtune.study.space import Named, Resources, Space
from mixtune.study.space.candidates import Search
from mixtune.study.space.fidelity import Fidelity
from mixtune.study.space.final import Final
from mixtune.study.space.knobs import Range
from mixtune.study.space.limits import Limits
from mixtune.training.calibration import Recalibration
from mixtune.training.images.views import Augment
from mixtune.training.learning.distillation import Distillation
from mixtune.training.learning.recipe import Recipe
from mixtune.training.run import Evaluation
from mixtune.training.score import Score
from mixtune.training.task_config import TaskConfig

PAGE = (Path(__file__).parents[1] / "docs/space.md").read_text()
SECTIONS = {
    "The file": Space,
    "task": TaskConfig,
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
    "limits": Limits,
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
    return plain(value)


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
