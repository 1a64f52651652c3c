"""Manifest: the list of what is done of a prepared data set, and how far files and sources still agree with it.

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

MANIFEST_FILE = "prepared.tsv"


@dataclass(frozen=True, slots=True)  # there are millions
class ManifestEntry:
    """A source that is done.

    written: a file, or an address inside an archive, relative to the prepared folder; checksum: SHA-256 of what was
    written, empty where there is a ``reason`` why the source is unreadable; stamp: of the source (``file_stamp``), ""
    where it is gone. Of an archive as a whole the source is empty, and the stamp is the number of its members.
    """

    source: str
    stamp: str
    written: str
    bytes: int
    checksum: str
    reason: str = ""

    def line(self) -> str:
        """Return the line of the manifest."""
        source, written = (json.dumps(name, ensure_ascii=False)[1:-1] for name in (self.source, self.written))
        reason = " ".join(self.reason.split())
        return "\t".join((source, self.stamp, written, str(self.bytes), self.checksum, reason)) + "\n"

    @property
    def file(self) -> str:
        """The file that holds it."""
        member = tar_index.parse_address(self.written)
        return member.archive if member else self.written


def file_stamp(path: str | Path) -> str:
    """Return size and time of a file, or of the archive that an address names; "" where it is gone."""
    member = tar_index.parse_address(str(path))
    try:
        stat = os.stat(member.archive if member else path)  # noqa: PTH116 (an address is no path)
    except OSError:
        return ""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def read_manifest(out: Path) -> dict[str, ManifestEntry]:
    """Return the last line of each source, by its name, and of each archive, by its own."""
    entries: dict[str, ManifestEntry] = {}
    text = (out / MANIFEST_FILE).read_bytes().decode(errors="surrogateescape") if (out / MANIFEST_FILE).exists() else ""
    for line in text.split("\n")[:-1]:  # the last one was being written when the run was killed
        with contextlib.suppress(ValueError):  # damaged since
            source, stamp, written, size, checksum, reason = line.split("\t")
            source, written = (json.loads(f'"{name}"') for name in (source, written))
            entries[source or written] = ManifestEntry(source, stamp, written, int(size), checksum, reason)
    return entries


def intact_entries(
    known: Mapping[str, ManifestEntry], out: Path, stamps: Iterable[tuple[str, str]], verify: bool
) -> dict[str, ManifestEntry]:
    """Return the entries of ``known`` that are still true, by source.

    Their file or archive is there with the right size or, with ``verify``, checksum. Their source has the stamp that it
    had: ``stamps`` gives it with its stamp as it is now, "" if it is gone. With ``verify``, what could not be read is
    looked at again: storage may have failed, or refused. No member of an archive is true unless all are: nothing is
    ever changed inside one.
    """
    intact: dict[str, ManifestEntry] = {}
    members: dict[str, list[ManifestEntry]] = {}
    for source, now in stamps:
        entry = known.get(source)
        if entry is None or not now or entry.stamp != now:
            continue
        if entry.file != entry.written:
            members.setdefault(entry.file, []).append(entry)
        elif _is_written(entry, out, verify) if entry.written else not verify:
            intact[source] = entry
    for name, entries in members.items():
        archive = known.get(name)
        if archive and archive.stamp == str(len(entries)) and _is_written(archive, out, verify):
            intact |= {entry.source: entry for entry in entries}
    return intact


def _is_written(entry: ManifestEntry, out: Path, verify: bool) -> bool:
    path = out / entry.written
    try:
        if verify:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == entry.checksum
        return path.stat().st_size == entry.bytes
    except OSError:
        return False


def remove_stale(out: Path, known: Mapping[str, ManifestEntry], intact: Mapping[str, ManifestEntry]) -> None:
    """Remove what would be read although no intact entry names it: files of sources that changed or are gone, archives
    of which a part is to be made again, and what a run that was killed left.
    """
    needed = {entry.file for entry in intact.values()}
    archives = {str(p.relative_to(out)) for part in ("train", "val") for p in (out / part).glob("[0-9]*.tar")}
    for name in ({entry.file for entry in known.values()} | archives) - needed:
        if name.startswith(("train/", "val/")) and ".." not in name.split("/"):  # whatever a damaged list says
            (out / name).unlink(missing_ok=True)
    for stale in out.rglob(".*.part"):
        stale.unlink()


def append_entries(out: Path, entries: Iterable[ManifestEntry]) -> None:
    """Append entries to the manifest, once their files are surely on disk."""
    os.sync()
    with (out / MANIFEST_FILE).open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")  # after what a kill or a full disk left of a line
        file.write("".join(e.line() for e in entries).encode(errors="surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
