"""The table of how fast image files become batches, in docs/, from benchmarks/results/loader.json.

python -m benchmarks.loader_table
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.readme import write
from mixtune.cli import Parser, parse_args, run_command

FORMS = {"original": "as they are", "jpeg": "prepared, JPEG", "ppm": "prepared, PPM"}


def table(results: Path = RESULTS) -> str:
    """The block in Markdown."""
    made = json.loads((results / "loader.json").read_text(encoding="utf-8"))
    rows, on = made["rows"], made["hardware"]
    cells: dict[tuple[str, int], dict[str, str]] = {}
    base: dict[tuple[str, int], float] = {}
    goals: dict[str, str] = {}
    others, kept = [], list[str]()
    for row in rows:
        if "form" not in row:
            smaller = row["aim"] < row["at_least"]
            verdict = f"{row['ratio']:.3f} (goal {'≤' if smaller else '≥'} {row['at_least']:g}, aim {row['aim']:g})"
            others.append(f"{row['what'][0].upper()}{row['what'][1:]}: {verdict}")
            continue
        place = row["images"], row["S"]
        cells.setdefault(place, {})[row["form"]] = f"{row['ratio']:.2f}"
        base[place] = row["images_per_second"]["torchvision"]["median"]
        if row["S"] == 128:
            goals[row["form"]] = f"{row['at_least']:g} / {row['aim']:g}"
        if row["S"] == 128 and row["form"] != "original":
            before = next(r["bytes_per_image"] for r in rows if r.get("images") == row["images"] and "form" in r)
            kept.append(
                f"{row['images']} as {row['form'].upper()}: {row['bytes_per_image'] / before:.2f} of the bytes, "
                f"{row['decibels']:.0f} dB, {row['prepared_per_second']:,.0f} images/s"
            )
    lines = [
        "| images | size | torchvision, images/s | " + " | ".join(FORMS.values()) + " |",
        "|---|--:|--:|" + "--:|" * len(FORMS),
        "| goal / aim, at 128 px | | | " + " | ".join(goals[form] for form in FORMS) + " |",
    ]
    for (images, S), found in cells.items():
        ratios = " | ".join(found.get(form, "") for form in FORMS)
        lines.append(f"| {images} | {S} px | {base[images, S]:,.0f} | {ratios} |")
    repeats = max(side["n"] for row in rows if "form" in row for side in row["images_per_second"].values())
    lines += [
        "",
        f"How many times as fast as torchvision's ImageFolder, Pillow and DataLoader, each with "
        f"{made['settings']['workers']} workers: medians of up to {repeats}, both in one run on "
        f"{on['cpu']}, torch {on['torch']}, at commit {on['commit'][:7]}. "
        + ". ".join(others)
        + ". Prepared for 128 px (bytes over the originals', PSNR of the evaluated images against theirs, speed of "
        + f"preparing): {'; '.join(kept)}"
        + ". Made by `python -m benchmarks.loader --data FOLDER`, then `python -m benchmarks.loader_table`.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the block and print it."""
    parse_args(Parser("benchmarks.loader_table", (__doc__ or "").split("\n")[0]), argv)
    write("loader", table())
    print(table())
    return 0


if __name__ == "__main__":
    run_command(main)
