"""What is seen of prepared images is what is seen of the originals, to within the decibels that docs/data.md states.

PSNR of uint8 views, medians over synthetic photographs; each bound lies between what is right and every fault.
"""

import functools

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mixtune.data import augment, prepare_images
from mixtune.data.prepared_folder import PrepareTarget
from mixtune.data.sources import Files
from mixtune.regime import BatchShape, Schedule

pytestmark = pytest.mark.arithmetic

S, N = 128, 8
EVALUATED = {"jpeg": 36.5, "ppm": 42.5}  # decibels
TRAINED = {"jpeg": 31.0, "ppm": 32.0}  # lower, as the boxes of crops are whole pixels of smaller images
FAULTS = {
    "nearest neighbour": {"resample": Image.Resampling.NEAREST},
    "one pixel right": {"shift": (0, 1)},
    "one pixel up": {"shift": (-1, 0)},
}


def photograph(H, W, seed):
    """Noise of a photograph's spectrum (amplitude about 1 / frequency), and objects with edges before it."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.rfftfreq(W)[None])
    frequency[0, 0] = 1.0

    def noise(power):
        phase = np.exp(2j * np.pi * rng.random(frequency.shape))
        x = np.fft.irfft2(phase / frequency**power, (H, W))
        return (x - x.mean()) / x.std()

    luma = noise(1.4)
    colours = np.stack([luma + 0.35 * noise(1.8) for _ in range(3)], -1)
    image = Image.fromarray((128 + 48 * colours).clip(0, 255).astype(np.uint8))
    objects = Image.new("RGBA", (2 * W, 2 * H))
    pen = ImageDraw.Draw(objects)
    for shape in (pen.ellipse, pen.rectangle) * 3:
        x, y, w, h = (rng.random(4) * (2 * W, 2 * H, W // 3, H // 3)).astype(int).tolist()
        shape([x - w, y - h, x + w, y + h], fill=(*rng.integers(20, 236, 3).tolist(), 235))
    smooth = objects.resize((W, H), Image.Resampling.BOX)
    image.paste(smooth, (0, 0), smooth)
    return image


def written(folder, H, W):
    (folder / "train/a").mkdir(parents=True)
    for i in range(N):
        photograph(H, W, i).save(folder / "train/a" / f"{i}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return written(tmp_path_factory.mktemp("originals"), 375, 500)


def files(folder):
    paths = tuple(sorted(map(str, folder.rglob("*.*"))))
    return Files(paths, torch.zeros(len(paths), dtype=torch.int64))


@functools.cache
def evaluated(folder, size):
    return torch.cat([x.clone() for x, _ in augment.file_eval_batches(files(folder), size, N, 0)])


@functools.cache
def trained_on(folder):
    """Random crops, by the same numbers for every folder."""
    steps = Schedule((BatchShape(S, N, 2),), np.zeros(6, np.int16), np.ones(1))
    made = augment.file_batches(files(folder), steps, augment.Augment(), True, 0, 0, 0)
    return torch.cat([x.clone() for x, _ in made])


def decibels(here, there):
    errors = (here.double() - there.double()).square().flatten(1).mean(1)
    return float((10 * torch.log10(255**2 / errors)).median())


def prepare(folder, out, target, monkeypatch, resample=Image.Resampling.BICUBIC, shift=(0, 0)):
    """The prepared folder, perhaps with a fault."""
    real = Image.Image.resize

    def resize(image, size, _):
        return Image.fromarray(np.roll(np.asarray(real(image, size, resample)), shift, (0, 1)))

    (out / "train/a").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "resize", resize)
        for name in prepare_images.find_loose_images(folder):
            assert not prepare_images.prepare_file(str(folder), str(out), name, target).reason
    return out


@pytest.mark.parametrize("kind", ["jpeg", "ppm"])
def test_views_of_prepared_images_are_those_of_the_originals(kind, originals, tmp_path, monkeypatch):
    made = prepare(originals, tmp_path / "made", PrepareTarget(S, kind), monkeypatch)
    for size in (S, 96):
        assert decibels(evaluated(originals, size), evaluated(made, size)) > EVALUATED[kind]
    assert decibels(trained_on(originals), trained_on(made)) > TRAINED[kind]


@pytest.mark.parametrize(
    ("target", "fault"),
    [(PrepareTarget(S, kind), fault) for kind in ("jpeg", "ppm") for fault in FAULTS]
    + [(PrepareTarget(S, quality=60), None)],
)
def test_a_fault_is_below_the_bounds(target, fault, originals, tmp_path, monkeypatch):
    made = prepare(originals, tmp_path / "made", target, monkeypatch, **FAULTS.get(fault, {}))
    assert decibels(evaluated(originals, S), evaluated(made, S)) < EVALUATED[target.format]
    assert decibels(trained_on(originals), trained_on(made)) < TRAINED[target.format]


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BOX])
def test_pixels_tell_a_softer_filter_too(resample, originals, tmp_path, monkeypatch):
    made = prepare(originals, tmp_path / "made", PrepareTarget(S, "ppm"), monkeypatch, resample)
    assert decibels(evaluated(originals, S), evaluated(made, S)) < EVALUATED["ppm"]


@pytest.mark.parametrize("kind", ["jpeg", "ppm"])
def test_images_that_are_small_enough_are_the_originals(kind, tmp_path, monkeypatch):
    small = written(tmp_path / "small", 147, 190)
    made = prepare(small, tmp_path / "made", PrepareTarget(S, kind), monkeypatch)
    assert torch.equal(evaluated(made, S), evaluated(small, S))
    assert torch.equal(trained_on(made), trained_on(small))
