"""Prepare images: find the images of a data set, and encode each once more, no larger than a regime needs.

Files keep their names in ``OUT/train/CLASS/*`` and ``OUT/val/CLASS/*``, or archives hold them (``tar_writer``). JPEG
takes least space. PPM is pixels and nothing else: six times as large, nothing to decode, and read only where a crop
needs it. Both are files that every image library reads. Each file is written beside its place and renamed. The manifest
says what is done, so a run that was killed goes on, and one that is repeated does nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mixtune.data import tar_index
from mixtune.data.decode import DecodeRegion, UnreadableError, decode
from mixtune.data.manifest import ManifestEntry, file_stamp
from mixtune.data.prepared_folder import PrepareTarget
from mixtune.errors import InputError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image to prepare.

    name: its path, or its address in an archive, relative to the data set's folder; stamp: of the archive when it was
    listed, "" for a file of its own.
    """

    name: str
    class_name: str
    stamp: str = ""

    @property
    def part(self) -> str:
        """Train or val."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image, or the reason why there is none. stamp: of the source, see ``ManifestEntry``."""

    stamp: str
    content: bytes = b""
    reason: str = ""


def prepared_name(source: str, target: PrepareTarget) -> str:
    """Return the name of a prepared file. JPEGs keep theirs; others get one more extension: a.png may lie by a.jpg."""
    if target.format == "ppm":
        return f"{source}.ppm"
    return source if source.lower().endswith((".jpg", ".jpeg")) else f"{source}.jpg"


def encode_file(path: str, target: PrepareTarget) -> bytes:
    """Return the content of a prepared file. A plain JPEG that is small enough stays as it is, byte for byte.

    Raises UnreadableError.
    """
    small_enough = []

    def choose(H: int, W: int) -> DecodeRegion:
        small_enough.append(min(H, W) <= target.side)
        return DecodeRegion(next(k for k in (8, 4, 2, 1) if k == 1 or min(H, W) // k >= 2 * target.side), 0, H)

    decoded = decode(path, choose)
    if small_enough[0] and target.format == "jpeg" and set(decoded.conversions) <= {"greyscale"}:
        data = tar_index.read_bytes(path)
        if data[:2] == b"\xff\xd8":
            return data
    image = Image.fromarray(decoded.pixels)
    if not small_enough[0]:
        share = target.side / min(decoded.H, decoded.W)
        size = max(target.side, round(decoded.W * share)), max(target.side, round(decoded.H * share))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if target.format == "ppm":
        image.save(buffer, "PPM")
    else:
        image.save(buffer, "JPEG", quality=target.quality, optimize=True)  # a twentieth smaller, and decoded sooner
    return buffer.getvalue()


def check_unique_names(images: Iterable[SourceImage], target: PrepareTarget) -> None:
    """Raise InputError when two files would be written to one place. Members of archives may share a name."""
    first: dict[str, str] = {}
    for image in () if target.archives else images:
        if (other := first.setdefault(prepared_name(image.name, target), image.name)) != image.name:
            raise InputError(f"--data: {other} and {image.name} would get the same name; rename one, or use --archives")


def changed_archive(data: Path, images: Iterable[SourceImage]) -> str | None:
    """Return an archive that has changed since it was listed, or None."""
    stamps = {m.archive: i.stamp for i in images if i.stamp and (m := tar_index.parse_address(f"{data}/{i.name}"))}
    return next((archive for archive, stamp in stamps.items() if file_stamp(archive) != stamp), None)


def entry_sizes(entry: ManifestEntry) -> tuple[int, int]:
    """Return the bytes of the source, and of the prepared image."""
    member = tar_index.parse_address(entry.source)
    return member.size if member else int(entry.stamp.partition("-")[0] or 0), entry.bytes


def encode_source(data: str, image: SourceImage, target: PrepareTarget) -> EncodedImage:
    """Encode one image. One that is gone has no stamp, so that it is looked for again."""
    path = f"{data}/{image.name}"
    stamp = image.stamp or file_stamp(path)
    try:
        return EncodedImage(stamp, encode_file(path, target))
    except UnreadableError as err:
        return EncodedImage(stamp, reason=str(err))
    except OSError as err:
        return EncodedImage("", reason=str(err))


def prepare_file(data: str, out: str, name: str, target: PrepareTarget) -> ManifestEntry:
    """Encode one file and put it in its place. Raises OSError when it cannot be written."""
    encoded, written = encode_source(data, SourceImage(name, ""), target), prepared_name(name, target)
    if encoded.reason:
        return ManifestEntry(name, encoded.stamp, "", 0, "", encoded.reason)
    path = Path(out, written)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")  # not an image's name, should it be left behind
    try:
        partial.write_bytes(encoded.content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    checksum = hashlib.sha256(encoded.content).hexdigest()
    return ManifestEntry(name, encoded.stamp, written, len(encoded.content), checksum)


def find_loose_images(data: Path, parts: Iterable[str] = ("train", "val")) -> Iterator[str]:
    """Yield the images of a folder that are files of their own, relative to it, in order."""
    for part in parts:
        for folder, folders, names in os.walk(data / part, followlinks=True):
            folders.sort()
            relative = Path(folder).relative_to(data)
            yield from (str(relative / n) for n in sorted(names) if n.lower().endswith(IMAGE_EXTENSIONS))


def find_images(data: Path) -> list[SourceImage]:
    """Return the images of a data set as training finds them: of each part those in its archives if it has any, in the
    order in which they lie there, else those in the folders of its classes. Raises InputError for a damaged archive.
    """
    images: list[SourceImage] = []
    for part in ("train", "val"):
        stamps = {str(archive): file_stamp(archive) for archive in tar_index.list_archives(data / part)}
        if stamps:
            classes, pairs = tar_index.list_images(data / part, IMAGE_EXTENSIONS)
            members = sorted((m, path, label) for path, label in pairs if (m := tar_index.parse_address(path)))
            for member, path, label in members:
                images.append(SourceImage(path.removeprefix(f"{data}/"), classes[label], stamps[member.archive]))
        else:
            folders = ((name, name.split("/")) for name in find_loose_images(data, [part]))
            images += (SourceImage(name, folder[1]) for name, folder in folders if len(folder) > 2)
    return images
