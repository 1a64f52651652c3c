"""Prepared: an image folder encoded once more, no larger than a regime needs, as a folder that reads like any other.

``OUT/train/CLASS/*`` and ``OUT/val/CLASS/*`` keep the files' names; JPEG takes least space, PPM is pixels and nothing
else (six times as large, nothing to decode, and read only where a crop needs it). Both are files that every image
library reads. Each file is written beside its place and renamed; ``prepared.tsv`` lists what is done with its
checksum, so a run that was killed goes on, and one that is repeated does nothing. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mixtune.errors import InputError
from mixtune.training.images.decode import Needed, UnreadableError, decode

KEPT = 0.875  # as evaluation has it: the shorter side is N / 0.875
LIST, STATE = "prepared.tsv", "prepared.json"
BATCH = 256  # files between two entries in the list


@dataclass(frozen=True)
class Target:
    """size: the largest S that will be trained or evaluated; quality: of JPEGs, from 1 to 95."""

    size: int
    format: Literal["jpeg", "ppm"] = "jpeg"
    quality: int = 90

    @property
    def side(self) -> int:
        """Pixels of the shorter side, at most."""
        return math.ceil(self.size / KEPT)


@dataclass(frozen=True)
class Entry:
    """A file that is done. checksum: SHA-256 of what was written, empty with ``why`` for an unreadable source;
    stamp: size and time of the source, "" where it is gone.
    """

    source: str
    stamp: str
    written: str
    bytes: int
    checksum: str
    why: str = ""

    def line(self) -> str:
        """As it stands in the list."""
        why = " ".join(self.why.split())
        return "\t".join((self.source, self.stamp, self.written, str(self.bytes), self.checksum, why)) + "\n"


def name_for(source: str, target: Target) -> str:
    """What a file is called: JPEGs keep their names; others get one more extension, as a.png may lie beside a.jpg."""
    if target.format == "ppm":
        return f"{source}.ppm"
    return source if source.lower().endswith((".jpg", ".jpeg")) else f"{source}.jpg"


def encode(path: str, target: Target) -> bytes:
    """The content of a prepared file. A plain JPEG that is small enough stays as it is, byte for byte.

    Raises UnreadableError.
    """
    small = []

    def need(H: int, W: int) -> Needed:
        small.append(min(H, W) <= target.side)
        return Needed(next(k for k in (8, 4, 2, 1) if k == 1 or min(H, W) // k >= 2 * target.side), 0, H)

    made = decode(path, need)
    if small[0] and target.format == "jpeg" and set(made.notes) <= {"greyscale"}:
        data = Path(path).read_bytes()
        if data[:2] == b"\xff\xd8":
            return data
    image = Image.fromarray(made.pixels)
    if not small[0]:
        share = target.side / min(made.H, made.W)
        size = max(target.side, round(made.W * share)), max(target.side, round(made.H * share))
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    if target.format == "ppm":
        image.save(buffer, "PPM")
    else:
        image.save(buffer, "JPEG", quality=target.quality)
    return buffer.getvalue()


def prepare_one(data: str, out: str, source: str, target: Target) -> Entry:
    """Encode one file and put it in its place. Raises OSError when it cannot be written."""
    written, stamp = name_for(source, target), ""
    try:
        stamp = _stamp(Path(data, source))
        content = encode(str(Path(data, source)), target)
    except (UnreadableError, OSError) as err:  # a file that is gone has no stamp, and is looked for again next time
        return Entry(source, stamp, "", 0, "", str(err))
    place = Path(out, written)
    partial = place.with_name(f".{place.name}.{os.getpid()}.part")  # not an image's name, should it be left behind
    try:
        partial.write_bytes(content)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return Entry(source, stamp, written, len(content), hashlib.sha256(content).hexdigest())


def done_already(out: Path, data: Path, verify: bool) -> dict[str, Entry]:
    """What the list says is done, as far as the files agree: sources unchanged, files of the right size or, with
    ``verify``, checksum.
    """
    found: dict[str, Entry] = {}
    text = (out / LIST).read_text(encoding="utf-8", errors="surrogateescape") if (out / LIST).exists() else ""
    for line in text.splitlines(keepends=True):
        parts = line.rstrip("\n").split("\t")
        if not line.endswith("\n") or len(parts) != 6 or not parts[3].isdecimal():
            continue  # a line that was being written when the run was killed, or was damaged since
        entry = Entry(parts[0], parts[1], parts[2], int(parts[3]), parts[4], parts[5])
        if _holds(entry, out, data, verify):
            found[entry.source] = entry
        else:
            found.pop(entry.source, None)
    return found


def _holds(entry: Entry, out: Path, data: Path, verify: bool) -> bool:
    try:
        if entry.stamp != _stamp(data / entry.source):
            return False
        if not entry.written:
            return True
        place = out / entry.written
        if verify:
            return hashlib.sha256(place.read_bytes()).hexdigest() == entry.checksum
        return place.stat().st_size == entry.bytes
    except OSError:
        return False


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def begin(out: Path, target: Target) -> None:
    """Make or enter the folder. Raises InputError when it holds something else, or another size of this."""
    settings = {"size": target.size, "format": target.format, "quality": target.quality}
    state = read_state(out)
    if state is None and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: holds other files; name an empty or a new folder")
    if state and {k: state.get(k) for k in settings} != settings:
        raise InputError(f"--out {out}: was prepared with {state}; name another folder, or ask for the same")
    out.mkdir(parents=True, exist_ok=True)
    write_state(out, settings | {"complete": False})


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a folder was prepared for, and whether that is complete; None for a folder that was not prepared."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        int(state["size"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"{folder / STATE} is damaged; delete the folder and prepare it again") from None
    return state


def check_sizes(prepared_for: int | None, wanted: Mapping[str, Iterable[int]]) -> None:
    """Raise InputError when sizes, by the name of who wants them, exceed what a folder was prepared for, if it was.

    Its images would have to be enlarged, and accuracies would be those of blurred images.
    """
    largest = {who: max(sizes, default=0) for who, sizes in wanted.items()}
    who = max(largest, key=lambda name: largest[name])
    if prepared_for is not None and largest[who] > prepared_for:
        raise InputError(
            f"{who}: {largest[who]} px is more than the {prepared_for} px that task.data was prepared for; prepare it "
            f"for that (mixtune.prepare --size {largest[who]}, to a new folder), or stay at {prepared_for} px and below"
        )


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Replace the state at once, or not at all."""
    partial = out / f".{STATE}.part"
    with partial.open("w") as file:
        json.dump(state, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(out / STATE)


def record(out: Path, entries: list[Entry]) -> None:
    """Add to the list what is surely on disk: files first, then their entries."""
    os.sync()
    with (out / LIST).open("ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            file.write(b"\n")  # after what a kill or a full disk left of a line
        file.write("".join(e.line() for e in entries).encode(errors="surrogateescape"))
        file.flush()
        os.fsync(file.fileno())


def sources(data: Path) -> Iterator[str]:
    """The images of a folder, relative to it, in order."""
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
    for part in ("train", "val"):
        for folder, folders, names in os.walk(data / part, followlinks=True):
            folders.sort()
            below = Path(folder).relative_to(data)
            yield from (str(below / n) for n in sorted(names) if n.lower().endswith(extensions))
