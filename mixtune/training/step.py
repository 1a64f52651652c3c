"""Step: one training step, top to bottom, and the state that it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixtune.data.in_memory import ViewChoices
from mixtune.models.sync_batch_norm import convert_to_sync_batch_norm
from mixtune.optim import mixup
from mixtune.optim.ema import ModelEma
from mixtune.optim.gradient_smoothing import GradientSmoothing
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.device import CudaTimer, default_generator
from mixtune.runtime.process_group import convert_peer_errors, data_parallel
from mixtune.tasks.base import Task
from mixtune.training.cuda_graphs import (
    CudaGraphRecorder,
    GraphRecorder,
    NotCapturableError,
    StepGraphs,
    StepValues,
    write_scalar,
)
from mixtune.training.torch_compile import CompiledForward, Compiler, count_step_kinds

_DROPOUT, _BLEND = 1, 2  # separate the random streams of a step


class Engine:
    """A network in training, with its optimiser, gradient smoothing and average. Steps read nothing from the device.

    On a GPU that holds the images, whole steps are captured once per batch shape and replayed (``graphs``); on other
    GPUs the network is compiled where that pays. Several processes share every step (``DistributedDataParallel``).
    recorder: captures steps; None is CUDA's on a GPU, and "off" captures none.
    """

    def __init__(
        self,
        task: Task[Any],
        network: nn.Module,
        recipe: Recipe,
        seed: int,
        teacher: nn.Module | None = None,
        recorder: GraphRecorder | str | None = None,
    ) -> None:
        self.task, self.network, self.recipe, self.seed, self.teacher = task, network, recipe, seed, teacher
        self.group, self.device = task.group, next(network.parameters()).device
        self._parallel: DistributedDataParallel | None = None
        if self.group.is_distributed:
            if recipe.sync_bn:
                convert_to_sync_batch_norm(network)
            self._parallel = data_parallel(network)  # from here on the weights are equal in all processes
        self._recorder = CudaGraphRecorder(self.device) if recorder is None and self.device.type == "cuda" else recorder
        self.optimizer = recipe.optimizer(network, captured=self._recorder is not None)
        self.smoothing = GradientSmoothing(network) if recipe.smoothing else None
        self.ema = ModelEma(network, recipe.ema) if recipe.ema else None
        self.generator = default_generator(self.device)  # of dropout
        self.graphs: StepGraphs | None = None
        self._compiler: Compiler | None = None
        self._frozen = False

    # A step

    def step(
        self,
        batch: Any,
        lr: float,
        number: int,
        progress: float = 1.0,
        shape: BatchShape | None = None,
    ) -> Tensor:
        """Train on what ``batches`` yields; return the loss, detached, on the device.

        number: of the step, from 0; it keys all randomness, so that a resumed run draws the same. progress: share of
        the budget spent before it, for frozen layers and for drop path that grows. shape: of the whole step, of which
        the batch may be this process's part; needed where there are several, and for mixup and cutmix. Processes
        return parts of the loss: their sum is its mean over all views.
        """
        frozen = progress < self.recipe.frozen
        self.freeze(frozen)
        ema_weight = 0.0 if self.ema is None else self.ema.weight(number + 1)
        values = StepValues(lr, ema_weight, progress, self._draw_blend(number, shape))

        if isinstance(batch, ViewChoices):
            assert self.graphs is not None
            self._seed_dropout(number)
            return self.graphs.replay(batch.shape, frozen, batch.choices, values)

        def compute() -> Tensor:
            self._seed_dropout(number)
            return self.compute(batch, values, shape)

        if self._compiler is None or shape is None:
            return compute()
        return self._compiler.step((shape, frozen), compute)

    def compute(self, batch: Any, values: StepValues, shape: BatchShape | None = None) -> Tensor:
        """Do the device's part of a step, which is what graphs capture; return the loss, detached."""
        for parameters in self.optimizer.param_groups:
            lr = values.lr * parameters["scale"]
            if isinstance(parameters["lr"], Tensor):
                write_scalar(parameters["lr"], lr)
            else:
                parameters["lr"] = lr
        if isinstance(network_progress := getattr(self.network, "progress", None), Tensor):
            write_scalar(network_progress, values.progress)

        bf16 = self.recipe.bf16(self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), convert_peer_errors():
            model = self._model(shape)
            loss = self.task.training_loss(model, batch, self.recipe, shape, values.blend, self.teacher)

        self.optimizer.zero_grad(set_to_none=True)
        with convert_peer_errors():
            if self._parallel is None:
                loss.backward()  # type: ignore[no-untyped-call]
            else:  # it averages gradients over processes; the gradient of the step is a sum, of weighted parts
                loss = loss * self.group.loss_weight(shape)
                (loss * self.group.world_size).backward()  # type: ignore[no-untyped-call]
        if self.smoothing is not None:
            self.smoothing()
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(values.ema_weight)
        return loss.detach()

    def _model(self, shape: BatchShape | None) -> CompiledForward:
        """Return what computes the network: itself or what it was compiled to, wrapped where processes share a step."""
        model: CompiledForward = self.network
        if self._compiler is not None and shape is not None:
            model = self._compiler.forward((shape, self._frozen))
        if self._parallel is None:
            return model
        self._parallel.module = model
        return self._parallel

    def _draw_blend(self, number: int, shape: BatchShape | None) -> mixup.Blend | None:
        recipe = self.recipe
        if not (recipe.mixup or recipe.cutmix):
            return None
        assert shape is not None
        rng = np.random.default_rng((self.seed, number, _BLEND))
        return mixup.draw_blend(shape.views, shape.S, recipe.mixup, recipe.cutmix, rng)

    def _seed_dropout(self, number: int) -> None:
        """Seed dropout for a step, differently in each process; the first draws what a process alone would."""
        key = (self.seed, number, _DROPOUT, *([] if self.group.is_main else [self.group.rank]))
        self.generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def freeze(self, frozen: bool) -> None:
        """Train only the head's weights, or all."""
        if frozen == self._frozen:
            return
        self._frozen = frozen
        for parameters in self.optimizer.param_groups:
            if not parameters["head"]:
                for p in parameters["params"]:
                    p.requires_grad_(not frozen)
        if self._parallel is not None:
            self._parallel = data_parallel(self.network, equal=True)

    # How steps are issued

    def prepare(self, schedule: Schedule, progress: np.ndarray, start: int, say: Callable[[str], None]) -> None:
        """Capture every step from ``start`` on, or prepare to compile them, and say which. Weights stay as they are.

        progress: share of the budget spent before each step. [n_steps]
        """
        reason = self._reason_not_to_capture(schedule) or self._capture(schedule, progress, start, say)
        if not reason:
            return
        say(f"steps are issued one by one: {reason}")
        if self.group.is_distributed and self.recipe.sync_bn:
            say("steps are not compiled: their batch norms talk to the other ranks")
        elif self.device.type == "cuda":  # on a CPU compiled steps were no faster, or slower (ResNet-8 and -20)
            counts = count_step_kinds(schedule, progress, start, self.recipe.frozen)
            self._compiler = Compiler(self.network, counts, say, CudaTimer(self.device), self.group.broadcast_state)

    def _reason_not_to_capture(self, schedule: Schedule) -> str:
        if self._recorder is None:
            return "on a CPU there is nothing to gain by capturing them"
        if isinstance(self._recorder, str):
            return "capturing is switched off"
        if self.group.is_distributed:
            return "several ranks share each of them"
        if self.task.draw_choices(schedule, self.seed) is None:
            return "the images are read from files"
        return ""

    def _capture(self, schedule: Schedule, progress: np.ndarray, start: int, say: Callable[[str], None]) -> str:
        """Capture every kind of step to come. Return the reason where they cannot be captured, else an empty text."""
        recorder: Any = self._recorder
        kinds = sorted(count_step_kinds(schedule, progress, start, self.recipe.frozen))
        self.graphs, self.generator = None, recorder.generator  # earlier graphs are freed first
        self.graphs = StepGraphs(self, recorder)
        try:
            seconds = self.graphs.capture(kinds)
        except NotCapturableError as err:
            self.graphs, self.generator = None, default_generator(self.device)
            return str(err)
        say(f"whole steps are captured and replayed: {len(kinds)} graphs in {seconds:.2f} s")
        return ""

    def batches(self, schedule: Schedule, seed: int, start: int) -> Iterator[Any]:
        """Yield what ``step`` takes, of every step from ``start`` on."""
        if self.graphs is not None and (choices := self.task.draw_choices(schedule, seed, start)) is not None:
            return choices
        return self.task.batches(schedule, seed, start)

    # State

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is evaluated and saved: the average where there is one."""
        return self.network if self.ema is None else self.ema.network

    def adopt_average(self) -> None:
        """Give the network the weights of the average, at the end of training."""
        if self.ema is not None:
            self.network.load_state_dict(self.ema.state_dict())

    def average_buffers(self) -> None:
        """Give all processes the same batch-norm statistics, before these are used or saved."""
        for network in (self.network, *([] if self.ema is None else [self.ema.network])):
            self.group.average_buffers(network)

    def tensors(self) -> list[Tensor]:
        """Return every tensor that a step changes. Momentum that does not exist yet is created as zeros."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        for parameters in self.optimizer.param_groups:
            for p in parameters["params"] if parameters["momentum"] else ():
                state = self.optimizer.state[p]
                tensors.append(state.setdefault("momentum_buffer", torch.zeros_like(p, requires_grad=False)))
        if self.smoothing is not None:
            tensors.append(self.smoothing.norm)
        if self.ema is not None:
            tensors += [*self.ema.network.parameters(), *self.ema.network.buffers()]
        return tensors

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values from which training can go on."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smoothing": {} if self.smoothing is None else self.smoothing.state_dict(),
            "average": {} if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state, also one of another kind of device. Call this before ``prepare``."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        captured = self._recorder is not None
        for parameters in self.optimizer.param_groups:
            lr = float(parameters["lr"])
            parameters["lr"] = torch.tensor(lr, device=self.device) if captured else lr
            parameters["foreach"], parameters["fused"] = not captured, captured
        if self.smoothing is not None:
            self.smoothing.load_state_dict(state["smoothing"])
        if self.ema is not None:
            self.ema.load_state_dict(state["average"])
