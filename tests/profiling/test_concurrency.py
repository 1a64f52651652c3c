"""What a trial takes of machines that are not alike, and how many run at once."""

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.profiling.concurrency import Concurrency, concurrency_for, unused_gpus
from mixtune.search.space import Space
from tests.conftest import TINY


def space(**resources):
    return parse(TINY | {"resources": resources}, Space, "f")


def fitted(nodes, **resources):
    """The slots on these machines, and what is said of GPUs that stay unused."""
    wanted = space(**resources)
    slots = concurrency_for(wanted, sum(c for c, _ in nodes), sum(g for _, g in nodes), nodes)
    return slots, unused_gpus(wanted, slots, nodes)


@pytest.mark.parametrize(
    ("nodes", "cpus", "at_once"),
    [
        ([(64, 0), (64, 8)], 8, 8),  # a head without GPUs lends its cores to nobody
        ([(32, 8), (192, 8)], 4, 16),
        ([(64, 8), (16, 1), (64, 4)], 8, 13),
        ([(64, 8)], 8, 8),
    ],
)
def test_every_gpu_has_a_trial_whatever_else_its_machine_is(nodes, cpus, at_once):
    assert fitted(nodes) == (Concurrency(cpus, 1, at_once), "")


@pytest.mark.parametrize(
    ("nodes", "resources", "at_once", "said"),
    [
        ([(2, 8), (64, 8)], {}, 10, "6 of 16 GPUs stay unused: a machine has fewer CPU cores than"),
        ([(32, 8), (192, 8)], {"cpus": 14}, 10, "6 of 16 GPUs stay unused: resources.cpus is 14, and with 4 all would"),
        ([(64, 8)], {"at_once": 7}, 7, "1 of 8 GPUs stays unused: resources.at_once is 7"),
        ([(64, 8)] * 2, {"workers": 6}, 2, "4 of 16 GPUs stay unused: a trial takes 6, and machines have 8 + 8"),
        ([(64, 8), (64, 1)], {"gpus": 2}, 4, "1 of 9 GPUs stays unused: a trial takes 2, and machines have 8 + 1"),
        ([(64, 8)] * 2, {"gpus": 0.3}, 48, ""),  # a tenth of every GPU is nobody's
        ([(8, 1)], {"gpus": 0.5, "at_once": 1}, 1, ""),
        ([(8, 8)], {"gpus": 0}, 8, ""),
    ],
)
def test_gpus_that_stay_unused_are_told_with_the_reason(nodes, resources, at_once, said):
    slots, idle = fitted(nodes, **resources)
    assert slots.at_once == at_once
    assert idle.startswith(said)
    assert bool(idle) == bool(said)


def test_what_no_machine_has_is_refused_with_the_number_that_one_has():
    with pytest.raises(InputError, match=r"resources\.gpus: a trial asks for 4 GPUs and no machine has more than 2"):
        fitted([(8, 2), (8, 2)], gpus=4)
    with pytest.raises(
        InputError, match=r"resources\.cpus: a trial asks for 12 CPU cores and no machine has more than 8"
    ):
        fitted([(8, 2), (8, 2)], cpus=12)


def test_trials_that_share_a_gpu_leave_none_unused():
    nodes = [(64, 8)]
    assert unused_gpus(space(), Concurrency(8, 1, 32, pack=4), nodes) == ""
    assert unused_gpus(space(at_once=12), Concurrency(8, 1, 12, pack=2), nodes).startswith(
        "2 of 8 GPUs stay unused: resources.at"
    )
