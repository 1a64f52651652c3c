"""Decode: one image file to upright RGB rows, at the smallest scale and in the fewest rows that its views need.

JPEGs are decoded by libjpeg-turbo, through simplejpeg where that is installed and through Pillow otherwise: the same
pixels, at 1/1, 1/2, 1/4 and 1/8 of the size. simplejpeg stops below the last row needed. A binary PPM, which is pixels
and nothing else, is read from the first row needed to the last. Everything else, and whatever is odd, goes through
Pillow. This module needs no torch, and any number of threads may use it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

from mixtune.data import jpeg, tar_index

SCALE_FACTORS = (8, 4, 2, 1)  # by which libjpeg-turbo divides the sides while it decodes
TINY_SIDE = 8  # a shorter side of fewer pixels shows no object; it is counted
_PPM = re.compile(rb"P6\s+(\d{1,6})\s+(\d{1,6})\s+255\s")
_RETRIES = (0.1, 1.0)  # seconds to wait before a read that failed is tried again (network storage)


# Pillow warns of half of what ``_bounded`` allows, once in every process that reads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableError(ValueError):
    """A file that holds no whole image; the message says why."""


class DecodeRegion(NamedTuple):
    """What to decode of an image: its sides divided by at most ``factor``, rows ``top`` to ``bottom`` of the whole."""

    factor: int
    top: int
    bottom: int


ChooseRegion = Callable[[int, int], DecodeRegion]  # of the upright height and width; always with the same result


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded image.

    pixels: uint8 [h, w, 3], the rows from ``top`` on of an image of H x W pixels whose sides are divided by
    ``factor``. conversions: in what the file differs from a plain RGB photograph.
    """

    pixels: np.ndarray
    H: int
    W: int
    factor: int = 1
    top: int = 0
    conversions: tuple[str, ...] = ()

    def crop(self, top: int, left: int, h: int, w: int) -> np.ndarray:
        """Return a box that is given in pixels of the whole image. uint8 [about h / factor, about w / factor, 3]"""
        k, (rows, columns) = self.factor, self.pixels.shape[:2]
        y, x = min(round((top - self.top) / k), rows - 1), min(round(left / k), columns - 1)
        return self.pixels[y : max(y + 1, round((top - self.top + h) / k)), x : max(x + 1, round((left + w) / k))]


Decode = Callable[[], Decoded]


def whole_image(H: int, W: int) -> DecodeRegion:
    """Return the region of the whole image at its own size."""
    return DecodeRegion(1, 0, H)


def describe_decoder() -> str:
    """Return what decodes JPEGs and enlarges crops here, for people."""
    jpegs = jpeg.library_version()
    crops = "OpenCV" if find_spec("cv2") else "torch"
    hint = "" if jpegs and crops == "OpenCV" else " (about half as fast as with the extra mixtune[jpeg])"
    return f"{jpegs or 'Pillow'} and {crops}{hint}"


def decode(path: str, choose: ChooseRegion = whole_image) -> Decoded:
    """Return the image in a file. Raises UnreadableError for a file that is missing, damaged or no image."""
    return open_image(path, choose)()


def open_image(path: str, choose: ChooseRegion = whole_image) -> Decode:
    """Read a file and choose what to decode; return what decodes it. Both raise UnreadableError."""
    for wait in (*_RETRIES, None):
        try:
            return _open(path, choose)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as err:
            raise UnreadableError(str(err.strerror).lower()) from None
        except OSError as err:  # Pillow's own errors do not get here
            tar_index.open_archive.cache_clear()  # the handle of an archive that was replaced stays stale
            if wait is None:
                raise UnreadableError(f"reading failed three times: {err}") from None
            time.sleep(wait)
    raise AssertionError


def _open(path: str, choose: ChooseRegion) -> Decode:
    with _opened(path) as (file, start, size):
        if path.endswith(".ppm") and (header := _PPM.match(os.pread(file, min(64, size), start))):
            image = _ppm(file, start, size, header.end(), int(header[2]), int(header[1]), choose)
            return lambda: image
        data = os.pread(file, size, start)
        while 0 < len(data) < size and (more := os.pread(file, size - len(data), start + len(data))):
            data += more
    if not data:
        raise UnreadableError("the file is empty")
    return _jpeg(data, choose) or (lambda: _pillow(data, choose))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[int, int, int]]:
    """Yield a file descriptor, where in it the image begins and how many bytes it has."""
    if member := tar_index.parse_address(path):
        archive = tar_index.open_archive(member.archive)  # held: other threads may have it leave the cache
        yield archive.fileno(), member.offset, member.size
        return
    file = os.open(path, os.O_RDONLY)
    try:
        yield file, 0, os.fstat(file).st_size
    finally:
        os.close(file)


def _ppm(file: int, start: int, size: int, header: int, H: int, W: int, choose: ChooseRegion) -> Decoded:
    if min(H, W) < 1 or size < header + 3 * H * W:
        raise UnreadableError("truncated")
    _bounded(H, W)
    _, top, bottom = choose(H, W)
    pixels = np.empty((bottom - top, W, 3), np.uint8)
    if os.preadv(file, [pixels.data.cast("B")], start + header + 3 * W * top) < pixels.nbytes:
        raise UnreadableError("truncated")
    return Decoded(pixels, H, W, 1, top, _conversions(H, W))


def _jpeg(data: bytes, choose: ChooseRegion) -> Decode | None:
    """Return what decodes a plain upright JPEG; None for one that Pillow must decode."""
    if (header := jpeg.read_header(data)) is None:
        return None
    H, W, colours = header
    _bounded(H, W)
    k, _, bottom = choose(H, W)

    def finish() -> Decoded:
        if (pixels := jpeg.decode_rows(data, header, k, bottom)) is None:
            return _pillow(data, choose)
        return Decoded(pixels, H, W, k, 0, _conversions(H, W, colours == "Gray"))

    return finish


def _pillow(data: bytes, choose: ChooseRegion) -> Decoded:
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = jpeg.exif_orientation(image) if "exif" in image.info or image.format != "JPEG" else 1
            W, H = image.size
            if orientation in (5, 6, 7, 8):
                W, H = H, W
            k = choose(H, W).factor
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                k = 1
            elif k > 1:
                assert isinstance(image, ImageFile.ImageFile)
                image.draft(None, (image.size[0] // k, image.size[1] // k))
            conversions = _conversions(H, W, image.mode in ("L", "1"), image.mode, orientation)
            upright = ImageOps.exif_transpose(image) if orientation != 1 else image
            return Decoded(_rgb(upright), H, W, k, 0, conversions)
    except UnreadableError:
        raise
    except Exception as err:  # Pillow's plugins raise nearly everything, on damaged files
        reason = str(err).split("<_io")[0].strip().rstrip(".")
        raise UnreadableError(reason or type(err).__name__) from None


def _rgb(image: Any) -> np.ndarray:
    """Return uint8 [H, W, 3]. Alpha is dropped, as torchvision's ImageFolder does; 16 bits keep their upper 8."""
    if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would clip them to white
        wide = np.asarray(image).astype(np.int64)
        grey = (wide >> 8 if wide.max() > 255 or image.mode != "I" else wide).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)))
    if image.mode == "F":
        raise UnreadableError("floating-point pixels have no agreed range")
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _bounded(H: int, W: int) -> None:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)  # Pillow's own, so that one file cannot fill the memory
    if limit < H * W:
        raise UnreadableError(f"{W} x {H} pixels are more than the {limit:,} that are allowed")


def _conversions(H: int, W: int, grey: bool = False, mode: str = "RGB", orientation: int = 1) -> tuple[str, ...]:
    modes = {"CMYK": "CMYK", "YCCK": "CMYK", "P": "palette", "PA": "palette", "RGBA": "alpha", "LA": "alpha"}
    odd = "16-bit" if mode.startswith("I") else modes.get(mode)
    tiny = f"under {TINY_SIDE} px" if min(H, W) < TINY_SIDE else None
    kinds = (odd, "greyscale" if grey else None, "rotated by EXIF" if orientation != 1 else None, tiny)
    return tuple(kind for kind in kinds if kind)
