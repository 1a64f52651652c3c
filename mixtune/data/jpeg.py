"""JPEG: plain upright JPEGs through simplejpeg (libjpeg-turbo), only as far down as rows are needed.

Everything here may return None: Pillow then gives the same pixels or says what is wrong. No library crops a JPEG before
it is decoded, as its blocks have no index. But they lie in order, so that a file whose header names fewer rows is
decoded as far as those and no further.
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


class JpegHeader(NamedTuple):
    """Height and width in pixels, and YCbCr or Gray."""

    H: int
    W: int
    colours: str


def library_version() -> str | None:
    """Return name and version of what decodes here; None where it is not installed."""
    return f"simplejpeg {simplejpeg.__version__}" if simplejpeg else None


def read_header(data: bytes) -> JpegHeader | None:
    """Return the header if simplejpeg can decode the file: not rotated, and of colours that it converts as Pillow."""
    if simplejpeg is None or data[:2] != b"\xff\xd8":
        return None
    try:
        H, W, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in _BASELINE or (data.find(b"Exif\0", 0, 4096) >= 0 and _is_rotated(data)):
            return None
    except Exception:  # damaged, or odd; Pillow's plugins raise nearly everything
        return None
    return JpegHeader(H, W, colours)


def decode_rows(data: bytes, header: JpegHeader, factor: int, bottom: int) -> np.ndarray | None:
    """Return uint8 [rows, W / factor, 3], the sides divided by ``factor`` (1, 2, 4 or 8) and rounded up: all rows, or
    some more than those above ``bottom`` of the whole image.
    """
    H, W, _ = header
    # Colours are interpolated between rows: the last two before a cut would be other than in the whole image.
    rows = -(-(bottom + 2 * factor) // _BLOCKS) * _BLOCKS
    if rows + _BLOCKS <= H and (cut := _with_height(data, header, rows)):
        top = np.empty((rows // factor, -(-W // factor), 3), np.uint8)
        try:
            simplejpeg.decode_jpeg(cut, min_height=top.shape[0], min_width=top.shape[1], buffer=top)
        except ValueError as err:
            if _MORE.fullmatch(str(err)):
                return top
    smaller = {"min_height": -(-H // factor), "min_width": -(-W // factor)} if factor > 1 else {}
    try:
        whole: np.ndarray = simplejpeg.decode_jpeg(data, **smaller)
    except ValueError:
        return None
    return whole


def _with_height(data: bytes, header: JpegHeader, rows: int) -> bytes | None:
    """Return the file with a header of fewer rows; None for a progressive one, whose blocks are not in order."""
    frame = _BASELINE[header.colours]
    at = data.find(frame + header.H.to_bytes(2, "big") + header.W.to_bytes(2, "big")) + len(frame)
    return data[:at] + rows.to_bytes(2, "big") + data[at + 2 :] if at >= len(frame) else None


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation that EXIF names, 2 to 8; else 1, upright."""
    orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if orientation in range(2, 9) else 1


def _is_rotated(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return exif_orientation(image) != 1
