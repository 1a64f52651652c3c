"""What the benchmarks share: both sides in one run, medians with quartiles, a JSON file with hardware and versions."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.readme import ROOT, commit
from mixtune.files import atomic_write
from mixtune.runtime.environment import describe_environment

RESULTS = ROOT / "benchmarks" / "results"


def hardware() -> dict[str, str]:
    """Where and with what the numbers were made."""
    return describe_environment(("torch", "torchvision", "timm", "numpy")) | {"commit": commit()}


def side_by_side(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """``repeats`` measurements of every side, in turn, so that a slow spell of the machine meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(repeats):
        for name, measure in sides.items():
            found[name].append(measure())
            print(f"  {i + 1} of {repeats}  {name}: {found[name][-1]:.4g}", flush=True)
    return found


def quartiles_of(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of some measurements, and the measurements."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"n": len(values), "median": middle, "quartiles": [low, high], "values": list(values)}


@contextlib.contextmanager
def random_images(n: int, S: int = 32) -> Iterator[None]:
    """ "cifar10" is n random images of S px in the block: speed does not depend on what they show."""
    import torch

    from mixtune.data import datasets, sources

    g = torch.Generator().manual_seed(0)
    parts = [
        sources.Pixels(
            torch.randint(0, 256, (count, S, S, 3), generator=g, dtype=torch.uint8),
            torch.randint(0, 10, (count,), generator=g),
        )
        for count in (n, n // 5)
    ]
    made = sources.DataSet(parts[0], parts[1], 10, (0.5,) * 3, (0.25,) * 3)
    load = datasets.load_dataset
    datasets.load_dataset = lambda *_: made  # type: ignore[assignment]
    try:
        yield
    finally:
        datasets.load_dataset = load


def conclude(
    name: str,
    question: str,
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    write: bool = True,
) -> None:
    """Write ``results/NAME.json`` and print it; the last line printed ends with the first row's ratio.

    A row: what, ratio, at_least, aim (smaller is better where the aim is the smaller one), and what it was made from.
    """
    content = {"question": question, "hardware": hardware(), "settings": dict(settings), "rows": list(rows)}
    if write:
        atomic_write(RESULTS / f"{name}.json", json.dumps(content, indent=1).encode())
    for row in (*rows[1:], rows[0]):
        met = row["ratio"] <= row["at_least"] if row["aim"] < row["at_least"] else row["ratio"] >= row["at_least"]
        verdict = "reached" if met else "NOT reached"
        print(f"{row['what']} (goal {row['at_least']:g}, aim {row['aim']:g}: {verdict}): {row['ratio']:.3f}")
