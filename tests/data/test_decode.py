"""Every kind of file: right pixels, or one reason why not."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from mixtune.data import decode as module
from mixtune.data import jpeg
from mixtune.data.decode import DecodeRegion, UnreadableError, decode

pytestmark = pytest.mark.arithmetic


def photograph(H=150, W=200):
    """Smooth, as photographs are, so that JPEGs keep it."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([y * 255 // H, x * 255 // W, (x + y) * 255 // (H + W)], -1).astype(np.uint8)


@pytest.fixture(params=["simplejpeg", "Pillow"])
def library(request, monkeypatch):
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_jpegs_are_pillows_at_every_scale(library, factor, mode, tmp_path):
    Image.fromarray(photograph()).convert(mode).save(tmp_path / "x.jpg", quality=90, progressive=factor == 2)
    made = decode(str(tmp_path / "x.jpg"), lambda H, W: DecodeRegion(factor, 0, H))
    assert (made.H, made.W) == (150, 200)
    assert made.conversions == {"RGB": (), "L": ("greyscale",), "CMYK": ("CMYK",)}[mode]
    with Image.open(tmp_path / "x.jpg") as image:
        if mode != "CMYK":
            image.draft(None, (200 // factor, 150 // factor))
            assert made.factor == factor
        assert np.array_equal(made.pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("turn", range(11))  # 0, 9 and 10 say nothing
def test_exif_rotation_is_undone(library, turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(photograph()).save(tmp_path / "x.jpg", exif=exif)
    made = decode(str(tmp_path / "x.jpg"))
    with Image.open(tmp_path / "x.jpg") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(made.pixels, upright)
    assert upright.shape[:2] == (made.H, made.W)
    assert made.conversions == (("rotated by EXIF",) if 1 < turn < 9 else ())


@pytest.mark.parametrize(("mode", "note"), [("P", "palette"), ("RGBA", "alpha"), ("LA", "alpha"), ("L", "greyscale")])
def test_other_modes_are_converted_and_noted(mode, note, tmp_path):
    image = Image.fromarray(photograph()).convert(mode)
    image.save(tmp_path / "x.png")
    made = decode(str(tmp_path / "x.png"))
    assert note in made.conversions
    assert np.array_equal(made.pixels, np.asarray(image.convert("RGB")))


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    wide = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(wide).save(tmp_path / "x.png")
    made = decode(str(tmp_path / "x.png"))
    assert np.array_equal(made.pixels, np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, 2))
    assert "16-bit" in made.conversions


def test_a_single_pixel_is_an_image(library, tmp_path):
    for name in ("x.jpg", "x.png", "x.ppm"):
        Image.new("RGB", (1, 1), (9, 9, 9)).save(tmp_path / name)
        made = decode(str(tmp_path / name))
        assert made.pixels.shape == (1, 1, 3)
        assert made.conversions == ("under 8 px",)


def test_of_a_ppm_only_the_rows_needed_are_read(tmp_path):
    Image.fromarray(photograph()).save(tmp_path / "x.ppm")
    made = decode(str(tmp_path / "x.ppm"), lambda H, W: DecodeRegion(1, 20, 70))
    assert np.array_equal(made.pixels, photograph()[20:70])
    assert np.array_equal(made.crop(30, 5, 40, 60), photograph()[30:70, 5:65])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["jpg", "png", "ppm"])
def test_a_truncated_file_is_unreadable(library, kind, keep, tmp_path):
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UnreadableError, match=r"."):
        decode(str(path))


def test_what_is_no_image_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "folder.jpg").mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "large.ppm")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name, why in (("text", "identify"), ("none", "no such file"), ("folder", "director"), ("large", "allowed")):
        with pytest.raises(UnreadableError, match=why):
            decode(str(tmp_path / f"{name}.{'ppm' if name == 'large' else 'jpg'}"))


def test_a_read_that_fails_is_tried_again(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    monkeypatch.setattr(module, "_RETRIES", (0.0, 0.0))
    real, left = module._open, [2]

    def flaky(path, need):
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real(path, need)

    monkeypatch.setattr(module, "_open", flaky)
    assert decode(str(tmp_path / "x.png")).H == 9
    left[0] = 3
    with pytest.raises(UnreadableError, match="three times"):
        decode(str(tmp_path / "x.png"))
