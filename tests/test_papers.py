"""Published tables as oracles, and published code run beside ours.

The numbers are those of the papers, of their authors' code, or arithmetic on them; none comes from mixtune.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from mixtune.regime import BatchShape, Budget, Schedule
from mixtune.regime import literature as lit
from mixtune.regime.catalogue import LITERATURE, at_published_bases, from_literature, write_published
from mixtune.regime.files import load_regime
from mixtune.regime.rounding import cvnets_ranges, cvnets_shape, cvnets_sizes, ffcv_sizes, mixsize_shape, timm_window

CIFAR, IMAGENET = BatchShape(32, 64), BatchShape(224, 256)
DEVICE = BatchShape(224, 64)  # the MixSize authors' batch on each of four devices
REGIMES = Path(__file__).parents[1] / "search_spaces" / "regimes"


def imagenet(name):
    return from_literature(name, IMAGENET, 32, 4)


def cifar(name):
    return from_literature(name, CIFAR, 8)


def triples(regime):
    return [(s.S, s.B, s.D) for s in regime.shapes]


# MixSize: the authors' mixsize_config, S -> (B, D, cost relative to the base)
AUTHORS = {
    (CIFAR, "B+"): {16: (256, 1, 1.0), 24: (114, 1, 1.002), 32: (64, 1, 1.0), 48: (28, 1, 0.984)},
    (CIFAR, "D+"): {16: (64, 4, 1.0), 24: (64, 2, 1.125), 32: (64, 1, 1.0), 48: (28, 1, 0.984)},
    (CIFAR, "both"): {16: (128, 2, 1.0), 24: (85, 1, 0.747), 32: (64, 1, 1.0), 48: (43, 1, 1.512)},
    (DEVICE, "B+"): {
        96: (348, 1, 0.999),
        128: (196, 1, 1.0),
        160: (125, 1, 0.997),
        192: (87, 1, 0.999),
        224: (64, 1, 1.0),
        256: (49, 1, 1.0),
        288: (39, 1, 1.007),
        320: (31, 1, 0.989),
    },
    (DEVICE, "D+"): {
        96: (64, 5, 0.918),
        128: (64, 3, 0.980),
        160: (64, 2, 1.020),
        192: (64, 1, 0.735),
        224: (64, 1, 1.0),
        256: (64, 1, 1.306),
        288: (64, 1, 1.653),
        320: (31, 1, 0.989),
    },
}


@pytest.mark.parametrize(
    ("base", "adapt", "S", "expected"),
    [(base, adapt, S, row) for (base, adapt), rows in AUTHORS.items() for S, row in rows.items()],
)
def test_mixsize_authors_shapes_and_their_cost(base, adapt, S, expected):
    shape = mixsize_shape(base, S, adapt)
    assert expected[:2] == (shape.B, shape.D)
    assert shape.pixels / base.pixels == pytest.approx(expected[2], abs=6e-4)


def test_mixsize_keeps_d_plus_down_to_half_a_copy():
    assert mixsize_shape(CIFAR, 42, "D+") == BatchShape(42, 64)  # 0.58 of a copy: rounded up to one
    assert mixsize_shape(CIFAR, 46, "D+") == BatchShape(46, 31)  # 0.48 of a copy: fewer images instead


def test_mixsize_is_rounded_on_each_device():
    assert mixsize_shape(IMAGENET, 96, "B+", devices=4).B == 4 * 348
    assert mixsize_shape(IMAGENET, 96, "B+", devices=1).B == 1394
    with pytest.raises(ValueError, match=r"\b256\b.*\b3\b"):
        mixsize_shape(IMAGENET, 96, "B+", devices=3)
    with pytest.raises(ValueError, match=r"\b32x1\b.*\b64\b"):
        mixsize_shape(BatchShape(32, 1), 64, "B+")


@pytest.mark.parametrize(
    ("make", "name", "shares"),
    [
        (cifar, "mixsize_cifar", {16: 0.2, 24: 0.3, 32: 0.3, 48: 0.2}),
        (imagenet, "mixsize144", {96: 0.2, 128: 0.6, 224: 0.1, 256: 0.1}),
        (imagenet, "mixsize224", {S: 0.2 if S == 224 else 0.8 / 6 for S in range(128, 321, 32)}),
    ],
)
@pytest.mark.parametrize("suffix", ["_b", "_d", "_bd", "_b_authors", "_d_authors"])
def test_mixsize_mixtures_are_shares_of_the_samples(make, name, shares, suffix):
    mixture = make(name + suffix).phases[0].mixture
    assert dict(zip((s.S for s in mixture.shapes), mixture.sample_shares, strict=True)) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("name", "mean"), [("mixsize144_b", 144.0), ("mixsize224_d", 224.0), ("mixsize144_d_authors", 144.0)]
)
def test_mixsize_mean_image_size_is_the_published_one(name, mean):
    mixture = imagenet(name).phases[0].mixture
    assert sum(q * s.S for s, q in zip(mixture.shapes, mixture.sample_shares, strict=True)) == pytest.approx(mean)


@pytest.mark.parametrize(
    ("make", "name", "steps"),
    [
        (imagenet, "mixsize144_b_authors", {256: 0.28, 224: 0.22, 128: 0.42, 96: 0.08}),
        (cifar, "mixsize_cifar_b_authors", {48: 0.47, 32: 0.31, 24: 0.17, 16: 0.05}),
    ],
)
def test_mixsize_step_shares_follow_from_sample_shares(make, name, steps):
    mixture = make(name).phases[0].mixture
    assert dict(zip((s.S for s in mixture.shapes), mixture.p, strict=True)) == pytest.approx(steps, abs=0.006)


@pytest.mark.parametrize(
    ("make", "name", "n_samples", "epochs", "steps"),
    [
        # Steps of the authors' code over the published epochs (their tables' own counts come from another regime,
        # except ImageNet D+: 450K in both).
        (cifar, "mixsize_cifar_b_authors", 50_000, 200, 152.2e3),
        (cifar, "mixsize_cifar_d_authors", 50_000, 200, 196.2e3),
        (imagenet, "mixsize144_b_authors", 1_281_167, 90, 208.5e3),
        (imagenet, "mixsize144_d_authors", 1_281_167, 90, 450.2e3),
        (imagenet, "fixed", 1_281_167, 90, 450.4e3),
        (cifar, "fixed", 50_000, 200, 156.2e3),
    ],
)
def test_mixsize_step_counts_at_equal_epochs(make, name, n_samples, epochs, steps):
    # The authors drop each loader's last, unfilled batch; a run here does not, hence the half per cent.
    schedule = Schedule.build(make(name), Budget(epochs, "epochs"), n_samples, 0)
    assert len(schedule) == pytest.approx(steps, rel=0.005)
    assert schedule.samples == pytest.approx(epochs * n_samples, abs=1400)


@pytest.mark.parametrize(
    ("name", "cost"),
    [("mixsize144_b_authors", 0.46), ("mixsize144_d_authors", 1.00), ("mixsize_cifar_d_authors", 1.29)],
)
def test_mixsize_cost_of_an_epoch(name, cost):
    regime = (cifar if "cifar" in name else imagenet)(name)
    mixture = regime.phases[0].mixture
    relative = mixture.pixels / mixture.samples / (regime.base.pixels / regime.base.B)
    assert relative == pytest.approx(cost, abs=0.006)


@pytest.mark.parametrize("S", [16, 24, 32, 48])
def test_budget_exact_b_plus_is_the_authors_where_their_rounding_is_harmless(S):
    assert CIFAR.resized(S, 1.0) == mixsize_shape(CIFAR, S, "B+")


def test_where_d_plus_silently_becomes_b_plus_the_regime_says_so():
    source = cifar("mixsize_cifar_d_authors").source
    assert re.search(r"S = 48, D\+ .*\b0\.44 copies.*B\+ .*48x28", source)
    assert re.search(r"S = 320, D\+ .*\b0\.49 copies", imagenet("mixsize224_d_authors").source)
    assert "S = 288" not in imagenet("mixsize224_d_authors").source
    assert "copies" not in imagenet("mixsize144_d_authors").source  # 256 keeps D = 1: 0.77 of a copy
    assert cifar("mixsize_cifar_d").source.endswith("48x28")


# Multi-scale samplers: CVNets' image_batch_pairs
def test_multiscale_pairs_of_the_imagenet_configuration():
    sizes = cvnets_sizes(224, 128, 320, 10, 32)
    pairs = [(s.S, s.B) for s in (cvnets_shape(BatchShape(224, 128), S) for S in sizes)]
    assert pairs == [(128, 392), (160, 250), (192, 174), (224, 128), (256, 98), (288, 77), (320, 62)]
    assert np.mean([B for _, B in pairs]) / 128 == pytest.approx(1.32, abs=0.005)


@pytest.mark.parametrize(
    ("base", "low", "high", "n", "sizes"),
    [
        (224, 128, 320, 5, [128, 192, 224, 288, 320]),
        (224, 128, 320, 25, [128, 160, 192, 224, 256, 288, 320]),
        (256, 160, 320, 5, [160, 192, 256, 288, 320]),  # CVNets' defaults
        (240, 128, 352, 5, [128, 192, 256, 288, 352]),  # EfficientNet-B1: 240 rounds to 256
        (224, 47, 224, 2, [64, 224]),  # 47 is nearer to 32, but would lose more than a tenth
    ],
)
def test_multiscale_sizes_of_published_configurations(base, low, high, n, sizes):
    assert cvnets_sizes(base, low, high, n, 32) == sizes


def test_multiscale_regimes():
    sizes = list(range(128, 321, 32))
    assert triples(imagenet("multiscale_fbs")) == [(S, 256, 1) for S in sizes]
    assert [s.B for s in imagenet("multiscale_vbs").shapes] == [784, 502, 348, 256, 196, 155, 125]
    # CVNets cuts off: on four devices of 64, 62.7 images are 62 and 38.7 are 38.
    assert [s.B for s in imagenet("multiscale_vbs_authors").shapes] == [784, 500, 348, 256, 196, 152, 124]
    for name in ("multiscale_fbs", "multiscale_vbs", "multiscale_vbs_authors"):
        assert imagenet(name).phases[0].mixture.p == pytest.approx([1 / 7] * 7)


def test_variable_batches_see_small_images_more_often_by_one_over_their_area():
    mixture = imagenet("multiscale_vbs").phases[0].mixture
    area = np.array([1 / s.S**2 for s in mixture.shapes])
    assert mixture.sample_shares == pytest.approx(area / area.sum(), rel=0.01)


def test_curriculum_ranges_grow_and_cut_the_cost_of_an_epoch_by_more_than_thirty_per_cent():
    regime = imagenet("multiscale_vbswc")
    ranges = [(min(s.S for s in ph.mixture.shapes), max(s.S for s in ph.mixture.shapes)) for ph in regime.phases]
    assert ranges == [(128, 224), (128, 256), (128, 320)]
    assert regime.shares_of(lambda s: s.B) == pytest.approx([1 / 3] * 3)
    per_epoch = Schedule.build(regime, Budget(90, "epochs"), 1_281_167, 0).pixels / (90 * 1_281_167 * 224**2)
    assert per_epoch < 0.7  # Nunez et al., abstract: a compute reduction of more than 30 %


def test_cvnets_ranges_grow_by_a_share_and_double_by_default():
    assert cvnets_ranges(128, 256, 0.25, 0.25, 3) == [(128, 256), (160, 320), (200, 400)]
    assert cvnets_ranges(128, 256, 1.0, 1.0, 2) == [(128, 256), (256, 512)]


# ENTR, figure 3: none 250; gradual 100, 150, 200, 250; stepwise 100, 250
@pytest.mark.parametrize(
    ("name", "sizes"), [("fixed", [250]), ("entr_gradual", [100, 150, 200, 250]), ("entr_stepwise", [100, 250])]
)
@pytest.mark.parametrize("authors", [True, False])
def test_entr_sizes_at_the_papers_base(name, sizes, authors):
    base = BatchShape(250, 32)
    regime = from_literature(name + ("_authors" if authors and name != "fixed" else ""), base, 50)
    assert [ph.mixture.shapes[0].S for ph in regime.phases] == sizes
    if authors:
        assert {s.B for s in regime.shapes} == {32}
    else:
        assert all(abs(s.pixels - base.pixels) <= s.S**2 / 2 for s in regime.shapes)


def test_sizes_that_the_stride_moves_are_said():
    assert re.search(r"\b224\b.*\b32: 89\.6 → 96, 134\.4 → 128, 179\.2 → 192$", imagenet("entr_gradual").source)
    assert "→" not in from_literature("entr_gradual", BatchShape(250, 32), 50).source
    assert "→" not in imagenet("mixsize144_b").source
    assert "13.71 → 16, 18.29 → 16" in from_literature("mixsize144_b", CIFAR, 8).source


# FFCV's ramp
@pytest.mark.parametrize(
    ("epochs", "start", "end", "at_160"),
    [(16, 11, 13, 12), (24, 17, 20, 19), (32, 23, 27, 25), (40, 29, 34, 32), (56, 41, 48, 45), (88, 65, 76, 71)],
)
def test_ffcv_ramps_of_every_published_configuration(epochs, start, end, at_160):
    # At the middle of the ramp 176 / 32 = 5.5, which rounds to the even 6, so that epoch is already at 192.
    assert ffcv_sizes(160, 192, start, end, epochs, 32) == [160] * at_160 + [192] * (epochs - at_160)


def test_ffcv_regime_counts_epochs():
    regime = imagenet("progressive_authors")
    assert triples(regime) == [(160, 256, 1), (192, 256, 1)]
    schedule = Schedule.build(regime, Budget(88, "epochs"), 1_281_167, 0)
    assert [n * 256 / 1_281_167 for n in schedule.phase_steps] == pytest.approx([71, 17], abs=1e-3)


def test_a_longer_ramp_passes_through_every_stride():
    assert ffcv_sizes(96, 224, 0, 8, 10, 32) == [96, 128, 128, 128, 160, 192, 192, 192, 224, 224]


@pytest.mark.parametrize(("low", "high", "start", "end"), [(192, 160, 1, 2), (160, 192, 5, 4), (150, 192, 1, 2)])
def test_ramps_that_do_not_grow_or_leave_the_stride_are_refused(low, high, start, end):
    with pytest.raises(ValueError, match=rf"ramp.*\b{low}\b.*\b{high}\b"):
        ffcv_sizes(low, high, start, end, 10, 32)


# timm's own sampler beside ours
def timm_sampler(n_samples, batch_sizes, **settings):
    sampler = pytest.importorskip("timm.data.scheduled_sampler").ScheduledBatchSampler
    return sampler(range(n_samples), batch_sizes, **settings)


@pytest.mark.parametrize("epochs", [2, 7, 10])
@pytest.mark.parametrize("spread", [0.0, 0.65, 2.0])
@pytest.mark.parametrize("random_mix", [0.0, 0.1, 1.0])
def test_the_sliding_window_is_timms(epochs, spread, random_mix):
    sizes, B = [128, 160, 192, 224], 256
    theirs = timm_sampler(
        10**6,
        [B] * 4,
        choice_schedule="progressive",
        schedule_epochs=epochs,
        schedule_spread=spread,
        schedule_random_mix=random_mix,
    )
    ours = lit.window(IMAGENET, sizes, epochs, spread, random_mix)
    for epoch, phase in enumerate(ours.phases):
        p = {s.S: p for s, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True)}
        assert [p.get(S, 0.0) for S in sizes] == pytest.approx(theirs.choice_weights_for_epoch(epoch).tolist())


@pytest.mark.parametrize("weights", [[1, 2, 0, 4], [0, 0, 1, 1], [1, 0, 0, 0]])
@pytest.mark.parametrize("spread", [0.0, 0.65])
def test_the_sliding_window_is_timms_with_unequal_weights(weights, spread):
    theirs = timm_sampler(
        1000, [8] * 4, choice_weights=weights, choice_schedule="progressive", schedule_epochs=5, schedule_spread=spread
    )
    for epoch in range(5):
        ours = timm_window(weights, epoch / 4, spread, 0.1)
        assert ours == pytest.approx(theirs.choice_weights_for_epoch(epoch).tolist(), abs=1e-12)


def test_the_sliding_window_has_timms_steps_and_sizes_per_epoch():
    base, sizes, epochs, n_samples = BatchShape(224, 32), [128, 160, 192, 224], 10, 20_000
    regime = lit.window(base, sizes, epochs, split=1.0)
    theirs = timm_sampler(
        n_samples, [s.B for s in regime.shapes], choice_schedule="progressive", schedule_epochs=epochs, seed=3
    )
    ours = Schedule.build(regime, Budget(epochs, "epochs"), n_samples, 0)
    # timm takes as many steps in every epoch as the average batch size needs; so do we, to within a step.
    assert np.diff(ours.phase_steps).tolist() == pytest.approx([0] * (epochs - 1), abs=1)
    assert len(ours) / epochs == pytest.approx(len(theirs), abs=2)
    start = 0
    for epoch, n in enumerate(ours.phase_steps):
        theirs.set_epoch(epoch)
        drawn = np.bincount([i for i, _ in theirs.schedule], minlength=4)
        mine = np.bincount(ours.index[start : start + n], minlength=4)
        # Theirs is a multinomial draw of what ours apportions: within five standard deviations.
        p = mine / n
        assert np.all(np.abs(drawn - len(theirs) * p) <= 5 * np.sqrt(len(theirs) * p * (1 - p)) + 2)
        start += n


def test_a_constant_mixture_is_timms_in_expectation():
    regime = imagenet("mixsize144_b")
    mixture = regime.phases[0].mixture
    theirs = timm_sampler(1_281_167, [s.B for s in mixture.shapes], choice_weights=mixture.p)
    ours = Schedule.build(regime, Budget(1, "epochs"), 1_281_167, 0)
    assert theirs.average_batch_size == pytest.approx(mixture.samples)
    assert len(theirs) == pytest.approx(len(ours), rel=0.05)  # a random draw beside an apportioned one


# Names and files
@pytest.mark.parametrize("regime", list(at_published_bases()), ids=lambda r: r.name)
def test_budget_exact_regimes_are_exact_and_every_regime_says_its_source(regime):
    assert len(regime.source) > 10
    if not regime.name.endswith("_authors") and regime.name != "multiscale_fbs":
        assert all(abs(s.pixels - regime.base.pixels) <= s.S**2 * s.D / 2 for s in regime.shapes)


@pytest.mark.parametrize("regime", list(at_published_bases()), ids=lambda r: r.name)
def test_regime_files_are_what_the_constructors_give(regime):
    found, _ = load_regime(REGIMES / f"{regime.name}.yaml")
    assert (found.name, found.source, found.base, found.clock) == (
        regime.name,
        regime.source,
        regime.base,
        regime.clock,
    )
    assert [ph.mixture.shapes for ph in found.phases] == [ph.mixture.shapes for ph in regime.phases]
    for a, b in zip(found.phases, regime.phases, strict=True):
        # To the last bits only, because exp differs there between machines.
        assert (a.share, *a.mixture.p) == pytest.approx((b.share, *b.mixture.p), rel=1e-12)


def test_there_is_one_file_for_every_published_regime(tmp_path):
    assert {p.name for p in REGIMES.glob("*.yaml")} == {p.name for p in write_published(tmp_path)}
    assert {p.stem for p in REGIMES.glob("*.yaml")} == set(LITERATURE)


@pytest.mark.parametrize("name", LITERATURE)
def test_every_published_regime_can_be_made_at_the_other_base(name):
    if name.startswith("mixsize_cifar") and name.endswith("_authors"):
        with pytest.raises(ValueError, match=r"\b32\b.*\b224\b"):
            from_literature(name, IMAGENET, 32)
    else:
        regime = from_literature(name, CIFAR if "cifar" not in name else IMAGENET, 4 if "cifar" not in name else 32)
        assert regime.name == name


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'mixsize144_db'.*'mixsize144_d'"):
        imagenet("mixsize144_db")
