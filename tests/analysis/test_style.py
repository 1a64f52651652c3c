"""Labels do not touch and titles do not leave the page, at column width."""

from itertools import pairwise

import pytest

from analysis import style


def drawn(sizes, title):
    with style.figure(2.0) as figure:
        axes = figure.subplots()
        axes.plot(sizes, sizes)
        style.size_axis(axes, sizes)
        style.figure_title(figure, title)
        figure.canvas.draw()
        labels = [t.get_window_extent() for t in axes.get_xticklabels() if t.get_text()]
        return labels, figure.get_suptitle(), figure._suptitle.get_window_extent(), figure.bbox


@pytest.mark.parametrize("sizes", [[8], [8, 12, 16, 20, 24], [16, 20, 24, 28, 32, 40, 48], list(range(96, 353, 16))])
def test_labels_of_sizes_do_not_touch(sizes):
    labels, *_ = drawn(sizes, "a title")
    assert len(labels) >= min(len(sizes), 5)
    assert all(a.x1 < b.x0 for a, b in pairwise(labels))


def test_a_long_title_is_broken_and_an_own_line_is_kept():
    _, text, place, page = drawn([8, 12], f"{'a-long-name-' * 8}: accuracy\nhypervolume: searched 98.1 %")
    assert text.split("\n")[-1] == "hypervolume: searched 98.1 %"
    assert len(text.split("\n")) > 2
    assert place.x1 <= page.x1
