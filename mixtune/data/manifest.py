"""Entries: the list of what is done of a prepared data set, and how far files and sources still agree with it.

A file of its own has one line; an archive has a line of its own (without a source) after those of its members.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtune.data import tar_index

LIST = "prepared.tsv"


@dataclass(frozen=True, slots=True)  # there are millions
class Entry:
    """A source that is done. written: a file, or an address inside an archive, relative to the prepared folder.
    checksum: SHA-256 of what was written, empty with ``why`` for an unreadable source; stamp: of the source
    (``stamp``), "" where it is gone.

    Of an archive as a whole: source is empty, and stamp says how many members it has.
    """

    source: str
    stamp: str
    written: str
    bytes: int
    checksum: str
    why: str = ""

    def line(self) -> str:
        """As it stands in the list."""
        source, written = (json.dumps(name, ensure_ascii=False)[1:-1] for name in (self.source, self.written))
        why = " ".join(self.why.split())
        return "\t".join((source, self.stamp, written, str(self.bytes), self.checksum, why)) + "\n"

    @property
    def file(self) -> str:
        """The file that holds it."""
        inside = tar_index.place(self.written)
        return inside.archive if inside else self.written


def stamp(path: str | Path) -> str:
    """Size and time of a file, or of the archive that an address lies in; "" where it is gone."""
    inside = tar_index.place(str(path))
    try:
        stat = os.stat(inside.archive if inside else path)  # noqa: PTH116 (an address is no path)
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def listed(out: Path) -> dict[str, Entry]:
    """What the list holds, the last line of each: by source, and archives by their names."""
    found: dict[str, Entry] = {}
    text = (out / LIST).read_bytes().decode(errors="surrogateescape") if (out / LIST).exists() else ""
    for line in text.split("\n")[:-1]:  # the last one was being written when the run was killed
        with contextlib.suppress(ValueError):  # damaged since
            source, when, written, size, checksum, why = line.split("\t")
            source, written = (json.loads(f'"{name}"') for name in (source, written))
            found[source or written] = Entry(source, when, written, int(size), checksum, why)
    return found


def intact(known: Mapping[str, Entry], out: Path, stamps: Iterable[tuple[str, str]], verify: bool) -> dict[str, Entry]:
    """Those of the ``known`` that hold, by source: files and archives are there with the right size or, with
    ``verify``, checksum; and the source, given with its stamp as it is now, "" if it is gone, has the one that it had.
    With ``verify``, what could not be read is looked at again: storage may have failed, or refused.

    An archive of which a single member does not hold does not hold: nothing is ever changed inside one.
    """
    found: dict[str, Entry] = {}
    members: dict[str, list[Entry]] = {}
    for source, now in stamps:
        entry = known.get(source)
        if entry is None or not now or entry.stamp != now:
            continue
        if entry.file != entry.written:
            members.setdefault(entry.file, []).append(entry)
        elif _whole(entry, out, verify) if entry.written else not verify:
            found[source] = entry
    for name, inside in members.items():
        archive = known.get(name)
        if archive and archive.stamp == str(len(inside)) and _whole(archive, out, verify):
            found |= {entry.source: entry for entry in inside}
    return found


def _whole(entry: Entry, out: Path, verify: bool) -> bool:
    place = out / entry.written
    try:
        if verify:
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.checksum
        return place.stat().st_size == entry.bytes
    except OSError:
        return False


def clear(out: Path, known: Mapping[str, Entry], held: Mapping[str, Entry]) -> None:
    """Remove what would be read although no entry holds it: files of sources that changed or are gone, archives of
    which a part is to be made again, and what a run that was killed left.
    """
    needed = {entry.file for entry in held.values()}
    archives = {str(p.relative_to(out)) for part in ("train", "val") for p in (out / part).glob("[0-9]*.tar")}
    for name in ({entry.file for entry in known.values()} | archives) - needed:
        if name.startswith(("train/", "val/")) and ".." not in name.split("/"):  # whatever a damaged list says
            (out / name).unlink(missing_ok=True)
    for stale in out.rglob(".*.part"):
        stale.unlink()


def record(out: Path, entries: Iterable[Entry]) -> None:
    """Add to the list what is surely on disk: files first, then their entries."""
    os.sync()
    with (out / LIST).open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")  # after what a kill or a full disk left of a line
        file.write("".join(e.line() for e in entries).encode(errors="surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
