"""A regime as flags of timm's ``train.py`` (its scheduled resolution loader), or the reason why timm cannot express it.

timm can draw sizes with fixed probabilities, or slide a window over them with one position per epoch; a size has a
batch, and there are no copies. S, B, D as in ``shapes``. Source: timm 1.0.31, train.py and data/scheduled_sampler.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixtune.regime.regime import Regime
from mixtune.regime.rounding import timm_window
from mixtune.regime.schedule import Budget, Schedule
from mixtune.regime.shapes import BatchShape

MAX_EPOCHS = 100  # more choices than this on a command line help nobody
TIMM_TOLERANCE = 0.01  # the largest share of the steps for which timm's size may differ from the regime's


@dataclass(frozen=True)
class TimmFlags:
    """``flags`` for train.py; ``deviation`` is the share of the steps that timm gives to other sizes."""

    flags: tuple[str, ...]
    steps: int
    deviation: float


def timm_flags(
    regime: Regime,
    budget: Budget,
    n_samples: int,
    processes: int = 1,
    spread: float = 0.65,
    random_mix: float = 0.1,
    tolerance: float = TIMM_TOLERANCE,
) -> TimmFlags:
    """Return the flags that spend ``budget`` on ``n_samples`` images with ``processes`` processes (one per GPU).

    A timm epoch becomes a fixed number of steps: one part of the sequence of sizes, not one pass over the data.
    ``spread`` and ``random_mix`` are the settings of timm's window to fit. Raise ValueError with the numbers
    when the regime has copies (D > 1), when a batch cannot be shared by the processes, and when timm's schedule would
    give more than ``tolerance`` of the steps to other sizes.
    """
    name = regime.name or str(regime)
    copies = [s for s in regime.shapes if s.D > 1]
    if copies:
        raise ValueError(
            f"timm cannot express {name}: its loader feeds one copy of an image, and {copies[0]} has D = {copies[0].D}"
        )
    uneven = [s for s in regime.shapes if s.B % processes]
    if uneven:
        raise ValueError(f"timm cannot express {name}: {uneven[0].B} images ({uneven[0]}) for {processes} processes")
    schedule = Schedule.build(regime, budget, n_samples, seed=0)
    if len(regime.phases) == 1:
        mixture = regime.phases[0].mixture
        weights = ("--train-size-probs", *(f"{p:.10g}" for p in mixture.p)) if len(mixture.p) > 1 else ()
        extra = (*weights, "--train-size-schedule", "constant")
        return _flags(regime, mixture.shapes, extra, max(1, round(budget.epochs)), schedule, processes, 0.0)
    if all(len(ph.mixture.shapes) == 1 for ph in regime.phases) and len(regime.phases) <= MAX_EPOCHS:
        choices, deviation = _sequence(regime, schedule)
        epochs, spread, random_mix = len(choices), 0.0, 0.0
    else:
        choices, deviation = _window(regime, schedule, spread, random_mix)
        epochs = len(regime.phases)
    if deviation > tolerance:
        raise ValueError(
            f"timm cannot express {name}: its window over {len(choices)} choices (spread {spread:g}, random mix "
            f"{random_mix:g}, {epochs} positions of equally many steps) would give {100 * deviation:.1f} % of the "
            f"steps to other sizes; {100 * tolerance:g} % is allowed"
        )
    window = ("--train-size-schedule-spread", f"{spread:g}", "--train-size-random-mix", f"{random_mix:g}")
    extra = ("--train-size-schedule", "progressive", *window)
    return _flags(regime, choices, extra, epochs, schedule, processes, deviation)


def _flags(
    regime: Regime,
    choices: tuple[BatchShape, ...],
    extra: tuple[str, ...],
    epochs: int,
    schedule: Schedule,
    processes: int,
    deviation: float,
) -> TimmFlags:
    per_epoch = max(1, round(len(schedule) / epochs))
    flags = (
        *("--img-size", str(regime.base.S)),  # what validation uses
        *("--train-img-sizes", *(str(s.S) for s in choices)),
        *("--train-batch-sizes", *(str(s.B // processes) for s in choices)),
        *extra,
        *("--epochs", str(epochs), "--train-batches-per-epoch", str(per_epoch)),
        "--sched-on-updates",  # timm's epochs are long here, so the learning rate follows the steps
    )
    return TimmFlags(flags, epochs * per_epoch, deviation)


def _sequence(regime: Regime, schedule: Schedule) -> tuple[tuple[BatchShape, ...], float]:
    """Return phases of one shape as choices, one per timm epoch, each repeated by its share; and the deviation.

    They are the fewest epochs within a tenth of the tolerance, else the nearest there are.
    """
    shares = [n / len(schedule) for n in schedule.phase_steps]
    best: tuple[float, int, list[int]] | None = None
    for epochs in range(len(shares), MAX_EPOCHS + 1):
        ends = [round(sum(shares[: i + 1]) * epochs) for i in range(len(shares))]
        repeats = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        off = sum(abs(k / epochs - x) for k, x in zip(repeats, shares, strict=True)) / 2
        if best is None or off < best[0] - 1e-12:
            best = (off, epochs, repeats)
        if off <= TIMM_TOLERANCE / 10:
            break
    assert best is not None
    shapes = [ph.mixture.shapes[0] for ph in regime.phases]
    return tuple(s for s, k in zip(shapes, best[2], strict=True) for _ in range(k)), best[0]


def _window(
    regime: Regime, schedule: Schedule, spread: float, random_mix: float
) -> tuple[tuple[BatchShape, ...], float]:
    """Return the choices in the window's order (growing or shrinking, whichever is nearer), and the deviation."""
    n = len(regime.phases)
    best: tuple[tuple[BatchShape, ...], float] | None = None
    for choices in (regime.shapes, regime.shapes[::-1]):
        off = 0.0
        for i, (phase, steps) in enumerate(zip(regime.phases, schedule.phase_steps, strict=True)):
            ours = dict(zip(phase.mixture.shapes, phase.mixture.p, strict=True))
            theirs = timm_window([1.0] * len(choices), i / (n - 1), spread, random_mix)
            share = steps / len(schedule)
            off += sum(abs(ours.get(s, 0.0) * share - q / n) for s, q in zip(choices, theirs, strict=True)) / 2
        if best is None or off < best[1]:
            best = (choices, off)
    assert best is not None
    return best
