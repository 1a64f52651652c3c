"""Encode an image data set once, no larger than training needs: python -m mixtune.prepare --data FOLDER --out FOLDER2

FOLDER2 is a data set like the first, of files or of archives: --set task.data=FOLDER2. The same command again goes on
where one that was stopped left off, and does nothing once all is done; --verify compares every file with its checksum
first.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
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

from mixtune.cli import Parser, parse_args, relative_to_cwd, run_command
from mixtune.data import manifest, prepare_images, prepared_folder, tar_writer
from mixtune.data.manifest import ManifestEntry
from mixtune.data.prepare_images import SourceImage
from mixtune.data.prepared_folder import PrepareTarget
from mixtune.data.tar_writer import write_archives
from mixtune.errors import InputError, TrainingError

FILES_PER_WRITE = 256  # files whose entries are appended to the manifest at once
S = TypeVar("S")
T = TypeVar("T")


def parser() -> Parser:
    """Return the command's flags."""
    p = Parser("mixtune.prepare", __doc__.split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*, or archives")
    p.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, or one that this command began")
    p.add_argument("--size", type=int, metavar="PX", help="the largest size that will be trained or evaluated")
    p.add_argument("--space", metavar="FILE", help="take the largest size of this search space instead")
    p.add_argument("--format", choices=("jpeg", "ppm"), default="jpeg", help="ppm: six times as large, no decoding")
    p.add_argument("--quality", type=int, default=90, help="of JPEGs, 1 to 95 (default: 90)")
    p.add_argument("--workers", type=int, help="processes (default: the CPU cores)")
    p.add_argument(
        "--archives", type=int, nargs="?", const=tar_writer.DEFAULT_MIB, metavar="MIB",
        help=f"write tar archives of about MIB (default: {tar_writer.DEFAULT_MIB}); always where DATA holds archives",
    )  # fmt: skip
    p.add_argument("--verify", action="store_true", help="compare what is there with its checksums, and mend it")
    return p


def largest_size(space: str) -> int:
    """Return the largest size that a search space trains or evaluates."""
    from mixtune.config import parse, read_yaml
    from mixtune.search.space import Space

    parsed = parse(read_yaml(space), Space, space)
    return max(parsed.base.S, *parsed.search.sizes, *parsed.evaluate.sizes)


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
        images = prepare_images.find_images(data)
    except (InputError, OSError) as err:
        raise InputError(f"--data: {err}") from None
    archives = args.archives is not None or any(image.stamp for image in images)
    target = PrepareTarget(size, args.format, args.quality, archives)
    archive_size, workers = (args.archives or tar_writer.DEFAULT_MIB) << 20, args.workers or os.cpu_count() or 1
    try:
        return _prepare(data, images, out, target, archive_size, workers, args.verify)
    except OSError as err:
        raise InputError(
            f"--out {out}: cannot be written ({err.strerror or err}); the same command goes on when it can"
        ) from None
    except BrokenProcessPool:
        raise TrainingError("a process that encodes was killed (for memory?); the same command goes on") from None


def _prepare(
    data: Path,
    images: list[SourceImage],
    out: Path,
    target: PrepareTarget,
    archive_size: int,
    workers: int,
    verify: bool,
) -> int:
    form = f"{target.format}, in archives" if target.archives else target.format
    print(f"target   {form}, shorter side at most {target.side} px (for sizes up to {target.size})")
    prepare_images.check_unique_names(images, target)
    prepared_folder.open_prepared_folder(out, target)
    known = manifest.read_manifest(out)
    stamps = ((image.name, image.stamp or manifest.file_stamp(data / image.name)) for image in images)
    done = manifest.intact_entries(known, out, stamps, verify)
    manifest.remove_stale(out, known, done)
    missing = [image for image in images if image.name not in done]
    for folder in {image.part if target.archives else Path(image.name).parent for image in images}:
        (out / folder).mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for entries in _write(data, out, missing, target, archive_size, workers, known):
        manifest.append_entries(out, entries)
        done |= {entry.source: entry for entry in entries if entry.source}
    seconds = max(time.monotonic() - start, 1e-9)
    unreadable = [done[image.name] for image in images if not done[image.name].written]
    before, after = (sum(prepare_images.entry_sizes(done[image.name])[i] for image in images) for i in (0, 1))
    print(f"images   {len(images):,}, of which {len(missing):,} encoded now ({len(missing) / seconds:,.0f} images/s)")
    print(f"bytes    {before:,} -> {after:,} ({after / max(1, before):.2f})")
    if unreadable:
        example = f"{unreadable[0].source} ({unreadable[0].reason})"
        print(f"left out {len(unreadable)} that cannot be read, for example {example}")
    classes = {(image.part, image.class_name) for image in images}
    empty = classes - {(image.part, image.class_name) for image in images if done[image.name].written}
    if empty or not images:
        raise InputError(f"--data {'/'.join((str(data), *min(empty, default=())))}: holds no image that can be read")
    if archive := prepare_images.changed_archive(data, images):
        raise InputError(f"--data: {archive} changed while it was read; run the same command again")
    counts = {"images": len(images) - len(unreadable), "bytes": after}
    prepared_folder.write_state(out, asdict(target) | {"complete": True} | counts)
    print(f"written to {relative_to_cwd(out)}; use it with --set task.data={relative_to_cwd(out)}")
    return 0


def _write(
    data: Path,
    out: Path,
    missing: list[SourceImage],
    target: PrepareTarget,
    archive_size: int,
    workers: int,
    known: Mapping[str, ManifestEntry],
) -> Iterator[list[ManifestEntry]]:
    """Encode and write the missing images; yield the entries of an archive, or of some files, once they are written."""
    if target.archives:
        ahead = 4 * workers  # few, as this process holds their content
        encoded = _map(partial(prepare_images.encode_source, str(data), target=target), missing, workers, ahead)
        yield from write_archives(out, zip(missing, encoded, strict=True), target, archive_size, known)
    else:
        names = [image.name for image in missing]
        prepare_file = partial(prepare_images.prepare_file, str(data), str(out), target=target)
        entries = _map(prepare_file, names, workers, 2 * FILES_PER_WRITE)
        while batch := list(itertools.islice(entries, FILES_PER_WRITE)):
            yield batch


def _map(function: Callable[[S], T], items: list[S], workers: int, ahead: int) -> Iterator[T]:
    """Yield the function's results in order, computed in processes, at most ``ahead`` at once."""
    if not items:
        return
    executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
    try:
        upcoming, pending = iter(items), deque[Future[T]]()
        while True:
            pending.extend(executor.submit(function, item) for item in itertools.islice(upcoming, ahead - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, however it ended: a killed one cannot stop its pool."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    run_command(main)
