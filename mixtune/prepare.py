"""Encode an image data set once, no larger than training needs: python -m mixtune.prepare --data FOLDER --out FOLDER2

FOLDER2 is a data set like the first, of files or of archives: --set task.data=FOLDER2. The same command again goes on
where one that was stopped left off, and does nothing once all is done; --verify compares every file with its checksum
first.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from mixtune.cli import Parser, parse_args, run, short
from mixtune.data import convert, manifest, tar_writer
from mixtune.data.convert import Source, Target
from mixtune.data.manifest import Entry
from mixtune.data.tar_writer import archived
from mixtune.errors import InputError, TrainingError

BATCH = 256  # files between two entries in the list
S = TypeVar("S")
T = TypeVar("T")


def parser() -> Parser:
    """The command's flags."""
    p = Parser("mixtune.prepare", __doc__.split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*, or archives")
    p.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or one that this command began")
    p.add_argument("--size", type=int, metavar="PX", help="the largest size that will be trained or evaluated")
    p.add_argument("--space", metavar="FILE", help="take the largest size of this search space instead")
    p.add_argument("--format", choices=("jpeg", "ppm"), default="jpeg", help="ppm: six times as large, no decoding")
    p.add_argument("--quality", type=int, default=90, help="of JPEGs, 1 to 95 (default: 90)")
    p.add_argument("--workers", type=int, help="processes (default: the CPU cores)")
    p.add_argument(
        "--archives", type=int, nargs="?", const=tar_writer.MIB, metavar="MIB",
        help=f"write tar archives of about so many MiB (default: {tar_writer.MIB}); always where DATA holds archives",
    )  # fmt: skip
    p.add_argument("--verify", action="store_true", help="compare what is there with its checksums, and mend it")
    return p


def largest_size(space: str) -> int:
    """The largest size that a search space trains or evaluates."""
    from mixtune.config import parse, read_yaml
    from mixtune.search.space import Space

    read = parse(read_yaml(space), Space, space)
    return max(read.base.S, *read.search.sizes, *read.evaluate.sizes)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, encode what is missing, print."""
    args = parse_args(parser(), argv)
    if (args.size is None) == (args.space is None):
        raise InputError("give either --size PX or --space FILE, which says the largest size")
    size = largest_size(args.space) if args.space else args.size
    for name, value, low, high in (("size", size, 1, 4096), ("quality", args.quality, 1, 95)):
        if not low <= value <= high:
            raise InputError(f"--{name} must lie between {low} and {high}, not be {value}")
    for name, value in (("workers", args.workers), ("archives", args.archives)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    data, out = Path(args.data).absolute(), Path(args.out).absolute()
    for part in ("train", "val"):
        if not (data / part).is_dir():
            raise InputError(
                f"--data {data}: the folder {part}/ with one folder per class, or with archives, is missing"
            )
    if out.resolve().is_relative_to(data.resolve()) or data.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out}: must lie outside {data}, and not hold it")
    try:
        found = convert.found(data)
    except (InputError, OSError) as err:
        raise InputError(f"--data: {err}") from None
    packed = args.archives is not None or any(source.stamp for source in found)
    target = Target(size, args.format, args.quality, packed)
    try:
        return _prepare(data, found, out, target, (args.archives or tar_writer.MIB) << 20, args.workers, args.verify)
    except OSError as err:
        raise InputError(
            f"--out {out}: cannot be written ({err.strerror or err}); the same command goes on when it can"
        ) from None
    except BrokenProcessPool:
        raise TrainingError("a process that encodes was killed (for memory?); the same command goes on") from None


def _prepare(
    data: Path, found: list[Source], out: Path, target: Target, size: int, workers: int | None, verify: bool
) -> int:
    form = f"{target.format}, in archives" if target.archives else target.format
    print(f"target   {form}, shorter side at most {target.side} px (for sizes up to {target.size})")
    convert.check_names(found, target)
    convert.begin(out, target)
    known = manifest.listed(out)
    done = manifest.intact(known, out, ((s.name, s.stamp or manifest.stamp(data / s.name)) for s in found), verify)
    manifest.clear(out, known, done)
    missing = [s for s in found if s.name not in done]
    for folder in {s.part if target.archives else Path(s.name).parent for s in found}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for batch in _written(data, out, missing, target, size, workers, known):
        manifest.record(out, batch)
        done |= {entry.source: entry for entry in batch if entry.source}
    seconds = max(time.monotonic() - began, 1e-9)
    bad = [done[s.name] for s in found if not done[s.name].written]
    before, after = (sum(convert.sizes(done[s.name])[i] for s in found) for i in (0, 1))
    print(f"images   {len(found):,}, of which {len(missing):,} encoded now ({len(missing) / seconds:,.0f} images/s)")
    print(f"bytes    {before:,} -> {after:,} ({after / max(1, before):.2f})")
    if bad:
        print(f"left out {len(bad)} that cannot be read, for example {bad[0].source} ({bad[0].why})")
    empty = {(s.part, s.kind) for s in found} - {(s.part, s.kind) for s in found if done[s.name].written}
    if empty or not found:
        raise InputError(f"--data {'/'.join((str(data), *min(empty, default=())))}: holds no image that can be read")
    if archive := convert.changed(data, found):
        raise InputError(f"--data: {archive} changed while it was read; run the same command again")
    convert.write_state(out, asdict(target) | {"complete": True, "images": len(found) - len(bad), "bytes": after})
    print(f"written to {short(out)}; use it with --set task.data={short(out)}")
    return 0


def _written(
    data: Path,
    out: Path,
    missing: list[Source],
    target: Target,
    size: int,
    workers: int | None,
    known: Mapping[str, Entry],
) -> Iterator[list[Entry]]:
    """Entries of what is in its place, some at a time: those of an archive, or of as many files."""
    if target.archives:
        ahead = 4 * (workers or os.cpu_count() or 1)  # few, as this process holds their content
        made = _each(partial(convert.encoded, str(data), target=target), missing, workers, ahead)
        yield from archived(out, zip(missing, made, strict=True), target, size, known)
    else:
        names = [source.name for source in missing]
        files = _each(partial(convert.prepare_one, str(data), str(out), target=target), names, workers, 2 * BATCH)
        while batch := list(itertools.islice(files, BATCH)):
            yield batch


def _each(act: Callable[[S], T], missing: list[S], workers: int | None, ahead: int) -> Iterator[T]:
    """What comes of each in turn, made in processes, with so many under way."""
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        upcoming, under_way = iter(missing), deque[Future[T]]()
        while True:
            under_way.extend(pool.submit(act, x) for x in itertools.islice(upcoming, ahead - len(under_way)))
            if not under_way:
                return
            yield under_way.popleft().result()


if __name__ == "__main__":
    run(main)
