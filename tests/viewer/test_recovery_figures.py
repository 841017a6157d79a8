"""The figures of crop recovery are drawn from any measurements, and nothing is cut off."""

import io

import pytest
from fake_measurements import fake_measurements
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from spcl_lib.viewer import recovery_figures
from spcl_lib.viewer.style import colour

FIGURES = ("label_wrongness", "source_scores", "reliability_curves", "targets_by_visibility",
           "corrections", "map_over_scales", "localisation")  # fmt: skip


def draw(name, found):
    module = recovery_figures if name == "localisation" else recovery_figures
    return getattr(module, name)(found)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_nothing_leaves_the_figure_and_axes_have_names(name, seeds):
    figure = draw(name, fake_measurements(seeds=seeds))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # lays the figure out
    drawn, size = figure.get_tightbbox(canvas.get_renderer()), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= size[0] and drawn.y1 <= size[1]
    assert figure.axes[0].get_ylabel()
    assert name in ("source_scores", "localisation") or figure.axes[0].get_xlabel()


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_part_of_the_methods(name):
    found = fake_measurements(("an", "en_scl_whole", "en_scl"), ("an", "en_scl"), (0,))
    buffer = io.BytesIO()
    draw(name, found).savefig(buffer)
    picture = Image.open(buffer).convert("L")
    assert picture.getextrema()[0] < 100 < picture.getextrema()[1]


def test_bars_have_the_height_of_their_means():
    figure = recovery_figures.source_scores(fake_measurements())
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == pytest.approx([50.1, 52.1, 55.1, 90.1, 92.1])
    figure = recovery_figures.label_wrongness(fake_measurements())
    tops = {round(b.get_y() + b.get_height(), 3) for b in figure.axes[0].patches[-5:]}
    assert tops == {100.0}


def test_methods_keep_their_colours():
    figure = recovery_figures.map_over_scales(fake_measurements())
    drawn = [container.lines[0].get_color() for container in figure.axes[0].containers]
    assert drawn == [colour(m) for m in ("an", "cl", "scl", "en_scl", "full")]


def test_reliability_weighs_seeds_by_their_views():
    rows = [{"score": [0.1, None], "share": [0.2, None], "count": [30, 0]},
            {"score": [0.2, 0.9], "share": [0.6, 1.0], "count": [10, 5]}]  # fmt: skip
    score, share, count = recovery_figures._pool_bins(rows)
    assert score == pytest.approx([0.125, 0.9]) and share == pytest.approx([0.3, 1.0])
    assert count.tolist() == [40, 5]


def test_what_no_run_recorded_is_said_in_the_figure():
    found = fake_measurements()
    assert not recovery_figures.corrections(found).axes[0].texts
    found["decisions"] = [r for r in found["decisions"] if r["images"] == "all"]
    (text,) = recovery_figures.corrections(found).axes[0].texts
    assert "snapshots = 0" in text.get_text()
