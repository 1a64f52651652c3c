"""Archives: image files inside plain tar archives, as WebDataset and ``tar`` write them, read in any order.

An image in an archive has an address, ``ARCHIVE.tar@OFFSET+SIZE/NAME``, which is used wherever a path is. A member's
class is its folder (``n01440764/x.jpg``) or what its neighbour of extension ``cls`` holds (``0001.jpg``, ``0001.cls``).
An archive is listed once; the index is kept beside it where that can be written.
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

INDEX_FILE = "mixtune-index.json"
CLASS_DIGITS = 9  # of numbered classes, so that their names are in the order of their numbers
MAX_OPEN = 128  # archives that a process holds open, at most
_ADDRESS = re.compile(r"(.+\.tar)@(\d+)\+(\d+)/", re.DOTALL)


class ArchiveMember(NamedTuple):
    """Where an image lies: ``size`` bytes from ``offset`` on, of ``archive``; name: what it is called there."""

    archive: str
    offset: int
    size: int
    name: str


def parse_address(path: str) -> ArchiveMember | None:
    """Return the member that an address names; None for the path of a file of its own."""
    match = _ADDRESS.match(path)
    return match and ArchiveMember(match[1], int(match[2]), int(match[3]), path[match.end() :])


@lru_cache(maxsize=MAX_OPEN)
def open_archive(archive: str) -> FileIO:
    """Open an archive for reading, or return it open. It is closed when it has left the cache and nobody holds it."""
    return open(archive, "rb", buffering=0)  # noqa: PTH123


def read_bytes(path: str) -> bytes:
    """Return the bytes of a file, or of the archive's member that an address names. Raises OSError."""
    if member := parse_address(path):
        archive = open_archive(member.archive)  # held: other threads may have it leave the cache
        return os.pread(archive.fileno(), member.size, member.offset)
    return Path(path).read_bytes()


def list_archives(folder: Path) -> list[Path]:
    """Return the archives of a folder, in order."""
    return sorted(folder.glob("*.tar"))


def list_images(folder: Path, extensions: tuple[str, ...]) -> tuple[list[str], list[tuple[str, int]]]:
    """Return the classes, and (address, label) of every image in the archives of a folder.

    Images are in the order of class and name, as in a folder of loose files: samples keep their numbers however they
    were packed. Raises InputError.
    """
    archives = list_archives(folder)
    stamps = {a.name: f"{a.stat().st_size}-{a.stat().st_mtime_ns}" for a in archives}
    entries = _read_index(folder, stamps)
    if entries is None:
        entries = [[a.name, *member] for a in archives for member in _list_members(a, extensions)]
        entries.sort(key=lambda entry: entry[3:])
        _write_index(folder, stamps, entries)
    if not entries:
        raise InputError(f"the archives in {folder} hold no images ({', '.join(extensions)})")
    classes = sorted({entry[3] for entry in entries})
    labels = {name: i for i, name in enumerate(classes)}
    pairs = [(f"{folder / archive}@{at}+{size}/{name}", labels[cls]) for archive, at, size, cls, name in entries]
    return classes, pairs


def _list_members(archive: Path, extensions: tuple[str, ...]) -> Iterator[tuple[int, int, str, str]]:
    """Yield offset, size, class and name of the images in an archive."""
    images: list[tuple[int, int, str]] = []
    classes: dict[str, str] = {}
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all: gigabytes, for ImageNet
                key, extension = _split(member.name.removeprefix("./"))
                if member.isfile() and extension == "cls":
                    content = tar.extractfile(member)
                    assert content is not None
                    classes[key] = content.read().decode("utf-8", "replace").strip().zfill(CLASS_DIGITS)
                elif not member.isdir() and member.name.lower().endswith(extensions):
                    if not member.isfile() or member.issparse():
                        raise InputError(
                            f"{archive}: {member.name} is a link or has holes; pack it with tar --dereference "
                            "--hard-dereference, without --sparse"
                        )
                    images.append((member.offset_data, member.size, member.name.removeprefix("./")))
    except (tarfile.TarError, OSError) as err:
        raise InputError(f"{archive} is not a whole, uncompressed tar archive ({err})") from None
    for offset, size, name in images:
        class_name = classes.get(_split(name)[0]) or Path(name).parent.name
        if not class_name:
            raise InputError(
                f"{archive}: the class of {name} is not known: it lies in no folder, and beside it is no "
                f"{_split(name)[0]}.cls"
            )
        yield offset, size, class_name, name


def _split(name: str) -> tuple[str, str]:
    """Return a member's key and extension, as in WebDataset: the extension begins at the file name's first dot."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


def _read_index(folder: Path, stamps: dict[str, str]) -> list[list[Any]] | None:
    """Return the entries of the index, if it is of these very archives."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index["archives"] == stamps:
            return [[*entry] for entry in index["images"] if len(entry) == 5]
    return None


def _write_index(folder: Path, stamps: dict[str, str], entries: list[list[Any]]) -> None:
    from mixtune.files import atomic_write

    with contextlib.suppress(InputError):  # storage that is read only
        atomic_write(folder / INDEX_FILE, json.dumps({"archives": stamps, "images": entries}).encode())
