"""Which library reads photographs fastest? Decoders, resizers and whole loaders, each in one run on the same files.

    python -m benchmarks.libraries --data FOLDER     holds train/CLASS/* and val/CLASS/*, real photographs

Libraries that are not installed are left out; those that mixtune does not use are optional for this benchmark alone:
imagecodecs, nvidia-dali-cuda130.
The table in docs/ is made of it.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import loader
from benchmarks.common import RESULTS, conclude, quartiles_of, side_by_side
from benchmarks.readme import write
from mixtune.cli import Parser, parse_args, run_command
from mixtune.data import crops, datasets
from mixtune.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from mixtune.data.sources import Files
from mixtune.regime import BatchShape

S, FILES = 128, 200
OURS = "mixtune (OpenCV to enlarge, torch to shrink)"


def decoders() -> dict[str, Callable[[bytes], Any]]:
    """What makes pixels of a JPEG, by library; Pillow first."""

    def pillow(jpeg: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))

    def torchvisions(jpeg: bytes) -> Any:
        return library.decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))

    makers: dict[str, Callable[[Any], Callable[[bytes], Any]]] = {
        "simplejpeg": lambda m: m.decode_jpeg,
        "cv2": lambda m: lambda jpeg: m.imdecode(np.frombuffer(jpeg, np.uint8), m.IMREAD_COLOR_RGB),
        "imagecodecs": lambda m: m.jpeg8_decode,
    }
    library = importlib.import_module("torchvision.io")
    found: dict[str, Callable[[bytes], Any]] = {"Pillow": pillow, "torchvision": torchvisions}
    for name, make in makers.items():
        try:
            found[name] = make(importlib.import_module(name))
        except ImportError:
            print(f"{name} is not installed")
    return found


def resizers() -> dict[str, Callable[[np.ndarray], Any]]:
    """What makes S x S of a crop, by library; Pillow first."""
    out = np.empty((S, S, 3), np.uint8)
    found: dict[str, Callable[[np.ndarray], Any]] = {
        "Pillow": lambda crop: np.asarray(Image.fromarray(crop).resize((S, S), Image.Resampling.BILINEAR)),
        "torch": partial(crops.resize_into, out),
    }
    if crops.opencv():
        found[OURS] = partial(crops.resize_crop_into, out)
    return found


def dali(folder: Path, images: int) -> float:
    """Images per second of DALI's pipeline on the CPU, with the same augmentation. Raises ImportError."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=loader.BATCH, num_threads=loader.CORES, device_id=None, seed=0)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=str(folder / "train"), random_shuffle=True)
        pixels = fn.decoders.image_random_crop(jpegs, device="cpu", output_type=types.RGB)
        resized = fn.resize(pixels, size=[S, S], interp_type=types.INTERP_LINEAR, antialias=True)
        mean, std = ([255 * x for x in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        mirror = fn.random.coin_flip()
        options = {"dtype": types.FLOAT, "output_layout": "HWC", "mean": mean, "std": std, "mirror": mirror}
        return fn.crop_mirror_normalize(resized, **options), labels

    made = pipeline()
    made.build()
    return loader.loading_rate(made.run() for _ in range(1 + images // loader.BATCH))


def speeds(sides: dict[str, Callable[[Any], Any]], items: Sequence[Any], repeats: int) -> dict[str, list[float]]:
    """Items per second of one core, per side and repeat."""

    def once(act: Callable[[Any], Any]) -> float:
        began = time.perf_counter()
        for item in items:
            act(item)
        return len(items) / (time.perf_counter() - began)

    return side_by_side({name: partial(once, act) for name, act in sides.items()}, repeats)


def rows(task: str, found: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Every side against the first."""
    first, *others = found
    base = statistics.median(found[first])
    return [
        {"what": f"{task}: {name} over {first}", "task": task, "library": name, "base": first}
        | {"ratio": statistics.median(found[name]) / base, "at_least": 1.0, "aim": 1.0}
        | {"images_per_second": {side: quartiles_of(found[side]) for side in (first, name)}}
        for name in others
    ]


def table(results: Path = RESULTS) -> str:
    """The block in Markdown, of what was measured last."""
    found = json.loads((results / "libraries.json").read_text(encoding="utf-8"))
    lines = ["| task | library | images/s | ratio |", "|---|---|--:|--:|"]
    for i, row in enumerate(made := found["rows"]):
        speeds = {name: side["median"] for name, side in row["images_per_second"].items()}
        if i == 0 or made[i - 1]["task"] != row["task"]:
            lines.append(f"| {row['task']} | {row['base']} | {speeds[row['base']]:,.0f} | 1 |")
        lines.append(f"| | {row['library']} | {speeds[row['library']]:,.0f} | {row['ratio']:.2f} |")
    said = f"Medians of {found['settings']['repeats']} on {found['hardware']['cpu']}, {found['settings']['images']}"
    return "\n".join([*lines, "", f"{said}. Made by `python -m benchmarks.libraries --data FOLDER`."]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    p = Parser("benchmarks.libraries", (__doc__ or "").split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*")
    p.add_argument("--repeats", type=int, default=5)
    args: argparse.Namespace = parse_args(p, argv)
    torch.set_num_threads(1)
    if cv2 := crops.opencv():
        cv2.setNumThreads(1)
    folder = Path(args.data).absolute()
    source = datasets.load_dataset("folder", str(folder)).train
    assert isinstance(source, Files)
    chosen = random.Random(0).sample(source.paths, min(FILES, len(source)))  # noqa: S311
    jpegs = [Path(path).read_bytes() for path in chosen]
    made = rows("decoding a JPEG, one core", speeds(decoders(), jpegs, args.repeats))
    cut, (numbers, _) = [], crops.draw_crops(0, 0, len(jpegs))
    for jpeg, x in zip(jpegs, numbers.tolist(), strict=True):
        pixels = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        H, W, _ = pixels.shape
        top, left, h, w = crops.random_box(H, W, x, (0.08, 1.0), (3 / 4, 4 / 3))
        cut.append(pixels[top : top + h, left : left + w])
    with torch.inference_mode():
        made += rows(f"a random crop to {S} px, one core", speeds(resizers(), cut, args.repeats))
    images = 8 * len(jpegs)
    whole = {
        "torchvision": partial(loader.torchvisions, folder, S, images),
        "mixtune": partial(loader.ours, source, loader.steps(BatchShape(S, loader.BATCH), images), loader.CORES),
    }
    try:
        importlib.import_module("nvidia.dali")
        whole["DALI on the CPU"] = partial(dali, folder, images)
    except ImportError:
        print("nvidia.dali is not installed")
    made += rows(f"batches at {S} px, {loader.CORES} cores", side_by_side(whole, args.repeats))
    about = f"{len(jpegs)} photographs of {' x '.join(map(str, loader.dimensions(source)))}"
    settings = {"S": S, "images": about, "repeats": args.repeats}
    conclude("libraries", "Which library reads photographs fastest?", settings, made)
    write("libraries", table())
    return 0


if __name__ == "__main__":
    run_command(main)
