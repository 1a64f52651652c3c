"""What a trial takes of machines that are not alike, and how many run at once."""

import pytest

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.profiling.concurrency import Concurrency, concurrency_for, pack_limit, packed, unused_gpus
from mixtune.profiling.packing import WORTH
from mixtune.search.space import Space
from tests.conftest import TINY


def space(**resources):
    return parse(TINY | {"resources": resources}, Space, "f")


def fitted(nodes, **resources):
    """The concurrency on these machines, and what is said of GPUs that stay unused."""
    concurrency = concurrency_for(space(**resources), nodes)
    return concurrency, unused_gpus(concurrency, nodes)


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
    ("nodes", "resources", "at_once", "unused"),
    [
        ([(2, 8), (64, 8)], {}, 10, "6 of 16 "),
        ([(32, 8), (192, 8)], {"cpus": 14}, 10, "6 of 16 GPUs stay unused; resources.cpus 4 "),
        ([(64, 8)], {"at_once": 7}, 7, "1 of 8 "),
        ([(64, 8)] * 2, {"workers": 6}, 2, "4 of 16 "),
        ([(64, 8), (64, 1)], {"gpus": 2}, 4, "1 of 9 "),
        ([(64, 8)] * 2, {"gpus": 0.3}, 48, ""),  # a tenth of every GPU is nobody's
        ([(8, 1)], {"gpus": 0.5, "at_once": 1}, 1, ""),
        ([(8, 8)], {"gpus": 0}, 8, ""),
    ],
)
def test_gpus_that_stay_unused_are_counted(nodes, resources, at_once, unused):
    concurrency, text = fitted(nodes, **resources)
    assert concurrency.at_once == at_once
    assert text.startswith(unused)
    assert bool(text) == bool(unused)


def test_what_no_machine_has_is_refused_with_the_number_that_one_has():
    with pytest.raises(InputError, match=r"resources\.gpus: .*4 GPUs .* 2"):
        fitted([(8, 2), (8, 2)], gpus=4)
    with pytest.raises(InputError, match=r"resources\.cpus: .*12 CPU cores .* 8"):
        fitted([(8, 2), (8, 2)], cpus=12)


def test_trials_that_share_a_gpu_leave_none_unused():
    assert unused_gpus(Concurrency(8, 1, 32, pack=4), [(64, 8)]) == ""
    assert unused_gpus(Concurrency(8, 1, 12, pack=2), [(64, 8)]).startswith("2 of 8 GPUs")


@pytest.mark.parametrize(
    ("resources", "gpus", "fastest", "at_once", "pack"),
    [
        ({}, 0, None, 2, 1),  # CPU cores: a process per trial
        ({}, 1, 8, 8, 8),
        ({}, 2, 8, 16, 8),
        ({}, 1, 1, 2, 1),  # one trial fills the GPU
        ({"gpus": 0.5}, 1, None, 2, 1),  # a share was asked for
        ({"pack": 3}, 1, None, 3, 3),
        ({"pack": 4, "at_once": 2}, 1, None, 2, 2),
        ({"at_once": 4}, 2, 2, 4, 2),
    ],
)
def test_how_many_share_a_gpu_is_asked_for_or_measured(resources, gpus, fastest, at_once, pack):
    wanted, alone = space(**resources), Concurrency(1, float(gpus > 0), 2)
    speeds = {2**k: WORTH ** min(k, (fastest or 1).bit_length() - 1) for k in range(5)} if fastest else {}
    shared = packed(wanted, alone, gpus, speeds)
    assert (shared.at_once, shared.pack) == (at_once, pack)
    assert shared.gain == pytest.approx(speeds.get(pack, 1.0))  # the forecast's hours count on it


def test_trials_on_image_files_or_on_several_processes_have_a_gpu_of_their_own():
    files = parse(TINY | {"task": TINY["task"] | {"dataset": "folder", "data": "nowhere"}}, Space, "f")
    alone = Concurrency(8, 1, 8)
    assert pack_limit(space(), alone, 8) > 1
    assert pack_limit(files, alone, 8) == 1
    assert pack_limit(space(workers=2), Concurrency(8, 1, 4, workers=2), 8) == 1
