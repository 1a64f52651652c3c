"""What the ranks of test_process_group.py do. Each is called on every rank, and with SINGLE_PROCESS as the oracle.

``tell`` is what another process does that is killed.
"""

import dataclasses
import os
from functools import partial

import numpy as np
import torch

from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.models.registry import create_network
from mixtune.optim import mixup as mixing
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Mixture, Regime
from mixtune.runtime.process_group import SINGLE_PROCESS, PeerLostError, data_parallel
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training import torch_compile
from mixtune.training.fine_tuning import find_rate
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.step import Engine
from mixtune.training.torch_compile import Compiler, count_step_kinds

# None of these divides by 2 and 3 ranks alike; one has copies.
SHAPES = [BatchShape(8, 5, 4), BatchShape(8, 20), BatchShape(12, 9), BatchShape(16, 7)]


def prepare(group, **more):
    regime = Regime.of(BatchShape(8, 20), [Mixture.of(SHAPES)])
    task = ClassificationConfig("digits", "cifar_resnet8", samples=200, validation=0.25)
    settings = dict(task=task, budget=Budget(2), evaluate=Evaluation((8, 12), 2), threads=1) | more
    return Run.prepare(regime, TrainingConfig(**settings), "validation", group)


def in_double(run):
    """The run in double precision, so that the order of sums is far below what is looked for."""
    run.network.double()
    run.network.register_forward_pre_hook(lambda _, args: (args[0].double(),))
    loss = run.recipe.loss
    in_doubles = lambda out, y: loss(out, y.double() if y.is_floating_point() else y)  # noqa: E731
    object.__setattr__(run.recipe, "loss", in_doubles)  # of this run alone: the dataclass is frozen
    return run


def tell(told, path):
    """Train with a checkpoint after every step, and tell of every report."""
    for _ in prepare(SINGLE_PROCESS).reports(path, 0.0):
        told.send("report")


def warm_up():
    """Load what every process needs, before it is forked."""
    run = prepare(SINGLE_PROCESS)
    run.task.evaluate(run.network, (8, 12))


def plain(network):
    return {k: v.double().numpy().copy() for k, v in network.state_dict().items()}


def learn(group, recipe, recalibrate=False, checkpoint=None, stop=None):
    """Weights, reports and how the batch norms of an evaluation were chosen."""
    recalibration = Recalibration(images=60) if recalibrate else None
    run = in_double(prepare(group, recipe=Recipe(**recipe), evaluate=Evaluation((8, 12), 2, recalibration)))

    def halt(step, views):
        if step == stop:
            raise InterruptedError

    try:
        made = run.reports(checkpoint, every=0.0, on_step=halt)
        reports = [dataclasses.asdict(r) | {"curve": r.curve.rows()} for r in made]
    except InterruptedError:
        return None
    for report in reports:
        for name in ("seconds", "views_per_second"):
            del report[name]
    return plain(run.network), reports, {S: name for S, (name, _) in run.task.chosen.items()}


def own_sums(group, recipe):
    """The oracle of ``DistributedDataParallel``: the weights that gradients give which ranks sum themselves."""
    run = in_double(prepare(group, recipe=Recipe(**recipe)))
    rates = run.recipe.learning_rates(run.schedule.progress)
    optimizer = run.recipe.optimizer(run.network)
    run.network.train()
    for step, (inputs, targets) in enumerate(run.task.batches(run.schedule, 0)):
        frozen = run.schedule.progress[step] < run.recipe.frozen
        for parameters in optimizer.param_groups:
            parameters["lr"] = float(rates[step])
            for p in parameters["params"] if not parameters["head"] else ():
                p.requires_grad_(not frozen)
        weight = group.loss_weight(run.schedule.shapes[run.schedule.index[step]])
        optimizer.zero_grad()
        (run.recipe.loss(run.network(inputs), targets) * weight).backward()
        for p in run.network.parameters():
            if p.grad is not None:
                group.all_reduce(p.grad)
        optimizer.step()
    group.average_buffers(run.network)
    return plain(run.network)


def wrapped(group):
    """The weights that a wrapper leaves where each rank began with its own, and their names."""
    network = create_network("cifar_resnet8", 10, seed=group.rank)
    before, names = plain(network), list(network.state_dict())
    parallel = data_parallel(network)
    return before, plain(parallel.module), names == list(parallel.module.state_dict())


def blended(group, mixup, cutmix):
    """The blended batches of every step, this rank's part of each."""
    run, found = prepare(group), []
    for step, (inputs, targets) in enumerate(run.task.batches(run.schedule, 0)):
        shape, rng = run.schedule.shapes[run.schedule.index[step]], np.random.default_rng(step)
        drawn = mixing.draw_blend(shape.views, inputs.shape[-1], mixup, cutmix, rng)
        x, y = mixing.apply_blend(drawn, inputs, targets, 10, group, shape)
        found.append((x.numpy(), y.numpy()))
    return found


def collectives(group):
    """What each exchange gives, from values that every rank can name."""
    rank, world = group.rank, group.world_size
    shape = BatchShape(8, 7, 3)
    rows = torch.arange(21.0)[:, None] * torch.ones(2)
    order = np.random.default_rng(0).permutation(21)
    state = {"a": torch.arange(3), "b": [1, "x"]}
    loaded = group.broadcast_state(lambda: state if rank == 0 else None)
    with group.local_main_first():
        pass
    return {
        "rows": group.permute_views(rows[group.view_slice(shape)], order, shape).tolist(),
        "expected": rows[order][group.view_slice(shape)].tolist(),
        "joined": group.gather_rows(torch.arange(10.0)[group.shard.part(10)], 10).tolist(),
        "every": group.all_gather(torch.tensor([rank])).tolist(),
        "gathered": group.all_gather_json(["ä" * rank, {"rank": rank}]),
        "agreed": [group.broadcast_flag(rank == 0), group.broadcast_flag(rank == 1)],
        "state": (loaded["a"].tolist(), loaded["b"]),
        "nothing": group.broadcast_state(lambda: None),
        "share": group.loss_weight(shape),
        "world": world,
    }


def dropped(group):
    """Which features the dropout of the first step left, and the weights at the end."""
    run, masks = prepare(group, recipe=Recipe(dropout=0.5)), []
    run.network.dropout.register_forward_hook(lambda _, args, out: masks.append((out != 0)[:3].tolist()))
    list(run.reports())
    return masks[0], plain(run.network)


def rate(group):
    run = in_double(prepare(group))
    found = find_rate(run.task, run.network, run.schedule, Recipe(sync_bn=True), 0, steps=12)
    return found.rates, found.losses, found.suggestion


class Told:
    """A watch that finds compiled steps fast and the others slow, or the other way round."""

    def __init__(self, engine, pays):
        self._engine, self._pays = engine, pays

    def mark(self):
        return self._engine._parallel.module is not self._engine.network

    def seconds(self, began, compiled):
        return 1.0 if compiled == self._pays else 1e6


def compiled(group, pays):
    """Weights and losses where the watch of the rank named in ``pays`` finds that compiling pays, and what was said."""
    from torch._dynamo.testing import CompileCounterWithBackend

    run, said = in_double(prepare(group, budget=Budget(6))), []
    backend = CompileCounterWithBackend("aot_eager")
    prepare_engine = Engine.prepare

    def watched(engine, schedule, progress, start, say):
        prepare_engine(engine, schedule, progress, start, said.append)
        make = partial(torch.compile, backend=backend, dynamic=False, fullgraph=True)
        watch = Told(engine, group.rank in pays)
        left = count_step_kinds(schedule, progress, start, 0.0)
        engine._compiler = Compiler(engine.network, left, said.append, watch, group.broadcast_state, make)

    Engine.prepare = watched
    torch_compile.EXPECTED_COMPILE_SECONDS, torch_compile.MEASURED_STEPS = 1.0, 1
    reports = list(run.reports())
    return plain(run.network), [r.loss for r in reports], said, backend.frame_count


def announced(group):
    run, said = prepare(group, recipe=Recipe(sync_bn=True)), []
    list(run.reports(say=said.append))
    return said


def identities(group):
    return [prepare(group, recipe=Recipe(sync_bn=sync)).identity for sync in (True, False)]


def lose_one(group):
    """Rank 1 dies in the middle of a step."""
    run = prepare(group)

    def die(step, views):
        if step == 3 and group.rank == 1:
            os._exit(1)

    try:
        list(run.reports(on_step=die))
    except PeerLostError as err:
        return str(err)
    return "nothing happened"
