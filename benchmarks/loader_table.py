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

FORMS = {"original": "mixtune, x", "jpeg": "prepared JPEG, x", "ppm": "prepared PPM, x"}

# How the page says what a row of the results compares.
SENTENCES = {
    "a mixture in random order against sorted": "speed of a mixture in random order, over the speed of the same steps "
    "sorted by shape",
    "decodes per view at D = 4, over 1/D": "decoded images per crop at D = 4, over 1/D",
    "the crops' distance from torchvision's in distribution, over the one that would be noticed": "distance of the "
    "distribution of crops from torchvision's, over the smallest distance that a test would detect",
    "views at 128 px decoded at a reduced scale, their PSNR over that between bicubic and bilinear shrinking": "PSNR "
    "of crops at 128 px that are decoded at a reduced scale, over the PSNR between bicubic and bilinear shrinking",
}


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
            what = SENTENCES.get(row["what"], row["what"])
            others.append(f"{what[0].upper()}{what[1:]}: {verdict}")
            continue
        place = row["images"], row["S"]
        cells.setdefault(place, {})[row["form"]] = f"{row['ratio']:.2f}"
        base[place] = row["images_per_second"]["torchvision"]["median"]
        if row["S"] == 128:
            goals[row["form"]] = f"{row['at_least']:g} / {row['aim']:g}"
        if row["S"] == 128 and row["form"] != "original":
            before = next(r["bytes_per_image"] for r in rows if r.get("images") == row["images"] and "form" in r)
            kept.append(
                f"| {row['images']} | {row['form'].upper()} | {row['bytes_per_image'] / before:.2f} "
                f"| {row['decibels']:.0f} | {row['prepared_per_second']:,.0f} |"
            )
    lines = [
        "| images | size | torchvision, images/s | " + " | ".join(FORMS.values()) + " |",
        "|---|--:|--:|" + "--:|" * len(FORMS),
        "| goal / aim at 128 px | | | " + " | ".join(goals[form] for form in FORMS) + " |",
    ]
    for (images, S), found in cells.items():
        ratios = " | ".join(found.get(form, "") for form in FORMS)
        lines.append(f"| {images} | {S} px | {base[images, S]:,.0f} | {ratios} |")
    repeats = max(side["n"] for row in rows if "form" in row for side in row["images_per_second"].values())
    lines += [
        "",
        "x: how many times as many images per second as torchvision's ImageFolder, Pillow and DataLoader. Both use "
        f"{made['settings']['workers']} workers and were measured in one run; medians of up to {repeats}, on "
        f"{on['cpu']}, torch {on['torch']}, at commit {on['commit'][:7]}.",
        "",
        "| images prepared for 128 px | format | bytes / bytes of the originals | PSNR of evaluated images, dB "
        "| prepared images/s |",
        "|---|---|--:|--:|--:|",
        *kept,
        "",
        "Other ratios. "
        + ". ".join(others)
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
