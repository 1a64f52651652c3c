"""Shards: image files inside plain tar archives, as WebDataset and ``tar`` write them, read in any order.

An image in an archive has an address, ``ARCHIVE.tar@OFFSET+SIZE/NAME``, which stands wherever a path does. A member's
class is its folder (``n01440764/x.jpg``) or what its neighbour of extension ``cls`` holds (``0001.jpg``, ``0001.cls``).
Where everything lies is found once, and kept in an index beside the archives where that can be written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from mixtune.errors import InputError

INDEX = "mixtune-index.json"
DIGITS = 9  # of numbered classes, so that their names are in the order of their numbers
OPEN = 128  # archives that a process holds open, at most
_ADDRESS = re.compile(r"(.+\.tar)@(\d+)\+(\d+)/", re.DOTALL)


class Place(NamedTuple):
    """Where an image lies: ``size`` bytes from ``offset`` on, of ``archive``; name: what it is called there."""

    archive: str
    offset: int
    size: int
    name: str


def place(path: str) -> Place | None:
    """What an address says; None for the path of a file of its own."""
    found = _ADDRESS.match(path)
    return found and Place(found[1], int(found[2]), int(found[3]), path[found.end() :])


@lru_cache(maxsize=OPEN)
def opened(archive: str) -> FileIO:
    """The archive, open for reading. It is closed once enough others were asked for and nobody holds it any more."""
    return open(archive, "rb", buffering=0)  # noqa: PTH123


def content(path: str) -> bytes:
    """The bytes of a file, or of what an address says. Raises OSError."""
    if inside := place(path):
        return os.pread(opened(inside.archive).fileno(), inside.size, inside.offset)
    return Path(path).read_bytes()


def archives(folder: Path) -> list[Path]:
    """The archives of a folder, in order."""
    return sorted(folder.glob("*.tar"))


def images(folder: Path, extensions: tuple[str, ...]) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes, and (address, number of its class) of every image in the archives of a folder, by class and name as
    in a folder of loose files: samples keep their numbers however they were packed. Raises InputError.
    """
    there = archives(folder)
    stamps = {a.name: f"{a.stat().st_size}-{a.stat().st_mtime_ns}" for a in there}
    found = _indexed(folder, stamps)
    if found is None:
        found = [[a.name, *member] for a in there for member in _members(a, extensions)]
        found.sort(key=lambda entry: entry[3:])
        _keep(folder, stamps, found)
    if not found:
        raise InputError(f"the archives in {folder} hold no images ({', '.join(extensions)})")
    classes = sorted({entry[3] for entry in found})
    number = {name: i for i, name in enumerate(classes)}
    return classes, [(f"{folder / name}@{at}+{size}/{member}", number[kind]) for name, at, size, kind, member in found]


def _members(archive: Path, extensions: tuple[str, ...]) -> Iterator[tuple[int, int, str, str]]:
    """Offset, size, class and name of the images in an archive."""
    listed: list[tuple[int, int, str]] = []
    classes: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all: gigabytes, for ImageNet
                key, extension = _split(member.name.removeprefix("./"))
                if member.isfile() and extension == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    classes[key] = content.read().decode("utf-8", "replace").strip().zfill(DIGITS)
                elif not member.isdir() and member.name.lower().endswith(extensions):
                    if not member.isfile() or member.issparse():
                        raise InputError(
                            f"{archive}: {member.name} is a link or has holes; pack it with tar --dereference "
                            "--hard-dereference, without --sparse"
                        )
                    listed.append((member.offset_data, member.size, member.name.removeprefix("./")))
    except (tarfile.TarError, OSError) as err:
        raise InputError(f"{archive} is not a whole, uncompressed tar archive ({err})") from None
    for offset, size, name in listed:
        kind = classes.get(_split(name)[0]) or Path(name).parent.name
        if not kind:
            raise InputError(
                f"{archive}: the class of {name} is not known: it lies in no folder, and beside it is no "
                f"{_split(name)[0]}.cls"
            )
        yield offset, size, kind, name


def _split(name: str) -> tuple[str, str]:
    """A member's key and extension, as WebDataset has them: the extension begins at the file name's first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


def _indexed(folder: Path, stamps: dict[str, str]) -> list[list[Any]] | None:
    """What the index holds, if it is of these very archives."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if kept["archives"] == stamps:
            return [[*entry] for entry in kept["images"] if len(entry) == 5]
    return None


def _keep(folder: Path, stamps: dict[str, str], found: list[list[Any]]) -> None:
    from mixtune.files import replace_file

    with contextlib.suppress(InputError):  # storage that is read only
        replace_file(folder / INDEX, json.dumps({"archives": stamps, "images": found}).encode())
