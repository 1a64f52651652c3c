"""Archiving: prepared images as the members of plain tar archives of bounded size, each there whole or not at all."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from mixtune.data import tar_index
from mixtune.data.convert import Encoded, Source, Target, name_for
from mixtune.data.manifest import Entry

MIB = 1024  # of an archive, unless another size is asked for: a few hundred for ImageNet, seconds of work each


class _Summed:
    """A file that is written once, from its beginning, with its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """To the end."""
        self.sum.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Bytes so far."""
        return self._file.tell()


def archived(
    out: Path, images: Iterable[tuple[Source, Encoded]], target: Target, size: int, known: Mapping[str, Entry]
) -> Iterator[list[Entry]]:
    """Write images, those of ``train`` before those of ``val``, into archives that are full at ``size`` bytes; the
    entries of each once it is in its place. Raises OSError when one cannot be written.

    A number is not used twice, so that what the list, ``known``, says of an earlier archive is of no other.
    """
    used = (Path(entry.file).stem for entry in known.values() if entry.file.endswith(".tar"))
    numbers = itertools.count(1 + max((int(stem) for stem in used if stem.isdecimal()), default=-1))
    for part, those in itertools.groupby(images, lambda pair: pair[0].part):
        while (first := next(those, None)) is not None:
            rest = itertools.chain([first], those)  # noqa: B031 (what is left of them)
            yield _one(out, f"{part}/{next(numbers):05}.tar", rest, target, size)


def _one(out: Path, name: str, images: Iterable[tuple[Source, Encoded]], target: Target, size: int) -> list[Entry]:
    place = out / name
    partial = place.with_name(f".{place.name}.{os.getpid()}.part")  # not an archive's name, should it be left behind
    entries: list[Entry] = []
    members = 0
    try:
        with partial.open("wb") as file:
            summed = _Summed(file)
            with tarfile.open(fileobj=summed, mode="w") as tar:  # type: ignore[call-overload]
                for source, made in images:
                    entries.append(_added(tar, name, source, made, target))
                    members += bool(entries[-1].written)
                    if tar.offset >= size:
                        break
            whole = Entry("", str(members), name, file.tell(), summed.sum.hexdigest())
        if members:
            partial.replace(place)
            entries.append(whole)
    finally:
        partial.unlink(missing_ok=True)
    return entries


def _added(tar: tarfile.TarFile, archive: str, source: Source, made: Encoded, target: Target) -> Entry:
    if made.why:
        return Entry(source.name, made.stamp, "", 0, "", made.why)
    member, size = tarfile.TarInfo(member_name(source, target)), len(made.content)
    member.size = size
    tar.addfile(member, io.BytesIO(made.content))
    begin = tar.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    written = f"{archive}@{begin}+{size}/{member.name}"
    return Entry(source.name, made.stamp, written, size, hashlib.sha256(made.content).hexdigest())


def member_name(source: Source, target: Target) -> str:
    """What an image is called in an archive: its own name, with its class as the folder that it lies in."""
    inside = tar_index.place(source.name)
    own = PurePosixPath(inside.name if inside else source.name.partition("/")[2])
    return name_for(str(own if own.parent.name == source.kind else own.parent / source.kind / own.name), target)
