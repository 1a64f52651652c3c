"""Encode an image folder once, no larger than training needs: python -m mixtune.prepare --data FOLDER --out FOLDER2

FOLDER2 is an image folder like the first: --set task.data=FOLDER2. The same command again goes on where one that was
stopped left off, and does nothing once all is done; --verify compares every file with its checksum first.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from mixtune.cli import Parser, parse_args, run, short
from mixtune.errors import InputError, TrainingError
from mixtune.training.images import prepared
from mixtune.training.images.prepared import Entry, Target


def parser() -> Parser:
    """The command's flags."""
    p = Parser("mixtune.prepare", __doc__.split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*")
    p.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or one that this command began")
    p.add_argument("--size", type=int, metavar="PX", help="the largest size that will be trained or evaluated")
    p.add_argument("--space", metavar="FILE", help="take the largest size of this search space instead")
    p.add_argument("--format", choices=("jpeg", "ppm"), default="jpeg", help="ppm: six times as large, no decoding")
    p.add_argument("--quality", type=int, default=90, help="of JPEGs, 1 to 95 (default: 90)")
    p.add_argument("--workers", type=int, help="processes (default: the CPU cores)")
    p.add_argument("--verify", action="store_true", help="compare what is there with its checksums, and mend it")
    return p


def largest_size(space: str) -> int:
    """The largest size that a search space trains or evaluates."""
    from mixtune.config import parse, read_yaml
    from mixtune.study.space import Space

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
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers must be at least 1, not {args.workers}")
    data, out = Path(args.data).absolute(), Path(args.out).absolute()
    for part in ("train", "val"):
        if not (data / part).is_dir():
            raise InputError(f"--data {data}: the folder {part}/ with one folder per class is missing")
    if out.resolve().is_relative_to(data.resolve()) or data.resolve().is_relative_to(out.resolve()):
        raise InputError(f"--out {out}: must lie outside {data}, and not hold it")
    target = Target(size, args.format, args.quality)
    try:
        return _prepare(data, out, target, args.workers, args.verify)
    except OSError as err:
        raise InputError(
            f"--out {out}: cannot be written ({err.strerror or err}); the same command goes on when it can"
        ) from None
    except BrokenProcessPool:
        raise TrainingError("a process that encodes was killed (for memory?); the same command goes on") from None


def _prepare(data: Path, out: Path, target: Target, workers: int | None, verify: bool) -> int:
    print(f"target   {target.format}, shorter side at most {target.side} px (for sizes up to {target.size})")
    prepared.begin(out, target)
    found = list(prepared.sources(data))
    done = prepared.done_already(out, data, verify)
    missing = [s for s in found if s not in done]
    for stale in out.rglob(".*.part"):  # of a run that was killed
        stale.unlink()
    for folder in {Path(s).parent for s in found}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    began, batch = time.monotonic(), list[Entry]()
    for entry in _encoded(data, out, missing, target, workers):
        batch.append(entry)
        done[entry.source] = entry
        if len(batch) == prepared.BATCH:
            prepared.record(out, batch)
            batch = []
    prepared.record(out, batch)
    seconds = max(time.monotonic() - began, 1e-9)
    bad = [done[s] for s in found if not done[s].written]
    before = sum(int(done[s].stamp.partition("-")[0] or 0) for s in found)
    after = sum(done[s].bytes for s in found)
    print(f"images   {len(found):,}, of which {len(missing):,} encoded now ({len(missing) / seconds:,.0f} images/s)")
    print(f"bytes    {before:,} -> {after:,} ({after / max(1, before):.2f})")
    if bad:
        print(f"left out {len(bad)} that cannot be read, for example {bad[0].source} ({bad[0].why})")
    empty = {Path(s).parent for s in found} - {Path(s).parent for s in found if done[s].written}
    if empty or not found:
        raise InputError(f"--data {data / min(empty, default='')}: holds no image that can be read")
    settings = {"size": target.size, "format": target.format, "quality": target.quality}
    prepared.write_state(out, settings | {"complete": True, "images": len(found) - len(bad), "bytes": after})
    print(f"written to {short(out)}; use it with --set task.data={short(out)}")
    return 0


def _encoded(data: Path, out: Path, missing: list[str], target: Target, workers: int | None) -> Iterator[Entry]:
    """Entries as they are done, with a bounded number under way."""
    if not missing:
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        upcoming, under_way = iter(missing), deque[Future[Entry]]()
        while True:
            more = itertools.islice(upcoming, 4 * prepared.BATCH - len(under_way))
            under_way.extend(pool.submit(prepared.prepare_one, str(data), str(out), s, target) for s in more)
            if not under_way:
                return
            yield under_way.popleft().result()


if __name__ == "__main__":
    run(main)
