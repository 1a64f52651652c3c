"""Decode: one image file to upright RGB rows, at the smallest scale and in the fewest rows that its views need.

JPEGs are decoded by libjpeg-turbo, through simplejpeg where that is installed and through Pillow otherwise: the same
pixels, at 1/1, 1/2, 1/4 and 1/8 of the size. A JPEG cannot be cropped before it is decoded by any of the libraries;
a binary PPM, which is pixels and nothing else, is read from the first row needed to the last. Everything else, and
whatever is odd, goes through Pillow. This module needs no torch.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, ImageOps

try:
    import simplejpeg
except ImportError:  # an optional extra
    simplejpeg = None

FACTORS = (8, 4, 2, 1)  # by which libjpeg-turbo divides the sides while it decodes
TINY = 8  # a shorter side of fewer pixels shows no object; it is counted
_PPM = re.compile(rb"P6\s+(\d{1,6})\s+(\d{1,6})\s+255\s")
_ORIENTATION = 0x0112  # the EXIF tag
_RETRIES = (0.1, 1.0)  # seconds to wait before a read that failed is tried again (network storage)


class UnreadableError(ValueError):
    """A file that holds no whole image; the message says why."""


class Needed(NamedTuple):
    """What is wanted of an image: its sides divided by at most ``factor``, rows ``top`` to ``bottom`` of the whole."""

    factor: int
    top: int
    bottom: int


Need = Callable[[int, int], Needed]  # of the upright height and width; it is asked once for every image


@dataclass(frozen=True, eq=False)
class Decoded:
    """pixels: uint8 [h, w, 3], the rows from ``top`` on of an image of H x W pixels whose sides are divided by
    ``factor``. notes: in what the file differs from a plain RGB photograph.
    """

    pixels: np.ndarray
    H: int
    W: int
    factor: int = 1
    top: int = 0
    notes: tuple[str, ...] = ()

    def crop(self, top: int, left: int, h: int, w: int) -> np.ndarray:
        """The box of the whole image that is given in its own pixels. uint8 [about h / factor, about w / factor, 3]"""
        k, (rows, columns) = self.factor, self.pixels.shape[:2]
        y, x = min(round((top - self.top) / k), rows - 1), min(round(left / k), columns - 1)
        return self.pixels[y : max(y + 1, round((top - self.top + h) / k)), x : max(x + 1, round((left + w) / k))]


def everything(H: int, W: int) -> Needed:
    """Need: the whole image at its own size."""
    return Needed(1, 0, H)


def decoder() -> str:
    """What decodes JPEGs here, for people."""
    if find_spec("simplejpeg") is None:
        return "Pillow (simplejpeg, an extra, decodes JPEGs about 1.6 times as fast)"
    return f"simplejpeg {simplejpeg.__version__}"


def decode(path: str, need: Need = everything) -> Decoded:
    """The image in a file. Raises UnreadableError for a file that is missing, damaged or no image."""
    for wait in (*_RETRIES, None):
        try:
            return _decode(path, need)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as err:
            raise UnreadableError(str(err.strerror).lower()) from None
        except OSError as err:  # Pillow's own errors do not get here
            if wait is None:
                raise UnreadableError(f"reading failed three times: {err}") from None
            time.sleep(wait)
    raise AssertionError


def _decode(path: str, need: Need) -> Decoded:
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        head = os.pread(file, 64, 0)
        if found := _PPM.match(head):
            return _ppm(file, size, found.end(), int(found[2]), int(found[1]), need)
        data = os.pread(file, size, 0)
        while 0 < len(data) < size and (more := os.pread(file, size - len(data), len(data))):
            data += more
    finally:
        os.close(file)
    if not data:
        raise UnreadableError("the file is empty")
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            if fast := _jpeg(data, need):
                return fast
        except ValueError:
            pass  # damaged, or odd: Pillow decides, as it does where simplejpeg is not installed
    return _pillow(data, need)


def _ppm(file: int, size: int, start: int, H: int, W: int, need: Need) -> Decoded:
    if min(H, W) < 1 or size < start + 3 * H * W:
        raise UnreadableError("truncated")
    _bounded(H, W)
    _, top, bottom = need(H, W)
    pixels = np.empty((bottom - top, W, 3), np.uint8)
    if os.preadv(file, [pixels.data.cast("B")], start + 3 * W * top) < pixels.nbytes:
        raise UnreadableError("truncated")
    return Decoded(pixels, H, W, 1, top, _notes(H, W))


def _jpeg(data: bytes, need: Need) -> Decoded | None:
    """A plain upright JPEG; None for one that Pillow must look at. Raises ValueError for a damaged one."""
    H, W, colours, _ = simplejpeg.decode_jpeg_header(data)
    _bounded(H, W)
    if colours not in ("YCbCr", "Gray") or b"Exif\0" in data[:4096]:
        return None
    k = need(H, W).factor
    smaller = {"min_height": -(-H // k), "min_width": -(-W // k)} if k > 1 else {}
    return Decoded(simplejpeg.decode_jpeg(data, **smaller), H, W, k, 0, _notes(H, W, colours == "Gray"))


def _pillow(data: bytes, need: Need) -> Decoded:
    try:
        with Image.open(io.BytesIO(data)) as image:
            turn = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info or image.format != "JPEG" else 1
            W, H = image.size
            if turn in (5, 6, 7, 8):
                W, H = H, W
            k = need(H, W).factor
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                k = 1
            elif k > 1:
                assert isinstance(image, ImageFile.ImageFile)
                image.draft(None, (image.size[0] // k, image.size[1] // k))
            notes = _notes(H, W, image.mode in ("L", "1"), image.mode, turn)
            upright = ImageOps.exif_transpose(image) if turn != 1 else image
            return Decoded(_rgb(upright), H, W, k, 0, notes)
    except UnreadableError:
        raise
    except Exception as err:  # Pillow's plugins raise nearly everything, on damaged files
        said = str(err).split("<_io")[0].strip().rstrip(".")
        raise UnreadableError(said or type(err).__name__) from None


def _rgb(image: Any) -> np.ndarray:
    """uint8 [H, W, 3]. Alpha is dropped, as torchvision's ImageFolder does; 16 bits keep their upper 8."""
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


def _notes(H: int, W: int, grey: bool = False, mode: str = "RGB", turn: int = 1) -> tuple[str, ...]:
    kinds = {"CMYK": "CMYK", "YCCK": "CMYK", "P": "palette", "PA": "palette", "RGBA": "alpha", "LA": "alpha"}
    odd = "16-bit" if mode.startswith("I") else kinds.get(mode)
    tiny = f"under {TINY} px" if min(H, W) < TINY else None
    found = (odd, "greyscale" if grey else None, "rotated by EXIF" if turn != 1 else None, tiny)
    return tuple(x for x in found if x)
