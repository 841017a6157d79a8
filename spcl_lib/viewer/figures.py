"""Figures of images: contact sheets, views, and heatmaps over images.

Every function gives a matplotlib Figure and shows nothing itself. Images are (3, S, S) in 0..255.
"""

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from spcl_lib.viewer.heat import draw_heat, picture_of
from spcl_lib.viewer.style import HEAT
from spcl_lib.views import Views

_PIXELS = 240  # side of a picture


def show(axes: Axes, picture: Image.Image, title: str = "") -> None:
    """Shows a picture without ticks; its sides go from 0 to 1, as boxes do."""
    axes.imshow(picture, interpolation="lanczos", extent=(0, 1, 1, 0))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="small", pad=3)


def panels(rows: int, columns: int, side: float, text: float = 0.3) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of square axes, which pyplot does not show itself.

    The side of the axes and the height of the text above them are in inches.
    """
    size = (columns * side, rows * (side + text))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0)
    plt.close(figure)  # else a notebook would show it twice
    return figure, grid


def contact_sheet(
    images: Tensor, titles: Sequence[str], columns: int = 10, side: float = 0.9
) -> Figure:
    """Shows many images (N, 3, S, S) in a grid, with N short texts above them."""
    columns = min(columns, len(images))
    lines = max(1 + title.count("\n") for title in titles)
    figure, grid = panels(math.ceil(len(images) / columns), columns, side, 0.17 * lines)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        show(axes, picture_of(image, _PIXELS), title)
    return figure


def show_views(image: Tensor, views: Views, crops: Tensor, titles: Sequence[str]) -> Figure:
    """Shows one image with the boxes of its V views, and every view beside it.

    `crops` (V, 3, s, s) are those of `views.crop`; the first of 1 + V titles is the image's.
    """
    figure, (row,) = panels(1, 1 + len(views), 2.45)
    for axes, picture, title in zip(row, [image, *crops], titles, strict=True):
        show(axes, picture_of(picture, _PIXELS), title)
    for box in views.boxes:
        draw_box(row[0], box)
    return figure


def draw_box(axes: Axes, box: Tensor) -> None:
    """Draws a box (4,) of fractions of the image."""
    x0, y0, x1, y1 = box.tolist()
    for width, edge in ((3.5, "black"), (1.5, "white")):  # visible on dark and on bright images
        patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=width, edgecolor=edge)
        axes.add_patch(patch)


def overlay(
    images: Tensor, heatmaps: Tensor, titles: Sequence[str], boxes: Tensor | None = None
) -> Figure:
    """Shows N heatmaps over their images in grey, side by side, with one colour scale for all.

    Images are (N, 3, S, S), or (3, S, S) for all; heatmaps (N, W, W) probabilities; the boxes of
    crops, if there are any, (N, 4) or (4,).
    """
    count, highest = len(heatmaps), max(float(heatmaps.max()), 1e-3)
    images = images.expand(count, *images.shape[-3:])
    figure, (row,) = panels(1, count, 2.3)
    figure.set_figwidth(2.3 * count + 0.7)  # room for the colour bar
    for i, axes in enumerate(row):
        picture = picture_of(images[i], _PIXELS)
        show(axes, draw_heat(picture, heatmaps[i], highest=highest), titles[i])
        if boxes is not None:
            draw_box(axes, boxes.expand(count, 4)[i])
    scale = plt.cm.ScalarMappable(Normalize(0, highest), HEAT)
    figure.colorbar(scale, ax=list(row), label="probability", shrink=0.85, pad=0.02)
    return figure
