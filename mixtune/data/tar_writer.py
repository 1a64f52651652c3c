"""Tar writer: prepared images as the members of plain tar archives of bounded size, each there whole or not at all."""

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
from mixtune.data.manifest import ManifestEntry
from mixtune.data.prepare_images import EncodedImage, SourceImage, prepared_name
from mixtune.data.prepared_folder import PrepareTarget

DEFAULT_MIB = 1024  # of an archive, unless another size is asked for: a few hundred for ImageNet, seconds of work each


class _ChecksumFile:
    """A file that is written once, from its beginning, with its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Append."""
        self.sum.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._file.tell()


def write_archives(
    out: Path,
    images: Iterable[tuple[SourceImage, EncodedImage]],
    target: PrepareTarget,
    size: int,
    known: Mapping[str, ManifestEntry],
) -> Iterator[list[ManifestEntry]]:
    """Write images, those of ``train`` before those of ``val``, into archives that are full at ``size`` bytes.

    Yields the entries of each archive once it is in its place. No number is used twice, so that an entry of ``known``
    never names another archive than it did. Raises OSError when an archive cannot be written.
    """
    used = (Path(entry.file).stem for entry in known.values() if entry.file.endswith(".tar"))
    numbers = itertools.count(1 + max((int(stem) for stem in used if stem.isdecimal()), default=-1))
    for part, pairs in itertools.groupby(images, lambda pair: pair[0].part):
        while (first := next(pairs, None)) is not None:
            rest = itertools.chain([first], pairs)  # noqa: B031 (what is left of them)
            yield _write_archive(out, f"{part}/{next(numbers):05}.tar", rest, target, size)


def _write_archive(
    out: Path, name: str, images: Iterable[tuple[SourceImage, EncodedImage]], target: PrepareTarget, size: int
) -> list[ManifestEntry]:
    path = out / name
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")  # not an archive's name, should it be left behind
    entries: list[ManifestEntry] = []
    members = 0
    try:
        with partial.open("wb") as file:
            checked = _ChecksumFile(file)
            with tarfile.open(fileobj=checked, mode="w") as tar:  # type: ignore[call-overload]
                for image, encoded in images:
                    entries.append(_add_member(tar, name, image, encoded, target))
                    members += bool(entries[-1].written)
                    if tar.offset >= size:
                        break
            whole = ManifestEntry("", str(members), name, file.tell(), checked.sum.hexdigest())
        if members:
            partial.replace(path)
            entries.append(whole)
    finally:
        partial.unlink(missing_ok=True)
    return entries


def _add_member(
    tar: tarfile.TarFile, archive: str, image: SourceImage, encoded: EncodedImage, target: PrepareTarget
) -> ManifestEntry:
    if encoded.reason:
        return ManifestEntry(image.name, encoded.stamp, "", 0, "", encoded.reason)
    member, size = tarfile.TarInfo(member_name(image, target)), len(encoded.content)
    member.size = size
    tar.addfile(member, io.BytesIO(encoded.content))
    offset = tar.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    written = f"{archive}@{offset}+{size}/{member.name}"
    return ManifestEntry(image.name, encoded.stamp, written, size, hashlib.sha256(encoded.content).hexdigest())


def member_name(image: SourceImage, target: PrepareTarget) -> str:
    """Return the name of an image in an archive: its own, with its class as the folder that it lies in."""
    member = tar_index.parse_address(image.name)
    path = PurePosixPath(member.name if member else image.name.partition("/")[2])
    in_class = path if path.parent.name == image.class_name else path.parent / image.class_name / path.name
    return prepared_name(str(in_class), target)
