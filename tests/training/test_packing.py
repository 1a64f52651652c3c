import contextlib
import gc
import itertools
import threading
import time
import weakref
from functools import partial

import pytest
import torch

from mixtune.optim.recipe import Recipe
from mixtune.training import loop
from mixtune.training.packing import TrialPack, TurnLock
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.tape import TapeRecorder
from tests.training.test_checkpoint import facts
from tests.training.test_loop import config, regime, same, weights

pytestmark = pytest.mark.arithmetic

CPU = torch.device("cpu")
KINDS = {
    "plain": dict(),
    "dropout": dict(recipe=Recipe(dropout=0.5)),
    "mixup": dict(recipe=Recipe(mixup=0.2, ema=0.9), seed=3),
    "other seed": dict(seed=1),
}


def packed(runs, device=CPU, before_step=lambda name, step: None):
    """All reports of some runs that share a process, asked for by a thread each, and the order of their steps."""
    pack, order, reports, errors = TrialPack(device), [], {name: [] for name in runs}, {}

    def work(name, turn, report):
        def on_step(step, views):
            order.append(name)
            before_step(name, step)
            turn()

        runs[name] = Run.prepare(regime(), config(**KINDS[name], device=device.type))
        for made in runs[name].reports(on_step=on_step):
            report(made)

    def ask(name):
        try:
            while (report := pack.next(name)) is not None:
                reports[name].append(report)
        except Exception as err:
            errors[name] = err

    for name in runs:
        pack.start(name, partial(work, name))
    threads = [threading.Thread(target=ask, args=(name,)) for name in runs]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not any(t.is_alive() for t in threads)
    return reports, order, errors


@pytest.mark.parametrize("captured", [False, True])
def test_packed_trials_are_the_trials_alone_to_the_bit(captured, monkeypatch):
    if captured:
        monkeypatch.setattr(loop, "Engine", lambda *a: Engine(*a, recorder=TapeRecorder()))
    runs = dict.fromkeys(KINDS)
    reports, order, errors = packed(runs)
    assert not errors
    for name, settings in KINDS.items():
        alone = Run.prepare(regime(), config(**settings))
        assert facts(alone.reports()) == facts(reports[name])
        assert same(weights(alone), weights(runs[name]))
    switches = sum(a != b for a, b in itertools.pairwise(order))
    assert switches > len(order) / 2  # in turn, not one after the other


def test_a_trial_that_fails_leaves_the_others_alone():
    def fault(name, step):
        if name == "dropout" and step == 4:
            raise RuntimeError("a fault")

    runs = dict.fromkeys(KINDS)
    reports, _, errors = packed(runs, before_step=fault)
    assert str(errors.pop("dropout")) == "a fault"
    assert not errors
    alone = Run.prepare(regime(), config())
    assert facts(alone.reports()) == facts(reports["plain"])


class Held:
    """Stands for what a trial keeps on a GPU."""


def test_a_failed_trial_keeps_no_memory_while_its_error_waits_to_be_told():
    pack, held = TrialPack(CPU), []

    def work(turn, report):
        mine = Held()
        held.append(weakref.ref(mine))
        try:
            raise MemoryError("first")
        except MemoryError:
            raise RuntimeError("then") from None

    gc.collect()
    gc.disable()
    try:
        pack.start("a", work)
        with pytest.raises(RuntimeError, match="then") as error:
            pack.next("a")
        assert held[0]() is None
        assert error.value.__context__.__traceback__ is None
    finally:
        gc.enable()


def test_trials_at_the_same_time_never_share_a_stream_and_one_that_ends_passes_its_own_on(monkeypatch):
    class Stream:
        def __init__(self, device):
            made.append(self)

    made, now, shared = [], [], []

    @contextlib.contextmanager
    def entered(stream):
        shared.append(stream in now)
        now.append(stream)
        yield
        now.remove(stream)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    pack = TrialPack(torch.device("cuda"))
    for generation in range(20):  # 40 trials, two at a time
        for name in "ab":
            pack.start(f"{name}{generation}", counting(5, []))
            pack.next(f"{name}{generation}")
        for name in "ab":
            assert pack.next(f"{name}{generation}") is None
    assert len(shared) == 40
    assert not any(shared)
    assert len(made) == 2


def counting(steps, done):
    def work(turn, report):
        for step in range(steps):
            done.append(step)
            turn()
            if step % 5 == 4:
                report(step)

    return work


def test_a_trial_does_nothing_between_its_report_and_the_next_question():
    pack, done = TrialPack(CPU), []
    pack.start("a", counting(20, done))
    time.sleep(0.05)
    assert done == []
    assert pack.next("a") == 4
    time.sleep(0.05)
    assert len(done) == 5
    assert [pack.next("a") for _ in range(4)] == [9, 14, 19, None]
    with pytest.raises(KeyError):
        pack.next("a")


def test_a_dropped_trial_stops_at_its_next_step_and_the_rest_goes_on():
    pack, dropped, other, closed = TrialPack(CPU), [], [], threading.Event()

    def endless(turn, report):
        try:
            while True:
                dropped.append(1)
                turn()
                report(0)
        finally:
            closed.set()

    pack.start("a", endless)
    pack.start("b", counting(10, other))
    pack.next("a")
    pack.drop("a")
    assert closed.wait(10)
    assert [pack.next("b") for _ in range(3)] == [4, 9, None]
    assert len(dropped) <= 2
    assert len(pack) == 0


def test_a_trial_nobody_asks_for_is_dropped_and_starting_again_replaces_one():
    pack, done = TrialPack(CPU, idle_timeout=0.01), []
    pack.start("lost", counting(50, done))
    pack.next("lost")
    time.sleep(0.05)
    pack.start("new", counting(5, done))
    assert len(pack) == 1
    pack.start("new", counting(10, done))
    assert [pack.next("new") for _ in range(3)] == [4, 9, None]


def test_one_runs_at_a_time_and_all_in_turn():
    lock, running, order = TurnLock(), [], []

    def run(name):
        lock.acquire()
        for _ in range(200):
            running.append(name)
            assert len(running) == 1
            order.append(name)
            running.pop()
            lock.yield_turn()
        lock.release()

    lock.acquire()  # until all wait
    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    while len(lock._waiting) < 4:
        time.sleep(0.001)
    lock.release()
    for t in threads:
        t.join(60)
    assert len(order) == 800
    rounds = [set(order[i : i + 4]) for i in range(0, 800, 4)]
    assert all(r == {0, 1, 2, 3} for r in rounds)


def test_no_trial_works_where_the_device_is_waited_for():
    """Waiting for all of a GPU while a trial captures its steps would be an error of both."""
    pack, done = TrialPack(CPU), []

    def endless(turn, report):
        while True:
            time.sleep(0.001)
            done.append(1)
            turn()
            if len(done) > 1000:
                report(0)

    pack.start("a", endless)
    asking = threading.Thread(target=pack.next, args=("a",), daemon=True)
    asking.start()
    while not done:
        time.sleep(0.001)
    with pack.paused():
        before = len(done)
        time.sleep(0.05)
        assert len(done) == before
    while len(done) == before:
        time.sleep(0.001)
    pack.drop("a")
    asking.join(10)
    assert not asking.is_alive()


@pytest.mark.gpu
def test_packed_trials_on_a_gpu_are_the_trials_alone():
    torch.backends.cudnn.deterministic = True
    try:
        runs = dict.fromkeys(KINDS)
        reports, _, errors = packed(runs, torch.device("cuda"))
        assert not errors
        for name in runs:
            alone = Run.prepare(regime(), config(**KINDS[name], device="cuda"))
            assert facts(alone.reports()) == facts(reports[name])
    finally:
        torch.backends.cudnn.deterministic = False
