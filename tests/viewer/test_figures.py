"""Every figure is drawn without a warning, and no text is cut off or overlaps."""

import pytest
import torch
from matplotlib import pyplot

from spcl_lib import Views
from spcl_lib.data import scenes
from spcl_lib.viewer import figures

pyplot.switch_backend("agg")


@pytest.fixture(scope="module")
def images():
    return scenes.make_scenes(5).images


FIGURES = {
    "contact_sheet": lambda x: figures.contact_sheet(x, list("abcde"), columns=3),
    "show_views": lambda x: figures.show_views(
        x[0], Views.whole(2), x[:2].float(), ["the image, its label", "crop 1", "crop 2"]
    ),
    "overlay": lambda x: figures.overlay(
        x[0], torch.rand(3, 8, 8), ["a", "b", "c"], boxes=Views.whole(1).boxes
    ),
    "overlay of zeros": lambda x: figures.overlay(x[:1], torch.zeros(1, 4, 4), ["a"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_off_and_no_titles_overlap(name, images):
    before = pyplot.get_fignums()
    figure = FIGURES[name](images)
    assert pyplot.get_fignums() == before  # given back, not left open to be shown twice
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) >= -0.02, drawn
    assert drawn.x1 <= width + 0.02 and drawn.y1 <= height + 0.02, drawn
    titles = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert titles and not any(a.overlaps(b) for a in titles for b in titles if a is not b)


def test_heat_has_a_scale_with_its_unit(images):
    bar = FIGURES["overlay"](images).axes[-1]
    assert bar.get_ylabel() == "probability" and bar.get_ylim()[0] == 0
