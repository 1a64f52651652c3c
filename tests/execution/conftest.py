import os
import uuid

import pytest
from ray.util.placement_group import placement_group, remove_placement_group

from mixtune.execution import ray_tune, worker_group


@pytest.fixture(scope="package")
def mark():
    """In the environment of all that the cluster starts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MIXTUNE_MARK", uuid.uuid4().hex)
        yield os.environ["MIXTUNE_MARK"]


@pytest.fixture(scope="package")
def cluster(mark):
    """Ray on this machine with two CPUs and what it takes for a GPU, started once: that takes seconds."""
    ray_tune.connect(None, 2, 1)
    yield
    ray_tune.disconnect()


@pytest.fixture
def group(cluster):
    """Room for two processes of a trial."""
    made = placement_group([worker_group.resource_bundle(1, 0)] * 2)
    yield made
    remove_placement_group(made)
