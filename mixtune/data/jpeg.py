"""JPEG: plain upright JPEGs through simplejpeg (libjpeg-turbo), only as far down as rows are needed.

Everything here may decline, by None: Pillow then decides, and gives the same pixels or says what is wrong. No library
crops a JPEG before it is decoded, as its blocks have no index. But they lie in order, so that a file whose header names
fewer rows is decoded as far as those and no further.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:  # an optional extra
    simplejpeg = None

ORIENTATION = 0x0112  # the EXIF tag
_BLOCKS = 16  # rows of the usual blocks, with colours at half the resolution
_BASELINE = {"YCbCr": b"\xff\xc0\x00\x11\x08", "Gray": b"\xff\xc0\x00\x0b\x08"}  # what the sides stand behind
# libjpeg's first complaint where the blocks go on after the rows that the header names, and nothing before was odd.
_MORE = re.compile(r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd[0-79]")


class Header(NamedTuple):
    """Height and width in pixels, and YCbCr or Gray."""

    H: int
    W: int
    colours: str


def library() -> str | None:
    """What decodes here, by name and version; None where that is not installed."""
    return f"simplejpeg {simplejpeg.__version__}" if simplejpeg else None


def header(data: bytes) -> Header | None:
    """What a file is, if simplejpeg can take it: not rotated, and of colours that it converts as Pillow does."""
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return None
    try:
        H, W, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _BASELINE or (data.find(b"Exif\0", 0, 4096) >= 0 and _turned(data)):
            return None
    except Exception:  # damaged, or odd; Pillow's plugins raise nearly everything
        return None
    return Header(H, W, colours)


def pixels(data: bytes, about: Header, factor: int, bottom: int) -> np.ndarray | None:
    """uint8 [rows, W / factor, 3], the sides divided by ``factor`` (1, 2, 4 or 8) and rounded up: all rows, or some
    more than those above ``bottom`` of the whole image.
    """
    H, W, _ = about
    # Colours are interpolated between rows: the last two before a cut would be other than in the whole image.
    rows = -(-(bottom + 2 * factor) // _BLOCKS) * _BLOCKS
    if rows + _BLOCKS <= H and (cut := _cut(data, about, rows)):
        made = np.empty((rows // factor, -(-W // factor), 3), np.uint8)
        try:
            simplejpeg.decode_jpeg(cut, min_height=made.shape[0], min_width=made.shape[1], buffer=made)
        except ValueError as err:
            if _MORE.fullmatch(str(err)):
                return made
    smaller = {"min_height": -(-H // factor), "min_width": -(-W // factor)} if factor > 1 else {}
    try:
        whole: np.ndarray = simplejpeg.decode_jpeg(data, **smaller)
    except ValueError:
        return None
    return whole


def _cut(data: bytes, about: Header, rows: int) -> bytes | None:
    """The same file with a header of fewer rows, if its blocks lie from top to bottom: progressive ones do not."""
    frame = _BASELINE[about.colours]
    at = data.find(frame + about.H.to_bytes(2, "big") + about.W.to_bytes(2, "big")) + len(frame)
    return data[:at] + rows.to_bytes(2, "big") + data[at + 2 :] if at >= len(frame) else None


def turn(image: Image.Image) -> int:
    """How an image is turned, as EXIF counts it: 1, upright, wherever it does not say one of 2 to 8."""
    said = image.getexif().get(ORIENTATION, 1)
    return said if said in range(2, 9) else 1


def _turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return turn(image) != 1
