"""Whole steps, as a GPU gets them, on a fake one: no tensor is left on the CPU, and nothing is read back."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from mixtune.models.registry import create_network
from mixtune.optim.distillation import Distillation
from mixtune.optim.recipe import Recipe
from mixtune.tasks.classification import Classification
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.fake_gpu import FakeRecorder, backward, fake_gpu, moved
from tests.training.test_cuda_graphs import EVERYTHING, Reading, amoeba
from tests.training.test_loop import config, regime

pytestmark = [
    pytest.mark.arithmetic,
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one"),
]
ALL = dataclasses.replace(
    EVERYTHING, dropout=0.3, nesterov=True, distill=Distillation("cifar_resnet8", "-"), scaling="step"
)


def small():
    return create_network("cifar_resnet8", 10)


@pytest.fixture
def on_gpu(monkeypatch):
    """An engine on a fake GPU: ``on_gpu(recipe, network, recorder)`` and the schedule it is for."""

    def make(recipe, network=small, recorder="off"):
        monkeypatch.setattr(Classification, "network", lambda *_: moved(network))
        monkeypatch.setattr(Distillation, "teacher", lambda *_: moved(small).eval())
        run = Run.prepare(regime(), config(recipe=recipe))
        return Engine(run.task, run.network.train(), run.recipe, 0, run.teacher, recorder), run.schedule

    Run.prepare(regime(), config())  # the data set is read before, as real numbers
    with fake_gpu(monkeypatch):
        yield make


@pytest.mark.parametrize(
    ("recipe", "network", "captured"),
    [
        (ALL, small, True),
        (ALL, small, False),
        (Recipe(mixup=0.4, smoothing=False, momentum=0.0), small, True),
        (Recipe(), lambda: amoeba(0.6), True),
        (Recipe(ema=0.9), lambda: create_network("resnet10t", 10, dropout=0.1, drop_path=0.1), True),
    ],
)
def test_a_step_stays_on_the_gpu(recipe, network, captured, on_gpu):
    recorder = FakeRecorder() if captured else "off"
    engine, schedule = on_gpu(recipe, network, recorder)
    said = []
    engine.prepare(schedule, schedule.progress, 0, said.append)
    if captured:
        assert said[0].startswith("whole steps are captured")
        assert recorder.recorded >= len(schedule.shapes)
    else:
        assert sum(engine._compiler._remaining.values()) == len(schedule)  # it looks whether compiling pays
        engine._compiler = None  # whose timer needs a driver
        for step, batch in zip(range(3), engine.task.batches(schedule, 0), strict=False):
            loss = engine.step(batch, 0.1, step, 0.5, schedule.shapes[schedule.index[step]])
            assert (loss.device.type, loss.dtype) == ("cuda", torch.float32)
    kept = [*engine.tensors(), *(s["momentum_buffer"] for s in engine.optimizer.state.values())]
    assert {t.device.type for t in kept} == {"cuda"}
    assert {t.dtype for t in kept} <= {torch.float32, torch.int64}  # weights and all that is kept are not in bf16


def test_the_network_computes_in_bf16_and_its_loss_in_float32(on_gpu):
    seen = []
    engine, schedule = on_gpu(Recipe())
    engine.network.layers.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    engine.step(next(engine.task.batches(schedule, 0)), 0.1, 0)
    assert seen == [torch.bfloat16]


def test_the_fake_one_refuses_what_a_gpu_would_refuse(on_gpu, monkeypatch):
    engine, schedule = on_gpu(Recipe(), Reading)
    with pytest.raises(DataDependentOutputException):
        engine.step(next(engine.task.batches(schedule, 0)), 0.1, 0)
    engine, schedule = on_gpu(Recipe())
    inputs, targets = next(engine.task.batches(schedule, 0))
    with pytest.raises(RuntimeError, match="device"):
        engine.step((inputs, targets.cpu()), 0.1, 0)


def test_backward_in_python_is_that_of_the_engine():
    x, y = torch.randn(2, 4, 3, 8, 8), torch.arange(4)
    both = []
    for run in (backward, torch.Tensor.backward):
        torch.manual_seed(0)
        network = amoeba(0.0).train()
        logits, auxiliary = network(x[0] * 2)
        loss = torch.nn.functional.cross_entropy(logits, y) + auxiliary.square().mean()
        run(loss)
        both.append([p.grad for p in network.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*both, strict=True))
