"""Figures of images: contact sheets, views, heatmaps over images, and targets.

Every function gives a matplotlib Figure and shows nothing itself. Images are (3, S, S) in 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spcl_lib.viewer.heat import draw_heat, picture_of
from spcl_lib.viewer.style import COLOURS, HEAT, house_style
from spcl_lib.views import Views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WHOLE = (0, 1, 1, 0)  # extent for imshow, because boxes are fractions of the image
_PIXELS = 240  # side of a picture under a heatmap


def as_picture(image: Tensor) -> np.ndarray:
    """An image as (S, S, 3) uint8, which matplotlib can show."""
    return image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def show_image(axes: Axes, image: Tensor, title: str = "") -> None:
    """Shows an image without ticks."""
    axes.imshow(as_picture(image), interpolation="lanczos", extent=WHOLE)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="small", pad=3)


def show_heat(
    axes: Axes, image: Tensor, heat: Tensor, highest: float, seen: Tensor | None = None
) -> None:
    """Shows a heatmap (W, W) over its image; see `heat.draw_heat`."""
    drawn = draw_heat(picture_of(image, _PIXELS), heat, seen, highest)
    axes.imshow(np.asarray(drawn), interpolation="lanczos", extent=WHOLE)
    axes.set(xticks=[], yticks=[])


@house_style
def contact_sheet(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 10, side: float = 0.9
) -> Figure:
    """Shows many images (N, 3, S, S) in a grid.

    Args:
        images: in 0..255.
        titles: N short texts above the images; none by default.
        columns: images in a row.
        side: side of an image in inches.
    """
    import matplotlib.pyplot as plt

    titles = titles or [""] * len(images)
    columns = min(columns, len(images))
    rows, lines = math.ceil(len(images) / columns), max(1 + t.count("\n") for t in titles)
    size = (columns * side, rows * (side + 0.17 * lines))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        show_image(axes, image, title)
    return figure


@house_style
def show_views(image: Tensor, views: Views, crops: Tensor, titles: Sequence[str]) -> Figure:
    """Shows one image with the boxes of its views, and every view beside it.

    Args:
        image: the full image.
        views: V views of this one image.
        crops: (V, 3, s, s) in 0..255, as `views.crop` gives them.
        titles: 1 + V texts, for the full image and for every crop.
    """
    import matplotlib.pyplot as plt

    count = 1 + len(views)
    figure, grid = plt.subplots(1, count, figsize=(2.45 * count, 2.75), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, picture, title in zip(grid, [image, *crops], titles, strict=True):
        show_image(axes, picture, title)
    for number, box in enumerate(views.boxes, 1):
        _draw_box(grid[0], box, number if len(views) > 1 else None)
    return figure


def _draw_box(axes: Axes, box: Tensor, number: int | None = None) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box.tolist()
    for width, edge in ((3.5, "black"), (1.5, "white")):  # visible on dark and on bright images
        patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=width, edgecolor=edge)
        axes.add_patch(patch)
    if number is not None:
        note = {"facecolor": "black", "edgecolor": "white", "pad": 2}
        axes.text(x0, y0, number, color="white", fontsize="small", bbox=note, va="top")


@house_style
def overlay(
    images: Tensor,
    heatmaps: Tensor,
    titles: Sequence[str],
    highest: float | None = None,
    boxes: Tensor | None = None,
) -> Figure:
    """Shows heatmaps over their images in grey, side by side, with one colour scale for all.

    Args:
        images: (N, 3, S, S), or one image (3, S, S) for all.
        heatmaps: (N, W, W) probabilities in [0, 1].
        titles: N texts.
        highest: upper end of the colour scale; the largest value by default.
        boxes: (N, 4) or (4,) crop boxes to draw, as fractions of the image; none by default.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize

    count = len(heatmaps)
    images = images.expand(count, *images.shape[-3:])
    scale = Normalize(0, highest or max(float(heatmaps.max()), 1e-3), clip=True)
    size = (2.3 * count + 0.7, 2.75)
    figure, grid = plt.subplots(1, count, figsize=size, squeeze=False, layout="constrained")
    for i, axes in enumerate(grid[0]):
        axes.set_title(titles[i], fontsize="small")
        show_heat(axes, images[i], heatmaps[i], scale.vmax)
        if boxes is not None:
            _draw_box(axes, boxes.expand(count, 4)[i])
    shown = plt.cm.ScalarMappable(scale, HEAT)
    figure.colorbar(shown, ax=list(grid[0]), label="probability", shrink=0.85, pad=0.02)
    return figure


@house_style
def targets(
    values: Mapping[str, Mapping[str, float]], present: Sequence[str], given: str
) -> Figure:
    """Shows what each kind of supervision says about every class of one view.

    Args:
        values: name of the supervision -> class -> value in [0, 1]; at most three.
        present: classes that are in the view.
        given: the observed label.
    """
    import matplotlib.pyplot as plt

    classes = list(next(iter(values.values())))
    figure, axes = plt.subplots(figsize=(7.2, 1.3 + 0.27 * len(classes)), layout="constrained")
    for row in (classes.index(name) for name in present):
        axes.axhspan(row - 0.5, row + 0.5, color="#f0e442", alpha=0.35, linewidth=0)
    for (source, says), method in zip(values.items(), ("an", "cl", "scl"), strict=False):
        places = [says[name] for name in classes], range(len(classes))
        axes.plot(*places, "o", color=COLOURS[method], label=source, clip_on=False)
    names = [f"{name} (given label)" if name == given else name for name in classes]
    axes.set(yticks=range(len(classes)), yticklabels=names, xlim=(-0.02, 1.02))
    axes.set(ylim=(len(classes) - 0.5, -0.5), xlabel="target (yellow: the class is in the view)")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure
