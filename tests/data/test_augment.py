import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from mixtune.data import augment as views
from mixtune.data import crops
from mixtune.data.augment import Augment
from mixtune.data.file_issues import FileIssues
from mixtune.data.in_memory import PixelViews, pixel_eval_batches
from mixtune.data.sources import Files, Pixels
from mixtune.regime import WHOLE, BatchShape, Budget, Mixture, Regime, Schedule, Shard
from tests.data.byte_resize import LEVELS, furthest

pytestmark = pytest.mark.arithmetic

SHAPES = [BatchShape(8, 8, 2), BatchShape(16, 4, 1), BatchShape(12, 4, 3)]


def schedule(n, epochs=6, shapes=SHAPES, seed=0):
    regime = Regime.of(BatchShape(16, 4), [Mixture.of(shapes)])
    return Schedule.build(regime, Budget(epochs), n, seed)


def pixels(n=24, size=8):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8))
    return Pixels(images, torch.arange(n))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for i in range(12):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return Files(tuple(paths), torch.arange(12))


def batches(source, steps, start=0, seed=3, workers=0, flip=True, augment=None, shard=WHOLE, issues=None):
    augment = augment or Augment()
    if isinstance(source, Pixels):
        made = PixelViews(source, augment, flip, torch.device("cpu"))
        return [made.make(drawn) for drawn in made.draw(steps, seed, start, shard)]
    made = views.file_batches(source, steps, augment, flip, seed, start, workers, shard=shard, issues=issues)
    return [(x.clone(), y) for x, y in made]


def equal(a, b):
    return all(
        torch.equal(x, u) and torch.equal(y, v)
        for (x, y), (u, v) in itertools.zip_longest(a, b, fillvalue=(None, None))
    )


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_every_step_has_its_shape_and_copies_share_labels(kind, files):
    source = pixels() if kind == "pixels" else files
    steps = schedule(len(source))
    for (x, y), shape in zip(batches(source, steps), steps, strict=True):
        assert x.shape == (shape.B * shape.D, 3, shape.S, shape.S)
        images = y.view(shape.B, shape.D)
        assert torch.equal(images, images[:, :1].expand(-1, shape.D))
        assert len(images[:, 0].unique()) == shape.B


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_copies_of_an_image_differ(kind, files):
    source = pixels() if kind == "pixels" else files
    steps = schedule(len(source), shapes=[BatchShape(8, 8, 4)])
    x, _ = batches(source, steps)[0]
    first = x.reshape(8, 4, -1).float()
    assert (first[:, 0] - first[:, 1]).abs().amax(1).gt(0).sum() >= 6


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_resuming_at_a_step_gives_the_same_batches(kind, files):
    source = pixels() if kind == "pixels" else files
    steps = schedule(len(source))
    whole = batches(source, steps)
    for start in (1, len(steps) // 2, len(steps) - 1):
        assert equal(batches(source, steps, start), whole[start:])
    assert not equal(batches(source, steps, seed=4), whole)


def test_the_number_of_workers_does_not_matter(files):
    steps = schedule(len(files), epochs=4)
    assert equal(batches(files, steps, workers=0), batches(files, steps, workers=2))
    a, b = ([(x.clone(), y) for x, y in views.file_eval_batches(files, 16, 5, n)] for n in (0, 2))
    assert equal(a, b)
    assert [len(y) for _, y in a] == [5, 5, 2]


def test_pad_crop_flip_is_what_a_plain_loop_cuts_out():
    """Each view at the native size is one of the (2 pad + 1)^2 crops of the padded image, mirrored or not."""
    source, pad = pixels(n=6), 2
    steps = schedule(6, epochs=40, shapes=[BatchShape(8, 4, 2)])
    padded = torch.nn.functional.pad(source.images.permute(0, 3, 1, 2), (pad,) * 4).float()
    seen = set()
    for x, y in batches(source, steps, augment=Augment(pad=pad)):
        for view, label in zip(x, y, strict=True):
            found = [
                (r, c, mirrored)
                for r in range(2 * pad + 1)
                for c in range(2 * pad + 1)
                for mirrored in (False, True)
                if torch.equal(view, _crop(padded[label], r, c, mirrored))
            ]
            assert len(found) == 1
            seen.update(found)
    assert len(seen) == 50  # every crop, mirrored and not


def _crop(image, r, c, mirrored, size=8):
    crop = image[:, r : r + size, c : c + size]
    return crop.flip(2) if mirrored else crop


def test_crops_and_mirrors_are_uniform_as_torchvisions():
    """The positions of torchvision's RandomCrop(padding) and RandomHorizontalFlip are uniform; so are ours."""
    pad, n = 1, 4000
    marked = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    marked[0, 3, 2] = 255  # one bright pixel shows where the crop lies and whether it is mirrored
    source = Pixels(marked.expand(n, -1, -1, -1), torch.zeros(n, dtype=torch.long))
    steps = schedule(n, epochs=1, shapes=[BatchShape(8, n)])
    x, _ = batches(source, steps, augment=Augment(pad=pad))[0]
    where = x[:, 0].flatten(1).argmax(1)
    counts = torch.bincount(where, minlength=64)

    from torchvision.transforms import v2

    torch.manual_seed(0)
    crop = v2.Compose([v2.RandomCrop(8, padding=pad), v2.RandomHorizontalFlip()])
    theirs = torch.stack([crop(marked[0].permute(2, 0, 1)) for _ in range(n)])[:, 0].flatten(1).argmax(1)
    expected = torch.bincount(theirs, minlength=64)
    assert torch.equal(counts > 0, expected > 0)
    cells = counts[counts > 0].double()
    assert len(cells) == 18  # 3 x 3 positions, two mirrors, none coincide
    chi2 = ((cells - n / 18) ** 2 / (n / 18)).sum()
    assert chi2 < 40.8  # 17 degrees of freedom, p = 0.001


def test_file_views_are_torchvisions_inception_crops(files):
    """Scale and aspect of the crops, recovered from an image whose pixels hold their own coordinates."""
    steps = schedule(12, epochs=1, shapes=[BatchShape(16, 12)])
    x, _ = batches(files, steps, augment=Augment(scale=(1.0, 1.0), ratio=(28 / 20, 28 / 20)), flip=False)[0]
    from torchvision.transforms import v2

    # With the full area at the image's own aspect ratio nothing is left to chance: the plain resize.
    key = next(schedule(12, epochs=1, shapes=[BatchShape(16, 12)]).sample_batches(12, 3))
    with Image.open(files.paths[key[0]]) as image:
        plain = v2.Resize((16, 16), antialias=True)(v2.PILToTensor()(image.convert("RGB")))
    assert furthest(x[0], plain) <= LEVELS


@pytest.mark.parametrize("workers", [0, 2])
def test_file_views_are_those_of_a_plain_loop(files, workers):
    """Each view is its box cut out of the whole image, resized and then mirrored, by Pillow and torchvision: to the
    bit, to one level where OpenCV enlarges.
    """
    from torchvision.transforms.v2 import functional as TF

    steps, augment, mirrors = schedule(12, epochs=4), Augment(), 0
    made = batches(files, steps, augment=augment, workers=workers)
    for t, ((x, _), samples) in enumerate(zip(made, steps.sample_batches(12, 3), strict=True)):
        shape = steps.shapes[steps.index[t]]
        numbers, mirrored = crops.draw_crops(3, t, shape.views)
        mirrors += int(mirrored.sum())
        for k in range(shape.views):
            with Image.open(files.paths[samples[k // shape.D]]) as image:
                whole = TF.pil_to_tensor(image.convert("RGB"))
            box = crops.random_box(*whole.shape[1:], numbers[k].tolist(), augment.scale, augment.ratio)
            plain = TF.resized_crop(whole, *box, [shape.S] * 2, antialias=True)
            plain = TF.horizontal_flip(plain) if mirrored[k] else plain
            assert furthest(x[k], plain) <= (1 if crops.opencv() and max(box[2:]) <= shape.S else LEVELS)
    assert 0 < mirrors < steps.views


def test_flip_off_never_mirrors():
    source = pixels(n=8)
    steps = schedule(8, shapes=[BatchShape(8, 8)])
    for x, y in batches(source, steps, flip=False, augment=Augment(pad=0)):
        assert torch.equal(x, source.images[y].permute(0, 3, 1, 2).float())


@pytest.mark.parametrize("S", [4, 12, 16])
def test_evaluation_resizes_the_whole_image(S):
    """Not a crop at its native scale: a constant frame must survive at every size."""
    source = pixels(n=3)
    (x, y), *_ = pixel_eval_batches(source, S, 10)
    assert x.shape == (3, 3, S, S)
    assert y.tolist() == [0, 1, 2]
    from torchvision.transforms.v2 import functional as TF

    theirs = TF.resize(source.images.permute(0, 3, 1, 2).float(), [S, S], antialias=True)
    assert torch.allclose(x, theirs, atol=1e-3)


@pytest.mark.parametrize(("S", "side"), [(96, 109), (128, 146), (160, 182), (192, 219), (224, 256), (288, 329)])
def test_image_files_are_evaluated_at_the_published_ratio(S, side, tmp_path):
    """Shorter side to int(S * 8 / 7), then the central S x S: the table that follows from the authors' code."""
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    source = Files((str(tmp_path / "x.png"),), torch.zeros(1, dtype=torch.long))
    ((x, _),) = views.file_eval_batches(source, S, 1, 0)
    theirs = v2.Compose([v2.Resize(side, antialias=True), v2.CenterCrop(S)])
    assert furthest(x[0], theirs(torch.from_numpy(pixels).permute(2, 0, 1))) <= LEVELS


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(pad=-1), "pad"),
        (dict(scale=(0.5, 0.2)), "scale"),
        (dict(scale=(0.0, 1)), "scale"),
        (dict(ratio=(2, 1)), "ratio"),
    ],
)
def test_bad_augmentation_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Augment(**bad)


@pytest.mark.parametrize("kind", ["pixels", "files"])
def test_ranks_make_the_views_of_one_device_and_decode_each_image_once(kind, files):
    source = pixels() if kind == "pixels" else files
    steps = schedule(len(source))
    whole = batches(source, steps)
    issues = FileIssues()
    parts = [batches(source, steps, shard=Shard(r, 3), issues=issues) for r in range(3)]
    joined = [tuple(torch.cat(tensors) for tensors in zip(*part, strict=True)) for part in zip(*parts, strict=True)]
    assert equal(joined, whole)
    if kind == "files":
        assert issues.decodes == steps.samples  # not once per view, and not once per rank
    for part, shape in zip(parts[1], steps, strict=True):
        assert len(part[1]) == Shard(1, 3).of(shape).views
