"""What every task holds to: a class of tests, run for each task by a subclass with a fixture ``config``.

``config`` is the task's section of a small file; ``SIZES`` are two sizes that its network takes.
"""

import copy

import numpy as np
import pytest
import torch

from mixtune.config import parse, to_plain
from mixtune.evaluation.metrics import Metrics
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Mixture, Regime, Schedule
from mixtune.runtime.process_group import ProcessGroup
from mixtune.tasks.base import LOSS_SETTINGS, check_shapes, make_task
from mixtune.tasks.config import TaskConfig
from mixtune.training.run import Evaluation, Run, TrainingConfig


def tensors(batch):
    """The tensors of a batch, whatever it is made of."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def same(a, b):
    a, b = tensors(a), tensors(b)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class TaskContract:
    SIZES = (8, 12)

    @pytest.fixture
    def task(self, config):
        return make_task(config, device="cpu")

    @pytest.fixture
    def schedule(self, task):
        """Five steps of three shapes, one of them with copies."""
        small, large = self.SIZES
        shapes = (BatchShape(small, 7), BatchShape(small, 4, 3), BatchShape(large, 5))
        return Schedule(shapes, np.array([0, 1, 2, 1, 0], np.int16), np.array([s.pixels for s in shapes], float))

    def take(self, task, schedule, seed=0, start=0):
        """All batches, copied: their memory may be used again."""
        return [copy.deepcopy(batch) for batch in task.batches(schedule, seed, start)]

    def test_the_section_survives_being_written(self, config):
        assert parse(to_plain(config), TaskConfig, "f") == config
        assert to_plain(config)["kind"] == config.kind

    def test_batches_depend_on_seed_and_step_alone(self, task, config, schedule):
        batches = self.take(task, schedule)
        assert len(batches) == len(schedule)
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002 (the global one is the point)
        assert all(map(same, self.take(make_task(config, device="cpu"), schedule), batches))
        assert all(map(same, self.take(task, schedule, start=2), batches[2:]))
        other = self.take(task, schedule, seed=1)
        assert not any(map(same, batches, other))

    def test_the_global_generators_are_left_as_found(self, task, schedule):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        self.take(task, schedule)
        assert torch.equal(torch.get_rng_state(), before)

    def test_the_ranks_parts_join_to_the_whole(self, task, config, schedule):
        whole = self.take(task, schedule)
        parts = []
        for rank in range(2):
            part = make_task(config, device="cpu")
            part.group = ProcessGroup(rank, 2)
            parts.append(self.take(part, schedule))
        for step, batch in enumerate(whole):
            joined = [torch.cat(pair) for pair in zip(*(tensors(part[step]) for part in parts), strict=True)]
            assert same(joined, batch)

    def test_a_step_has_its_shape(self, task, schedule):
        for batch, shape in zip(self.take(task, schedule), schedule, strict=True):
            images = tensors(batch)[0]
            assert images.shape == (shape.views, 3, shape.S, shape.S)
            assert images.device == task.device

    def test_the_loss_is_finite_and_reaches_every_weight(self, task, schedule):
        network = task.network(0).train()
        for batch, shape in zip(task.batches(schedule, 0), schedule, strict=True):
            loss = task.training_loss(network, batch, Recipe(), shape)
            assert loss.shape == ()
            assert torch.isfinite(loss)
            loss.backward()
            assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        assert any(p.grad.abs().sum() > 0 for p in network.parameters())

    def test_a_network_is_made_of_its_seed(self, task):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        one, again, other = (task.network(seed).state_dict() for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(v, again[k]) for k, v in one.items())
        assert any(not torch.equal(v, other[k]) for k, v in one.items())

    def test_the_cost_rises_with_the_size(self, task, config):
        small, large = self.SIZES
        assert 0 < task.gmacs(small) < task.gmacs(large)
        stride = type(task).stride(config)
        assert small % stride == large % stride == 0
        check_shapes([BatchShape(small, task.n_train)], config, task.n_train)
        with pytest.raises(ValueError, match=str(task.n_train + 1)):
            check_shapes([BatchShape(small, task.n_train + 1)], config, task.n_train)
        if stride > 1:
            with pytest.raises(ValueError, match=f"{small + 1} px"):
                check_shapes([BatchShape(small + 1, 1)], config, task.n_train)

    @pytest.mark.parametrize("training", [True, False])
    def test_an_evaluation_has_every_metric_and_leaves_the_network_as_found(self, task, training):
        network = task.network(0).train(training)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        curve = task.evaluate(network, self.SIZES[::-1])
        assert network.training is training
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert curve.sizes == self.SIZES
        assert isinstance(task.metrics, Metrics)
        assert all(tuple(point.metrics) == task.metrics.names for point in curve.points)
        assert all(0 <= quality <= 1 for quality in curve.qualities)
        for metric in task.metrics:
            low, high = sorted((metric.worst, metric.best))
            assert all(low <= value <= high for value in curve.by_size(metric.name).values())
        assert task.evaluate(network, self.SIZES) == curve  # and again the same

    def test_unchanged_images_are_judged_as_ever(self, task):
        network = task.network(0).eval()
        plain = task.evaluate(network, self.SIZES[:1]).points[0].metrics
        assert task.evaluate_changed(network, self.SIZES[0], lambda pixels, _: pixels) == pytest.approx(plain)
        darker = task.evaluate_changed(network, self.SIZES[0], lambda pixels, _: pixels.float() / 4)
        assert darker != pytest.approx(plain)

    def test_the_test_set_is_read_for_the_final_alone(self, config):
        search, final = (make_task(config, judge, "cpu") for judge in ("validation", "test"))
        assert final.n_train > search.n_train
        assert search.n_train + search.n_judged <= final.n_train

    def test_its_data_are_known_by_name_digest_and_number(self, task, config):
        identity = type(task).identity(config)
        assert (identity.train, identity.validation) == (task.n_train, task.n_judged)
        assert identity.name == config.dataset
        assert identity.digest
        assert identity.test > 0

    def test_settings_that_its_loss_does_not_know_are_refused(self, task, config):
        task.check_recipe(config, Recipe())
        for name in {*LOSS_SETTINGS} - task.recipe_settings - {"distill"}:
            with pytest.raises(ValueError, match=rf"recipe\.{name}"):
                task.check_recipe(config, Recipe(**{name: 0.25}))
            with pytest.raises(ValueError, match=rf"recipe\.{name}"):
                task.check_recipe(config, Recipe(), [name])

    def test_a_resumed_run_ends_as_an_uninterrupted_one(self, config, tmp_path):
        small, large = self.SIZES
        regime = Regime.of(BatchShape(small, 8), [Mixture.of([BatchShape(small, 8), BatchShape(large, 4)])])
        training = TrainingConfig(config, Budget(1), Evaluation(self.SIZES, 2), threads=1, device="cpu")

        def stop(step, views):
            if step == 7:
                raise InterruptedError

        whole, broken, resumed = (Run.prepare(regime, training) for _ in range(3))
        reports = list(whole.reports())
        with pytest.raises(InterruptedError):
            list(broken.reports(tmp_path / "c.pt", every=0.0, on_step=stop))
        again = list(resumed.reports(tmp_path / "c.pt", every=0.0))
        assert [r.curve for r in again] == [r.curve for r in reports]
        mine, theirs = resumed.network.state_dict(), whole.network.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in mine.items())

    def test_its_weights_are_written_and_read(self, config, tmp_path):
        regime = Regime.of(BatchShape(self.SIZES[0], 8), [Mixture.of([BatchShape(self.SIZES[0], 8)])])
        training = TrainingConfig(config, Budget(1), Evaluation(self.SIZES), threads=1, device="cpu")
        run = Run.prepare(regime, training)
        run.save_weights(tmp_path / "weights.safetensors")
        other = run.task.network(1)
        run.task.load_weights(other, tmp_path / "weights.safetensors")
        mine = run.network.state_dict()
        assert all(torch.equal(v, mine[k]) for k, v in other.state_dict().items())
