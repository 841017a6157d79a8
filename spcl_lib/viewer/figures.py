"""Figures of images: contact sheets, views, heatmaps over images, and targets.

Every function gives a matplotlib Figure and shows nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spcl_lib.viewer.heat import draw_heat, picture_of
from spcl_lib.viewer.style import COLOURS, HEAT, OTHER_METHOD, house_style
from spcl_lib.views import Views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


WHOLE = (0, 1, 1, 0)  # extent for imshow, because boxes are fractions of the image
_PIXELS = 240  # side of a picture in a figure


def as_picture(image: Tensor) -> Any:
    """Turns (3, H, W) in 0..255 into (H, W, 3) uint8, which matplotlib can show."""
    return image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


@house_style
def contact_sheet(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 10, side: float = 0.9
) -> Figure:
    """Shows many images in a grid.

    Args:
        images: (N, 3, S, S) in 0..255.
        titles: N short texts above the images; none by default.
        columns: images in a row.
        side: side of an image in inches.
    """
    import matplotlib.pyplot as plt

    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    lines = 1 + max(t.count("\n") for t in titles) if titles else 0
    size = (columns * side, rows * (side + 0.17 * lines))
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for i, axes in enumerate(grid.flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(as_picture(images[i]), interpolation="lanczos")
            if titles:
                axes.set_title(titles[i], fontsize="x-small", pad=2)
    return figure


@house_style
def show_views(image: Tensor, views: Views, crops: Tensor, titles: Sequence[str]) -> Figure:
    """Shows one image with the boxes of its views, and every view beside it.

    Args:
        image: (3, S, S) in 0..255, the full image.
        views: V views of this one image.
        crops: (V, 3, s, s) in 0..255, as `views.crop` gives them.
        titles: 1 + V texts, for the full image and for every crop.
    """
    import matplotlib.pyplot as plt

    count = 1 + len(views)
    figure, grid = plt.subplots(1, count, figsize=(2.45 * count, 2.75), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    grid[0].imshow(as_picture(image), interpolation="lanczos", extent=WHOLE)
    for i, (axes, title) in enumerate(zip(grid, titles, strict=True)):
        axes.set_title(title, fontsize="small")
        axes.set(xticks=[], yticks=[])
        if i > 0:
            _draw_box(grid[0], views.boxes[i - 1], i if len(views) > 1 else None)
            axes.imshow(as_picture(crops[i - 1]), interpolation="lanczos")
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


def show_heat(
    axes: Axes, image: Tensor, heat: Tensor, highest: float, seen: Tensor | None = None
) -> None:
    """Shows a heatmap (W, W) over its image (3, S, S); see `heat.draw_heat`."""
    drawn = draw_heat(picture_of(image, _PIXELS), heat, seen, highest)
    axes.imshow(np.asarray(drawn), interpolation="lanczos", extent=WHOLE)


@house_style
def overlay(
    images: Tensor,
    heatmaps: Tensor,
    titles: Sequence[str],
    highest: float | None = None,
    boxes: Tensor | None = None,
) -> Figure:
    """Shows heatmaps over their images, side by side, with one colour scale for all.

    If the probability is low, the image shows through in grey.

    Args:
        images: (N, 3, S, S) in 0..255, or one image (3, S, S) for all.
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
    figure, grid = plt.subplots(
        1, count, figsize=(2.3 * count + 0.7, 2.75), squeeze=False, layout="constrained"
    )
    for i, axes in enumerate(grid[0]):
        axes.set_title(titles[i], fontsize="small")
        axes.set(xticks=[], yticks=[])
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
        values: name of the supervision -> class -> value in [0, 1].
        present: classes that are in the view.
        given: the observed label.
    """
    import matplotlib.pyplot as plt

    classes = list(next(iter(values.values())))
    markers = dict(zip(values, "sDo^v", strict=False))
    colours = dict(zip(values, (COLOURS["an"], COLOURS["cl"], COLOURS["scl"]), strict=False))
    figure, axes = plt.subplots(figsize=(7.2, 1.3 + 0.27 * len(classes)), layout="constrained")
    for row, name in enumerate(classes):
        if name in present:
            axes.axhspan(row - 0.5, row + 0.5, color="#f0e442", alpha=0.35, linewidth=0)
    for source, by_class in values.items():
        axes.plot(
            [by_class[name] for name in classes], range(len(classes)), markers[source],
            color=colours.get(source, OTHER_METHOD), label=source, clip_on=False,
        )  # fmt: skip
    names = [f"{name} (given label)" if name == given else name for name in classes]
    axes.set(yticks=range(len(classes)), yticklabels=names, xlim=(-0.02, 1.02))
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("target (yellow rows: the class is in the view)")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure
