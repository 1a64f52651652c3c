"""Each task holds to the contract, and the second one needs nothing outside of its module."""

import pytest

from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.tasks.registry import TASKS
from tests.tasks import ink
from tests.tasks.contract import TaskContract


class TestClassification(TaskContract):
    @pytest.fixture
    def config(self):
        return ClassificationConfig("digits", "cifar_resnet8", samples=160, validation=0.25)


class TestInk(TaskContract):
    @pytest.fixture
    def config(self, monkeypatch):
        monkeypatch.setitem(TASKS, "ink", ink.PLACE)
        return ink.InkConfig("digits", "fcn", kind="ink", samples=160, validation=0.25)
