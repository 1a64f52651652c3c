"""Only as far down as is needed, and never other pixels than Pillow's."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from mixtune.data import jpeg
from mixtune.data.decode import DecodeRegion, UnreadableError, decode
from tests.data.test_decode import photograph

pytestmark = pytest.mark.arithmetic

simplejpeg = pytest.importorskip("simplejpeg")


def noisy(H, W, seed=0):
    """Edges and noise: every row of every block counts."""
    noise = np.random.default_rng(seed).integers(0, 90, (H, W, 3))
    return (photograph(H, W) // 2 + noise).astype(np.uint8)


def encoded(pixels, **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def pillows(data, factor=1):
    with Image.open(io.BytesIO(data)) as image:
        if factor > 1:
            image.draft(None, (image.size[0] // factor, image.size[1] // factor))
        return np.asarray(image.convert("RGB"))


FILES = {
    "4:2:0": {"quality": 90},
    "4:2:2": {"quality": 75, "subsampling": 1},
    "4:4:4": {"quality": 95, "subsampling": 0},
    "optimised": {"quality": 90, "optimize": True},
    "restart markers": {"quality": 90, "restart_marker_rows": 1},
    "one block between markers": {"quality": 90, "restart_marker_blocks": 1},
    "progressive": {"quality": 90, "progressive": True},
}


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("settings", FILES.values(), ids=FILES)
@pytest.mark.parametrize("colours", ["RGB", "L"])
def test_rows_above_a_cut_are_those_of_the_whole_image(settings, factor, colours):
    made = noisy(203, 150) if colours == "RGB" else noisy(203, 150)[..., 0]
    data = encoded(made, **settings)
    about = jpeg.read_header(data)
    assert about == (203, 150, "YCbCr" if colours == "RGB" else "Gray")
    whole = pillows(data, factor)
    for bottom in (1, 14, 15, 16, 17, 60, 100, 170, 186, 203):
        found = jpeg.decode_rows(data, about, factor, bottom)
        needed = -(-bottom // factor)
        assert len(found) >= needed
        assert np.array_equal(found[:needed], whole[:needed])


@pytest.mark.parametrize("settings", [s for name, s in FILES.items() if name != "progressive"])
def test_no_more_rows_are_decoded_than_blocks_hold(settings):
    data = encoded(noisy(203, 150), **settings)
    about = jpeg.read_header(data)
    assert [len(jpeg.decode_rows(data, about, 1, bottom)) for bottom in (10, 60, 180, 203)] == [16, 64, 203, 203]
    assert len(jpeg.decode_rows(data, about, 4, 60)) == 80 // 4


def test_a_view_is_the_same_as_from_the_whole_image(tmp_path):
    (tmp_path / "x.jpg").write_bytes(encoded(noisy(203, 150), quality=90))
    whole = decode(str(tmp_path / "x.jpg"))
    for top, h in ((0, 20), (30, 60), (100, 103)):
        part = decode(str(tmp_path / "x.jpg"), lambda H, W, t=top, h=h: DecodeRegion(1, t, t + h))
        assert (part.H, part.W) == (203, 150)
        assert np.array_equal(part.crop(top, 7, h, 90), whole.crop(top, 7, h, 90))
    assert len(decode(str(tmp_path / "x.jpg"), lambda H, W: DecodeRegion(1, 30, 90)).pixels) < 203


@pytest.mark.parametrize("damage", ["a bit", "a sector", "the end"])
def test_a_damaged_file_gives_what_pillow_makes_of_it(damage, tmp_path):
    """Pillow overlooks what libjpeg can, and so do torchvision's users; what it refuses is refused here."""
    rng = random.Random(0)
    data, refused = encoded(noisy(203, 150), quality=90), 0
    begin = data.find(b"\xff\xda") + 14
    for _ in range(60):
        at, bad = rng.randrange(begin, len(data) - 2), bytearray(data)
        if damage == "a bit":
            bad[at] ^= 1 << rng.randrange(8)
        elif damage == "a sector":
            bad[at : at + 512] = bytes(len(bad[at : at + 512]))
        else:
            del bad[at:]
        (tmp_path / "x.jpg").write_bytes(bad)
        bottom = rng.randrange(1, 180)
        try:
            whole = pillows(bytes(bad))
        except OSError:
            refused += 1
            with pytest.raises(UnreadableError):
                decode(str(tmp_path / "x.jpg"), lambda H, W, b=bottom: DecodeRegion(1, 0, b))
        else:
            found = decode(str(tmp_path / "x.jpg"), lambda H, W, b=bottom: DecodeRegion(1, 0, b)).pixels
            assert np.array_equal(found[:bottom], whole[:bottom])
    assert (refused == 60) == (damage == "the end")


def test_a_header_that_stands_elsewhere_too_is_no_harm():
    data = encoded(noisy(203, 150), quality=90)
    frame = data.index(b"\xff\xc0")
    comment = b"\xff\xfe" + (2 + 9).to_bytes(2, "big") + data[frame : frame + 9]
    twice = data[:2] + comment + data[2:]
    found = jpeg.decode_rows(twice, jpeg.read_header(twice), 1, 60)
    assert np.array_equal(found[:60], pillows(data)[:60])


@pytest.mark.parametrize("turn", [1, 6])
def test_only_what_is_rotated_by_exif_is_left_to_pillow(turn):
    exif = Image.Exif()
    exif[jpeg.ORIENTATION] = turn
    assert (jpeg.read_header(encoded(noisy(64, 64), exif=exif)) is None) == (turn == 6)


def test_what_it_cannot_take_is_left_to_pillow(monkeypatch):
    data = encoded(noisy(64, 64))
    assert jpeg.read_header(b"\x89PNG") is None
    assert jpeg.read_header(data[:30]) is None
    cmyk = io.BytesIO()
    Image.new("CMYK", (64, 64)).save(cmyk, "JPEG")
    assert jpeg.read_header(cmyk.getvalue()) is None
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.read_header(data) is None
    assert jpeg.library_version() is None
