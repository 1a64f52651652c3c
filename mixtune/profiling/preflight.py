"""What can be checked and told before the first trial: sizes, data, and the plan of a dry run."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from mixtune.errors import InputError
from mixtune.profiling.trial_parts import whole_runs
from mixtune.regime import BatchShape, Budget, Regime, Schedule, Shard
from mixtune.search.domains import Uniform
from mixtune.search.space import Space
from mixtune.tasks.base import check_shapes, make_task
from mixtune.tasks.config import full_path
from mixtune.tasks.registry import task_class


def in_full(space: Space) -> Space:
    """The same space with absolute paths of data and weights: Ray's workers run in other folders."""
    task, recipe = space.task.in_full(), space.recipe
    if recipe.distill is not None and recipe.distill.weights != "pretrained":
        recipe = replace(recipe, distill=replace(recipe.distill, weights=full_path(recipe.distill.weights)))
    return replace(space, task=task, recipe=recipe)


def check_sizes(space: Space, source: str) -> int:
    """The network's total stride. Raises InputError when a size of the space is off it, or a published regime is not in
    the space.
    """
    try:
        stride = task_class(space.task.kind).stride(space.task)
    except ValueError as err:
        raise InputError(f"{source}: task.network: {err}") from None
    try:
        task_class(space.task.kind).check_recipe(space.task, space.recipe, space.search.recipe)
    except ValueError as err:
        raise InputError(f"{source}: {err}") from None
    for key, sizes in (
        ("base.S", (space.base.S,)),
        ("search.sizes", space.search.sizes),
        ("evaluate.sizes", space.evaluate.sizes),
    ):
        for S in sizes:
            if S % stride:
                down, up = S // stride * stride, (S // stride + 1) * stride
                near = f"{down} or {up}" if down else f"{up}"
                raise InputError(
                    f"{source}: {key}: {S} px is not a multiple of {space.task.network}'s total stride {stride}; "
                    f"use {near}"
                )
    for name in space.published:
        try:
            space.published_params(name, stride)
        except ValueError as err:
            raise InputError(f"{source}: {err}") from None
    try:
        space.known_points(stride)
    except ValueError as err:
        raise InputError(f"{source}: {err}") from None
    return stride


def check_data(space: Space, source: str) -> int:
    """How many images a trial trains on. Raises InputError when the data are missing or too few for a shape."""
    try:
        task = make_task(space.task, device="cpu")
        wanted = {"base.S": [space.base.S], "search.sizes": space.search.sizes, "evaluate.sizes": space.evaluate.sizes}
        task.check_sizes(wanted)
    except InputError as err:
        raise InputError(f"{source}: {err}") from None
    if space.score.gmacs is not None:
        S = min(space.evaluate.sizes)
        try:
            space.score.check_cost(S, task.gmacs(S))
        except ValueError as err:
            raise InputError(f"{source}: {err}") from None
    check_batches(space, task.n_train, source)
    return task.n_train


def expected_images(space: Space, source: str) -> tuple[int, str]:
    """How many images a trial would train on, as its loader counts them where they lie; and, where they do not, of what
    that is the number and where they are missed. Raises what ``check_data`` raises.
    """
    try:
        expected = task_class(space.task.kind).expected_images(space.task)
    except InputError as err:
        raise InputError(f"{source}: {err}") from None
    if expected is None:
        return check_data(space, source), ""
    check_batches(space, expected[0], source)
    return expected


def in_pixels(space: Space) -> Budget:
    """The budget counted in pixels, for a look before anything is measured; an amount stands as one epoch."""
    if space.budget.amount is not None:
        return Budget(1.0, space.budget.spend)
    return replace(space.budget, cost="pixels")


def check_batches(space: Space, n_train: int, source: str) -> None:
    """Raise InputError, with what would do, when some candidate cannot be filled from ``n_train`` images."""
    base = space.base
    fits = fitting_base(space, n_train)
    helps = f"base.B {fits} would fit" if fits else "no base.B would fit"
    try:
        check_shapes([base], space.task, n_train)
    except ValueError as err:
        raise InputError(f"{source}: base: {err}; {helps}") from None
    worst = _largest(space, base.B)
    if n_train < worst.B:
        raise InputError(
            f"{source}: search.sizes: {worst.S} px with split {space.search.splits[1]:g} needs batches of {worst.B} "
            f"distinct images, and there are {n_train} to train on; {helps}, or leave out {worst.S} px or lower split"
        )
    try:
        Shard(world=space.resources.workers).check(space.shapes())
    except ValueError as err:
        most = min(shape.B for shape in space.shapes())
        raise InputError(
            f"{source}: resources.workers: {err}; raise base.B, or set resources.workers to {most} or fewer"
        ) from None
    if said := _unmet(space, in_pixels(space), n_train):
        longer = (replace(in_pixels(space), epochs=in_pixels(space).epochs * 2**k) for k in range(1, 16))
        enough = next((budget.epochs for budget in longer if not _unmet(space, budget, n_train)), None)
        helps = f"; budget.epochs={enough:.4g} would do" if enough and space.budget.amount is None else ""
        raise InputError(f"{source}: budget.epochs: {said}{helps}")


def fitting_base(space: Space, n_train: int) -> int:
    """The largest base.B, up to the space's own, whose batches can all be filled from ``n_train`` images."""
    batches = range(1, space.base.B + 1)
    return bisect_right(batches, n_train, key=lambda B: max(B, _largest(space, B).B))


def _largest(space: Space, B: int) -> BatchShape:
    """The largest batch of a base of B: at the smallest size and the largest split."""
    return replace(space.base, B=B).resized(min(space.search.sizes), space.search.splits[1])


def _unmet(space: Space, budget: Budget, n_train: int) -> str:
    """Which published or known regime cannot meet this budget, and why; empty where all can."""
    for name, params in examples(space, 0).items():
        try:
            for share in sorted({stage.share for stage in space.stages}):
                Schedule.build(space.regime(params, name), budget, n_train, space.seed, share=share)
        except ValueError as err:
            return f"regime {name}: {err}"
    return ""


def examples(space: Space, sampled: int) -> dict[str, dict[str, object]]:
    """Points of the space by name: the published regimes, the known ones, and as many drawn evenly as are asked for,
    where there are trials left for a search.
    """
    stride = task_class(space.task.kind).stride(space.task)
    points = {name: space.published_params(name, stride) for name in space.published}
    points |= {f"known {i}": point for i, point in enumerate(space.known_points(stride).values(), start=1)}
    drawn = sampled if space.trials > len(points) else 0
    return points | {f"sampled {i + 1}": space.suggest(Uniform(space.seed + i)) for i in range(drawn)}


def plan(space: Space, n_train: int, sampled: int = 4, missed: str = "") -> str:
    """The published regimes and a few sampled ones: steps, epochs, cost against the base, dearest step.

    missed: of ``expected_images``.
    """
    lines = [
        f"{n_train:,} training images{missed}; base {space.base}, {space.budget}; equal {space.budget.spend}",
        "",
        f"{'regime':<11} {'steps':>9} {'epochs':>7} {'views':>8} {'compute':>8} {'peak':>14}  shapes SxBxD, % of steps",
    ]
    total = in_pixels(space).epochs * n_train * space.base.pixels / space.base.B
    for name, params in examples(space, sampled).items():
        regime: Regime = space.regime(params, name)
        try:
            s = Schedule.build(regime, in_pixels(space), n_train, space.seed)
        except ValueError as err:
            lines.append(f"{name:<11} would be refused: {err}")
            continue
        dear = max(s.shapes, key=lambda shape: shape.pixels)
        peak = f"{dear} {dear.pixels / space.base.pixels:.2f}x"
        views = s.views / n_train
        lines.append(
            f"{name:<11} {len(s):>9,} {s.samples / n_train:>7.1f} {views:>7.1f}n {s.pixels / total:>7.3f}x {peak:>14}  "
            f"{regime}"
        )
    lines += ["", "epochs: passes over the training images; views: images through the network, n per training image;"]
    lines += ["compute: pixels of the whole run against the base; peak: the dearest step against a base step"]
    most, expected = whole_runs(space)
    said = f"{most:.3g} runs of the whole budget" + (" if nothing is pruned" if space.pruning.name != "none" else "")
    if expected is not None and expected < most:
        said = f"{expected:.3g} runs of the whole budget if {space.pruning.name} keeps its share, {said}"
    lines.append(f"search: {space.trials} trials, in all the compute of {said}")
    if space.final is not None:
        lines.append(space.final.cost(len(space.published), space.folds, space.trials))
    if space.budget.amount is not None:
        lines.append(f"shown for one epoch of the base; the search spends {space.budget}")
    if space.budget.cost != "pixels":
        lines.append(
            f"counted in pixels here; the search first measures the {space.budget.cost} of a step of every shape"
        )
    return "\n".join(lines)
