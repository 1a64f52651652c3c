import pytest
from matplotlib.figure import Figure

from analysis.timeline import _colours, _panel, draw_timelines
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Mixture, Regime
from mixtune.regime.catalogue import CIFAR, IMAGENET, from_literature


def bars(regime, copies):
    panel = Figure().subplots()
    _panel(panel, regime, regime.sizes, _colours(copies))
    return panel, [(c.get_paths()[0].get_extents(), c.get_facecolor()[0]) for c in panel.collections]


def test_bars_lie_where_their_compute_is():
    _, ((first, _), (second, _)) = bars(from_literature("entr_stepwise_authors", IMAGENET, 32), [1])
    # Equal steps at 96 and 224 of the same batch: the compute is as 96^2 to 224^2.
    border = 96**2 / (96**2 + 224**2)
    assert (first.x0, first.x1) == pytest.approx((0, border))
    assert (second.x0, second.x1) == pytest.approx((border, 1))
    assert ((first.y0 + first.y1) / 2, (second.y0 + second.y1) / 2) == pytest.approx((96, 224))


def test_the_area_of_a_bar_is_its_compute():
    shapes = [BatchShape(16, 64), BatchShape(32, 64), BatchShape(64, 8, 2)]  # 1 : 4 : 4 pixels a step
    _, drawn = bars(Regime.of(shapes[1], [Mixture.of(shapes, [0.5, 0.25, 0.25])]), [1, 2])
    thick = [box.height for box, _ in drawn]
    assert thick[1] == pytest.approx(thick[2])
    assert thick[0] == pytest.approx(thick[1] / 2)


def test_copies_have_a_colour_and_stand_beside_the_batch():
    panel, drawn = bars(from_literature("mixsize_cifar_d", CIFAR, 8), [1, 2, 4])
    assert len({tuple(colour) for _, colour in drawn}) == 3
    assert {"64 × 4", "57 × 2", "64", "28"} <= {text.get_text() for text in panel.texts}


def test_regimes_of_two_bases_make_one_figure_with_two_scales(tmp_path):
    regimes = [from_literature("fixed", IMAGENET, 32), from_literature("mixsize_cifar_b", CIFAR, 8)]
    assert [p.name for p in draw_timelines(regimes, tmp_path / "both")] == ["both.png", "both.svg"]
    assert all(p.stat().st_size > 5000 for p in tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/figure.png: cannot be written"):
        draw_timelines([from_literature("fixed", CIFAR, 8)], tmp_path / "file" / "figure")
