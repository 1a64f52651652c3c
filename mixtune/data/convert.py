"""Prepared: a data set encoded once more, no larger than a regime needs, as one that reads like any other.

``OUT/train/CLASS/*`` and ``OUT/val/CLASS/*`` keep the files' names, or archives hold them (``archiving``); JPEG takes
least space, PPM is pixels and nothing else (six times as large, nothing to decode, and read only where a crop needs
it). Both are files that every image library reads. Each file is written beside its place and renamed; a list
(``entries``) says what is done, so a run that was killed goes on, and one that is repeated does nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mixtune.data import tar_index
from mixtune.data.decode import Needed, UnreadableError, decode
from mixtune.data.manifest import Entry, stamp
from mixtune.errors import InputError

KEPT = 0.875  # as evaluation has it: the shorter side is N / 0.875
STATE = "prepared.json"
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@dataclass(frozen=True)
class Target:
    """size: the largest S that will be trained or evaluated; quality: of JPEGs, from 1 to 95; archives: whether images
    are written into archives instead of as files of their own.
    """

    size: int
    format: Literal["jpeg", "ppm"] = "jpeg"
    quality: int = 90
    archives: bool = False

    @property
    def side(self) -> int:
        """Pixels of the shorter side, at most."""
        return math.ceil(self.size / KEPT)


@dataclass(frozen=True, slots=True)
class Source:
    """An image to prepare. name: its path, or its address in an archive, relative to the data set's folder; kind: its
    class; stamp: of the archive when what it holds was listed, "" for a file of its own.
    """

    name: str
    kind: str
    stamp: str = ""

    @property
    def part(self) -> str:
        """train or val."""
        return self.name.partition("/")[0]


@dataclass(frozen=True)
class Encoded:
    """What became of an image: ``content``, or ``why`` there is none. stamp: see ``entries.Entry``."""

    stamp: str
    content: bytes = b""
    why: str = ""


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
        data = tar_index.content(path)
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
        image.save(buffer, "JPEG", quality=target.quality, optimize=True)  # a twentieth smaller, and decoded sooner
    return buffer.getvalue()


def check_names(found: Iterable[Source], target: Target) -> None:
    """Raise InputError when two files would be written to one place. Members of archives may share a name."""
    first: dict[str, str] = {}
    for source in () if target.archives else found:
        if (other := first.setdefault(name_for(source.name, target), source.name)) != source.name:
            raise InputError(
                f"--data: {other} and {source.name} would get the same name; rename one, or use --archives"
            )


def changed(data: Path, found: Iterable[Source]) -> str | None:
    """An archive that is not as it was when it was listed."""
    listed = {p.archive: s.stamp for s in found if s.stamp and (p := tar_index.place(f"{data}/{s.name}"))}
    return next((archive for archive, when in listed.items() if stamp(archive) != when), None)


def sizes(entry: Entry) -> tuple[int, int]:
    """Bytes of the source, and of what was made of it."""
    inside = tar_index.place(entry.source)
    return inside.size if inside else int(entry.stamp.partition("-")[0] or 0), entry.bytes


def encoded(data: str, source: Source, target: Target) -> Encoded:
    """One image encoded, or why it is not; without a stamp where it is gone, and will be looked for again."""
    path = f"{data}/{source.name}"
    when = source.stamp or stamp(path)
    try:
        return Encoded(when, encode(path, target))
    except UnreadableError as err:
        return Encoded(when, why=str(err))
    except OSError as err:
        return Encoded("", why=str(err))


def prepare_one(data: str, out: str, source: str, target: Target) -> Entry:
    """Encode one file and put it in its place. Raises OSError when it cannot be written."""
    made, written = encoded(data, Source(source, ""), target), name_for(source, target)
    if made.why:
        return Entry(source, made.stamp, "", 0, "", made.why)
    place = Path(out, written)
    partial = place.with_name(f".{place.name}.{os.getpid()}.part")  # not an image's name, should it be left behind
    try:
        partial.write_bytes(made.content)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return Entry(source, made.stamp, written, len(made.content), hashlib.sha256(made.content).hexdigest())


def begin(out: Path, target: Target) -> None:
    """Make or enter the folder. Raises InputError when it holds something else, or another size of this."""
    settings = asdict(target)
    state = read_state(out)
    if state is None and out.exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: holds other files; name an empty or a new folder")
    if state and {"archives": False} | {k: state[k] for k in settings if k in state} != settings:
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


def sources(data: Path, parts: Iterable[str] = ("train", "val")) -> Iterator[str]:
    """The images of a folder that are files of their own, relative to it, in order."""
    for part in parts:
        for folder, folders, names in os.walk(data / part, followlinks=True):
            folders.sort()
            below = Path(folder).relative_to(data)
            yield from (str(below / n) for n in sorted(names) if n.lower().endswith(EXTENSIONS))


def found(data: Path) -> list[Source]:
    """The images of a data set, as training finds them: of each part those in its archives if it has any, in the order
    in which they lie there, else those in the folders of its classes. Raises InputError for a damaged archive.
    """
    there: list[Source] = []
    for part in ("train", "val"):
        stamps = {str(archive): stamp(archive) for archive in tar_index.archives(data / part)}
        if stamps:
            classes, images = tar_index.images(data / part, EXTENSIONS)
            placed = sorted((place, path, kind) for path, kind in images if (place := tar_index.place(path)))
            there += (Source(path.removeprefix(f"{data}/"), classes[k], stamps[p.archive]) for p, path, k in placed)
        else:
            folders = ((name, name.split("/")) for name in sources(data, [part]))
            there += (Source(name, folder[1]) for name, folder in folders if len(folder) > 2)
    return there
