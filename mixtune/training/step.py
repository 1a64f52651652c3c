"""Engine: one training step, and the state that steps leave behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
from mixtune.training.torch_compile import Compiler, Forward, count_step_kinds

_DROPOUT, _BLEND = 1, 2  # separate the random streams of a step


class Engine:
    """A network in training: its weights, optimiser, smoothing and average. Nothing is read back from the device.

    Where the images lie on a GPU, the whole step (views, forward, backward, smoothing, optimiser) is captured, once per
    batch shape, and then replayed (``graphs``). ``recorder`` captures: None takes CUDA's on a GPU, and "off" none.
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
        self.task, self.network, self.recipe, self.seed = task, network, recipe, seed
        self.device = next(network.parameters()).device
        self.group = task.group
        self._frozen = False
        self.forward: Forward = network  # or what it was compiled to
        if self.group.is_distributed:
            if recipe.sync_bn:
                convert_to_sync_batch_norm(network)
            self._parallel = data_parallel(network)
        self._recorder = CudaGraphRecorder(self.device) if recorder is None and self.device.type == "cuda" else recorder
        self.optimizer = recipe.optimizer(network, captured=self._recorder is not None)
        self.smooth = GradientSmoothing(network) if recipe.smoothing else None
        self.average = ModelEma(network, recipe.ema) if recipe.ema else None
        self.teacher = teacher
        self._compiler: Compiler | None = None
        self.graphs: StepGraphs | None = None
        self.generator = default_generator(self.device)  # what dropout draws from

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.network if self.average is None else self.average.network

    def finish(self) -> None:
        """Make the trained network the one that is kept."""
        if self.average is not None:
            self.network.load_state_dict(self.average.state_dict())

    def prepare(self, schedule: Schedule, progress: np.ndarray, start: int, say: Callable[[str], None]) -> None:
        """Capture every step that is to come, where that pays, and say what was decided. The network is as before.

        progress: share of the budget spent before each step. [n_steps]
        """
        reason = self._not_captured(schedule) or self._capture(schedule, progress, start, say)
        if not reason:
            return
        say(f"steps are issued one by one: {reason}")
        if self.recipe.sync_bn and self.group.is_distributed:
            say("steps are not compiled: their batch norms talk to the other ranks")
        elif self.device.type == "cuda":  # on a CPU compiled steps were no faster, or slower (ResNet-8 and -20)
            left = count_step_kinds(schedule, progress, start, self.recipe.frozen)
            self._compiler = Compiler(self.network, left, say, CudaTimer(self.device), self.group.broadcast_state)

    def _capture(self, schedule: Schedule, progress: np.ndarray, start: int, say: Callable[[str], None]) -> str:
        """Capture every step to come. Gives the reason where they turn out not to be fit for it, else nothing."""
        recorder: Any = self._recorder
        frozen = progress[start:] < self.recipe.frozen
        kinds = sorted({(int(i), bool(f)) for i, f in zip(schedule.index[start:], frozen, strict=True)})
        self.graphs, self.generator = None, recorder.generator  # earlier graphs end before others begin
        self.graphs = StepGraphs(self, recorder)
        try:
            seconds = self.graphs.capture([(schedule.shapes[i], f) for i, f in kinds])
        except NotCapturableError as err:
            self.graphs, self.generator = None, default_generator(self.device)
            return str(err)
        say(f"whole steps are captured and replayed: {len(kinds)} graphs in {seconds:.2f} s")
        return ""

    def _not_captured(self, schedule: Schedule) -> str:
        if self._recorder is None:
            return "on a CPU there is nothing to gain by capturing them"
        if isinstance(self._recorder, str):
            return "capturing is switched off"
        if self.group.is_distributed:
            return "several ranks share each of them"
        if self.task.draw_choices(schedule, self.seed) is None:
            return "the images are read from files"
        return ""

    def batches(self, schedule: Schedule, seed: int, start: int) -> Iterator[Any]:
        """What ``step`` takes, of every step from ``start`` on."""
        if self.graphs is not None and (drawn := self.task.draw_choices(schedule, seed, start)) is not None:
            return drawn
        return self.task.batches(schedule, seed, start)

    def train_on(self, batch: Any, lr: float, number: int, progress: float, shape: BatchShape) -> Tensor:
        """``step`` on what ``batches`` gives."""
        if not isinstance(batch, ViewChoices):
            if self._compiler is None:
                return self.step(batch, lr, number, progress, shape)
            compiler, kind = self._compiler, (shape, progress < self.recipe.frozen)

            def work() -> Tensor:
                self.forward = compiler.forward(kind)
                return self.step(batch, lr, number, progress, shape)

            return compiler.step(kind, work)
        assert self.graphs is not None
        numbers = self._begin(lr, number, progress, batch.shape)
        return self.graphs.replay(batch.shape, progress < self.recipe.frozen, batch.choices, numbers)

    def settle(self) -> None:
        """Give every rank the same batch-norm statistics, before they are used or kept."""
        for network in (self.network, *([] if self.average is None else [self.average.network])):
            self.group.average_buffers(network)

    def step(
        self,
        batch: Any,
        lr: float,
        number: int,
        progress: float = 1.0,
        shape: BatchShape | None = None,
    ) -> Tensor:
        """Train on one batch; ``number`` counts steps from 0. Returns the loss, on the device, detached.

        progress: share of the budget spent, for frozen layers and for networks whose drop path grows with it. shape: of
        the whole step, of which the batch is this rank's part; needed where there are several, and to blend. The loss
        is then this rank's part of the step's: their sum is the mean over all views.
        """
        return self.work(batch, self._begin(lr, number, progress, shape), shape)

    def _begin(self, lr: float, number: int, progress: float, shape: BatchShape | None) -> StepValues:
        """The host's part of a step."""
        self.freeze(progress < self.recipe.frozen)
        # Keyed by the step, for a resumed run to draw the same. The first of several ranks draws what one alone would.
        keys = (self.seed, number, _DROPOUT, *([] if self.group.is_main else [self.group.rank]))
        self.generator.manual_seed(int(np.random.SeedSequence(keys).generate_state(1)[0]))
        ema_weight = 0.0 if self.average is None else self.average.weight(number + 1)
        return StepValues(lr, ema_weight, progress, self._blend(number, shape))

    def freeze(self, frozen: bool) -> None:
        """Let only the head's weights move, or all."""
        if frozen != self._frozen:
            for group in self.optimizer.param_groups:
                if not group["head"]:
                    for p in group["params"]:
                        p.requires_grad_(not frozen)
            if self.group.is_distributed:
                self._parallel = data_parallel(self.network, equal=True)
        self._frozen = frozen

    def _blend(self, number: int, shape: BatchShape | None) -> mixup.Blend | None:
        recipe = self.recipe
        if not (recipe.mixup or recipe.cutmix):
            return None
        assert shape is not None
        rng = np.random.default_rng((self.seed, number, _BLEND))
        return mixup.draw_blend(shape.views, shape.S, recipe.mixup, recipe.cutmix, rng)

    def work(self, batch: Any, numbers: StepValues, shape: BatchShape | None = None) -> Tensor:
        """The device's part of a step: forward, backward, smoothing, optimiser, average. Returns the detached loss."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            lr = numbers.lr * group["scale"]
            if not isinstance(group["lr"], Tensor):
                group["lr"] = lr
            else:
                write_scalar(group["lr"], lr)
        if isinstance(grows := getattr(self.network, "progress", None), Tensor):
            write_scalar(grows, numbers.progress)
        model = self.forward
        if self.group.is_distributed:
            self._parallel.module = model
            model = self._parallel
        bf16 = recipe.bf16(self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), convert_peer_errors():
            loss = self.task.training_loss(model, batch, recipe, shape, numbers.blend, self.teacher)
        self.optimizer.zero_grad(set_to_none=True)
        if self.group.is_distributed:
            loss = loss * self.group.loss_weight(shape)
        with convert_peer_errors():  # DistributedDataParallel averages, and the parts of a step are to be summed
            (loss * self.group.world_size if self.group.is_distributed else loss).backward()
        if self.smooth is not None:
            self.smooth()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(numbers.ema_weight)
        return loss.detach()

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes. Momentum that is not there yet is made, as zeros, which comes to the same."""
        found = [*self.network.parameters(), *self.network.buffers()]
        for group in self.optimizer.param_groups:
            for p in group["params"] if group["momentum"] else ():
                state = self.optimizer.state[p]
                found.append(state.setdefault("momentum_buffer", torch.zeros_like(p, requires_grad=False)))
        if self.smooth is not None:
            found.append(self.smooth.norm)
        if self.average is not None:
            found += [*self.average.network.parameters(), *self.average.network.buffers()]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smoothing": {} if self.smooth is None else self.smooth.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. To be called before ``prepare``."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        captured = self._recorder is not None
        for group in self.optimizer.param_groups:  # where it goes on need not be the kind of device it was saved on
            lr = float(group["lr"])
            group["lr"] = torch.tensor(lr, device=self.device) if captured else lr
            group["foreach"], group["fused"] = not captured, captured
        if self.smooth is not None:
            self.smooth.load_state_dict(state["smoothing"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
