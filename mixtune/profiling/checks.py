"""Check a space before its first trial: image sizes, data, batches and budget; nothing is measured.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from mixtune.errors import InputError
from mixtune.profiling.feasibility import infeasible
from mixtune.profiling.step_benchmark import load_task
from mixtune.regime import BatchShape, Budget, Shard
from mixtune.search.domains import Uniform
from mixtune.search.space import Space
from mixtune.tasks.config import absolute_path
from mixtune.tasks.registry import task_class

EPOCH_DOUBLINGS = 15  # how often budget.epochs is doubled in search of a budget that would do


def with_absolute_paths(space: Space) -> Space:
    """Return the space with absolute paths of data and weights, since Ray's workers run in other folders."""
    recipe = space.recipe
    if recipe.distill is not None and recipe.distill.weights != "pretrained":
        recipe = replace(recipe, distill=replace(recipe.distill, weights=absolute_path(recipe.distill.weights)))
    return replace(space, task=space.task.with_absolute_paths(), recipe=recipe)


def _sizes(space: Space) -> dict[str, tuple[int, ...]]:
    """Return the image sizes of the space by their key."""
    sizes = {"base.S": (space.base.S,), "search.sizes": space.search.sizes, "evaluate.sizes": space.evaluate.sizes}
    return {key: tuple(values) for key, values in sizes.items()}


def check_sizes(space: Space, source: str) -> int:
    """Return the network's total stride.

    Raises InputError when a size is no multiple of it, the task's loss does not know a setting of the recipe, or the
    space does not hold a published or known regime.
    """
    network, task = space.task.network, task_class(space.task.kind)
    try:
        stride = task.stride(space.task)
    except ValueError as err:
        raise InputError(f"{source}: task.network: {err}") from None
    try:
        task.check_recipe(space.task, space.recipe, space.search.recipe)
        for key, S in ((key, S) for key, sizes in _sizes(space).items() for S in sizes):
            if S % stride:
                near = " or ".join(str(n) for n in (S // stride * stride, (S // stride + 1) * stride) if n)
                raise ValueError(f"{key}: {S} px is not a multiple of {network}'s total stride {stride}; use {near}")
        for name in space.published:
            space.published_params(name, stride)
        space.known_points(stride)
    except ValueError as err:
        raise InputError(f"{source}: {err}") from None
    return stride


def check_data(space: Space, source: str) -> int:
    """Return how many images a trial trains on. Raises InputError when the data are missing or too few for a shape."""
    try:
        task = load_task(replace(space.training(), device="cpu"))
        task.check_sizes(_sizes(space))
        if space.score.gmacs is not None:
            S = min(space.evaluate.sizes)
            space.score.check_cost(S, task.gmacs(S))
    except (InputError, ValueError) as err:
        raise InputError(f"{source}: {err}") from None
    check_batches(space, task.n_train, source)
    return task.n_train


def expected_images(space: Space, source: str) -> tuple[int, str]:
    """Return how many images a trial would train on, also where they are not there yet, and a remark that says so.

    Raises what ``check_data`` raises.
    """
    try:
        expected = task_class(space.task.kind).expected_images(space.training().task)
    except InputError as err:
        raise InputError(f"{source}: {err}") from None
    if expected is None:
        return check_data(space, source), ""
    check_batches(space, expected[0], source)
    return expected


def budget_in_pixels(space: Space) -> Budget:
    """Return the budget counted in pixels, before other costs are measured; an amount stands as one epoch."""
    if space.budget.amount is not None:
        return Budget(1.0, space.budget.spend)
    return replace(space.budget, cost="pixels")


def check_batches(space: Space, n_train: int, source: str) -> None:
    """Raise InputError, with what would do, when ``n_train`` images or the budget are too few for some candidate."""
    base, workers = space.base, space.resources.workers
    fits = bisect_right(range(1, base.B + 1), n_train, key=lambda B: max(B, _largest_batch(space, B).B))
    hint = f"base.B {fits} would fit" if fits else "no base.B would fit"
    if n_train < base.B:
        raise InputError(
            f"{source}: base: shape {base} needs {base.B} distinct images, and there are {n_train} to train on; {hint}"
        )
    largest = _largest_batch(space, base.B)
    if n_train < largest.B:
        raise InputError(
            f"{source}: search.sizes: {largest.S} px with split {space.search.splits[1]:g} needs batches of "
            f"{largest.B} distinct images, and there are {n_train} to train on; {hint}, or leave out {largest.S} px or "
            "lower split"
        )
    try:
        Shard(world=workers).check(space.shapes())
    except ValueError as err:
        most = min(shape.B for shape in space.shapes())
        raise InputError(
            f"{source}: resources.workers: {err}; raise base.B, or set resources.workers to {most} or fewer"
        ) from None
    budget = budget_in_pixels(space)
    if reason := _budget_too_small(space, budget, n_train):
        longer = (replace(budget, epochs=budget.epochs * 2**k) for k in range(1, EPOCH_DOUBLINGS + 1))
        enough = next((b.epochs for b in longer if not _budget_too_small(space, b, n_train)), None)
        hint = f"; budget.epochs={enough:.4g} would do" if enough and space.budget.amount is None else ""
        raise InputError(f"{source}: budget.epochs: {reason}{hint}")


def _largest_batch(space: Space, B: int) -> BatchShape:
    """Return the largest batch of a base of B: at the smallest size and the largest split."""
    return replace(space.base, B=B).resized(min(space.search.sizes), space.search.splits[1])


def _budget_too_small(space: Space, budget: Budget, n_train: int) -> str:
    """Return which published or known regime cannot meet this budget, and why; empty where all can."""
    training = replace(space.training(), budget=budget)
    points = example_points(space, 0)
    reasons = ((name, infeasible(space, space.regime(p, name), training, n_train)) for name, p in points.items())
    return next((f"regime {name}: {reason}" for name, reason in reasons if reason), "")


def example_points(space: Space, sampled: int) -> dict[str, dict[str, object]]:
    """Return points of the space by name: the published regimes, the known ones, and ``sampled`` ones drawn at random
    where trials are left for a search.
    """
    stride = task_class(space.task.kind).stride(space.task)
    points = {name: space.published_params(name, stride) for name in space.published}
    points |= {f"known {i}": point for i, point in enumerate(space.known_points(stride).values(), start=1)}
    drawn = sampled if space.trials > len(points) else 0
    return points | {f"sampled {i + 1}": space.suggest(Uniform(space.seed + i)) for i in range(drawn)}
