"""Several ranks learn what one device learns at the same global batch."""

import numpy as np
import pytest
import torch

from mixtune.errors import InputError
from mixtune.regime import Shard
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from tests.ranks import on_ranks
from tests.training import on_ranks as work

pytestmark = pytest.mark.arithmetic


def largest_difference(a, b):
    assert set(a) == set(b)
    return max(float(np.abs(a[k] - b[k]).max()) for k in a)


@pytest.fixture(scope="module")
def alone():
    """One device's double-precision run with smoothing, an average and recalibrated statistics."""
    return work.learn(SINGLE_PROCESS, dict(ema=0.9), True)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_learn_what_one_device_learns(world, alone):
    """Uneven shapes, copies, gradient smoothing, an average of the weights, and evaluation shared out."""
    found = on_ranks(world, work.learn, dict(ema=0.9, sync_bn=True), True)
    weights, reports, chosen = alone
    for other, told, selected in found:
        assert largest_difference(weights, other) < 1e-11
        assert selected == chosen
        for a, b in zip(reports, told, strict=True):
            assert (a["step"], a["lr"]) == (b["step"], b["lr"])
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
            for p, q in zip(a["curve"], b["curve"], strict=True):
                assert p == pytest.approx(q, rel=1e-5)
    assert all(largest_difference(found[0][0], other[0]) == 0 for other in found)
    assert all(other[1] == found[0][1] for other in found)


def test_partners_of_mixup_and_cutmix_come_from_any_rank():
    whole = work.blended(SINGLE_PROCESS, 0.2, 1.0)
    parts = on_ranks(3, work.blended, 0.2, 1.0)
    for (x, y), mine in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(np.concatenate([a for a, _ in mine]), x)
        assert np.array_equal(np.concatenate([b for _, b in mine]), y)


def test_mixup_learns_the_same():
    recipe = dict(mixup=0.2, cutmix=1.0, sync_bn=True)
    weights, reports, _ = work.learn(SINGLE_PROCESS, recipe)
    (other, told, _), again = on_ranks(2, work.learn, recipe)
    assert largest_difference(weights, other) < 1e-11
    assert [r["loss"] for r in told] == pytest.approx([r["loss"] for r in reports], rel=1e-6)
    assert largest_difference(again[0], other) == 0


@pytest.mark.parametrize("recipe", [{}, dict(groups=2, frozen=0.4)], ids=["all", "frozen first"])
def test_averages_of_the_wrapper_come_to_the_sums_of_weighted_gradients(recipe):
    """Uneven parts; layers that are frozen for the first steps and move later."""
    recipe = dict(smoothing=False) | recipe
    found, sums = on_ranks(3, work.learn, recipe), on_ranks(3, work.own_sums, recipe)
    assert largest_difference(found[0][0], sums[0]) < 1e-11
    assert all(largest_difference(found[0][0], other[0]) == 0 for other in found)


def test_ranks_begin_with_the_weights_of_the_first():
    (first, after, same), (other, its, names) = on_ranks(2, work.wrapped)
    assert largest_difference(first, other) > 0.1
    assert largest_difference(first, after) == largest_difference(first, its) == 0
    assert same
    assert names


def test_without_sync_bn_each_rank_is_a_batch_of_its_own():
    """The oracle: one device that goes over the ranks' parts one by one and adds up their weighted gradients."""
    found = on_ranks(3, work.learn, dict(smoothing=False))
    run = work.in_double(work.prepare(SINGLE_PROCESS))
    rates = run.recipe.learning_rates(run.schedule.progress)
    optimizer = run.recipe.optimizer(run.network)
    run.network.train()
    for step, (x, y) in enumerate(run.task.batches(run.schedule, 0)):
        optimizer.zero_grad()
        for rank in range(3):
            mine = ProcessGroup(rank, 3).view_slice(run.schedule.shapes[run.schedule.index[step]])
            part = run.recipe.loss(run.network(x[mine]), y[mine]) * len(y[mine]) / len(y)
            part.backward()
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step])
        optimizer.step()
    learnt = {k: v for k, v in work.plain(run.network).items() if "running" not in k and "tracked" not in k}
    assert largest_difference(learnt, {k: found[0][0][k] for k in learnt}) < 1e-11
    assert all(largest_difference(found[0][0], other[0]) == 0 for other in found)  # statistics included


@pytest.mark.parametrize("recipe", [dict(sync_bn=True, mixup=0.2), dict(ema=0.9)])
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(tmp_path, recipe):
    unbroken = on_ranks(2, work.learn, recipe)
    path = tmp_path / "c.pt"
    assert on_ranks(2, work.learn, recipe, False, path, 13) == [None, None]
    assert path.exists()
    resumed = on_ranks(2, work.learn, recipe, False, path)
    for a, b in zip(unbroken, resumed, strict=True):
        assert largest_difference(a[0], b[0]) < (1e-12 if "sync_bn" in recipe else 1e-6)
        assert [r["step"] for r in a[1]] == [r["step"] for r in b[1]]
        assert [r["loss"] for r in a[1]] == pytest.approx([r["loss"] for r in b[1]])


@pytest.mark.slow
def test_ranks_compile_when_the_first_one_finds_that_it_pays():
    """Whole graphs of the forward, per rank and shape; what ranks exchange lies outside of them."""
    eager = on_ranks(2, work.compiled, (1,))
    found = on_ranks(2, work.compiled, (0,))
    for rank, ((weights, losses, unsaid, none), (other, told, said, frames)) in enumerate(
        zip(eager, found, strict=True)
    ):
        assert largest_difference(weights, other) < 1e-9
        assert told == pytest.approx(losses, rel=1e-6)
        assert frames == 4 * none > 0  # all shapes, or the one that was tried
        assert any("steps are compiled" in text for text in said) == (rank == 0)
        assert not any("steps are compiled" in text for text in unsaid)


def test_with_sync_bn_steps_are_not_compiled_and_it_is_said():
    for said in on_ranks(2, work.announced):
        assert said[-1] == "steps are not compiled: their batch norms talk to the other ranks"


def test_with_sync_bn_a_checkpoint_does_not_know_the_number_of_ranks():
    synced, own = work.identities(SINGLE_PROCESS)
    for others in on_ranks(2, work.identities):
        assert others[0] == synced
        assert others[1] != own


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_exchange_gives_what_it_says(world):
    for rank, found in enumerate(on_ranks(world, work.collectives)):
        assert found["rows"] == found["expected"]
        assert found["joined"] == list(range(10))
        assert found["every"] == [[r] for r in range(world)]
        assert found["gathered"] == [["ä" * r, {"rank": r}] for r in range(world)]
        assert found["agreed"] == [True, False]
        assert found["state"] == ([0, 1, 2], [1, "x"])
        assert found["nothing"] is None
        part = Shard(rank, world).part(7)
        assert found["share"] == pytest.approx((part.stop - part.start) / 7)


def test_dropout_differs_between_ranks_and_their_weights_do_not():
    (one, a), (two, b) = on_ranks(2, work.dropped)
    assert one != two
    assert largest_difference(a, b) == 0


def test_a_rate_test_takes_the_same_course_on_every_rank():
    rates, losses, suggestion = work.rate(SINGLE_PROCESS)
    found = on_ranks(2, work.rate)
    assert found[0] == found[1]
    assert found[0][0] == rates
    assert found[0][1] == pytest.approx(losses, rel=1e-6)
    assert found[0][2] == suggestion


def test_a_rank_that_dies_is_noticed_by_the_others():
    told, dead, other = on_ranks(3, work.lose_one)
    assert dead is None
    assert told.startswith("another rank of this run ended or cannot be reached")
    assert other.startswith("another rank of this run ended or cannot be reached")


def test_fewer_images_than_ranks_is_one_sentence():
    with pytest.raises(InputError, match="a step of 8x5x4 has 5 images, too few for 6 ranks"):
        work.prepare(ProcessGroup(0, 6))


def test_alone_nothing_is_exchanged():
    assert not torch.distributed.is_initialized()
    assert not SINGLE_PROCESS.is_distributed
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.broadcast_flag(True)
