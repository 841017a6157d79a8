"""Figures. Every function gives a matplotlib Figure and shows nothing itself.

Colours can be told apart with any colour vision: one fixed colour for every method (Okabe and
Ito's palette), a sequential scale for probabilities and a diverging one for gains.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from spcl_lib.results import Runs, by_method, histories, label, per_class, table
from spcl_lib.views import Views

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "an": "#6b6b6b", "cl": "#56b4e9", "scl": "#0072b2", "en": "#e69f00", "en_cl": "#cc79a7",
    "en_scl": "#d55e00", "full": "#000000",
}  # fmt: skip
_OTHER_METHOD = "#009e73"
_LABELLED, _UNLABELLED = "#d55e00", "#0072b2"  # what concerns the observed label, and the others
_HEAT = "viridis"

F = TypeVar("F", bound=Callable[..., "Figure"])


def colour(method: str) -> str:
    """The colour of a method in every figure."""
    return COLOURS.get(method, _OTHER_METHOD)


def _styled(function: F) -> F:
    """Draws in seaborn's style, without changing it for others, and without pyplot showing it."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Figure:
        import matplotlib.pyplot as plt
        import seaborn as sns

        style = sns.axes_style("whitegrid") | {"font.family": "DejaVu Sans", "figure.dpi": 90}
        with plt.rc_context(sns.plotting_context("notebook", font_scale=0.9) | style):
            figure = function(*args, **kwargs)
        plt.close(figure)  # else a notebook would show it twice
        return figure

    return draw  # type: ignore[return-value]


# --- results --------------------------------------------------------------------------------------


@_styled
def map_by_method(runs: Runs) -> Figure:
    """Draws mAP of every seed (small dots) and their mean (large dot), between AN and Full.

    Args:
        runs: contents of metrics.json.
    """
    import matplotlib.pyplot as plt

    groups = by_method(runs)
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.46 * len(groups)), layout="constrained")
    means = table(runs)["mAP"]
    for name in ("an", "full"):
        if name in groups:
            axes.axvline(means[name], color=colour(name), linestyle="--", linewidth=1, zorder=1)
    for row, (name, members) in enumerate(groups.items()):
        scores = [run["mAP"] for run in members]
        axes.plot(scores, [row] * len(scores), "o", color=colour(name), alpha=0.45, markersize=5)
        axes.plot(means[name], row, "o", color=colour(name), markersize=10)
        axes.annotate(
            f"{means[name]:.1f}", (means[name], row), (0, 8), textcoords="offset points",
            ha="center", fontsize="small", zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.set(yticks=range(len(groups)), yticklabels=[label(name) for name in groups])
    axes.set_ylim(len(groups) - 0.5, -0.75)  # AN on top, room for its number
    axes.set_xlabel("mAP in % (small: one seed, large: mean; dashed: AN and Full)")
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    return figure


@_styled
def learning_curves(runs: Runs) -> Figure:
    """Draws mAP over epochs: mean over seeds, with a band of one standard deviation.

    Args:
        runs: contents of metrics.json.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
    frame = histories(runs)
    ends = {}
    for name in by_method(runs):
        scores = frame[frame["method"] == name].groupby("epoch")["mAP"]
        mean, spread = scores.mean(), scores.std(ddof=1).fillna(0)
        axes.plot(mean.index, mean, "-o", color=colour(name), markersize=3.5, label=label(name))
        axes.fill_between(mean.index, mean - spread, mean + spread, color=colour(name), alpha=0.15)
        ends[name] = float(mean.iloc[-1])
    axes.set(xlabel="epoch", ylabel="mAP in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    # The legend has the order of the curves' ends, best on top.
    handles = dict(zip(ends, axes.get_legend_handles_labels()[0], strict=True))
    best = sorted(ends, key=ends.get, reverse=True)
    axes.legend(
        [handles[name] for name in best], [label(name) for name in best],
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="mean of seeds",
    )  # fmt: skip
    return figure


@_styled
def per_class_ap(runs: Runs) -> Figure:
    """Gain in AP over AN: a row per class (with AN's own AP), a column per method.

    Where there is nothing to compare, AN missing or alone, it is the AP itself.

    Args:
        runs: contents of metrics.json.
    """
    import matplotlib.pyplot as plt

    ap = per_class(runs).dropna(how="all")
    values, names, unit, limits, scale = ap, list(ap.index), "AP in %", (0, 100), "Blues"
    if "an" in ap and ap.shape[1] > 1:
        ap = ap.sort_values("an")
        names = [f"{name}  ({value:.0f})" for name, value in ap["an"].items()]
        values, unit = ap.drop(columns="an").sub(ap["an"], axis=0), "gain in AP over AN, points"
        limit = max(1.0, float(values.abs().max().max()))
        limits, scale = (-limit, limit), "PuOr_r"
    size = (2.6 + 0.75 * max(3, values.shape[1]), 1.3 + 0.27 * len(values))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    shown = axes.imshow(values, cmap=scale, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values.to_numpy()):
        dark = abs(value) > 0.6 * limits[1]
        axes.text(
            column, row, f"{round(value)}" if limits[0] == 0 else f"{round(value):+d}", ha="center",
            va="center", fontsize="small", color="white" if dark else "black",
        )  # fmt: skip
    figure.colorbar(shown, ax=axes, label=unit)
    axes.set(
        xticks=range(values.shape[1]), xticklabels=[label(name) for name in values.columns],
        yticks=range(len(values)), yticklabels=names,
        ylabel="class" if limits[0] == 0 else "class (AP of AN in %)",
    )  # fmt: skip
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


# --- images ---------------------------------------------------------------------------------------


def as_picture(image: Tensor) -> Any:
    """(3, H, W) in 0..255 as what matplotlib shows: (H, W, 3) uint8."""
    return image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


@_styled
def contact_sheet(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 10, side: float = 0.9
) -> Figure:
    """Many images at a glance.

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


@_styled
def show_views(image: Tensor, views: Views, crops: Tensor, titles: Sequence[str]) -> Figure:
    """One image with the boxes of its views, and beside it what each view shows.

    Args:
        image: (3, S, S) in 0..255, the full image.
        views: V views of this one image.
        crops: (V, 3, s, s) in 0..255, as `views.crop` gives them.
        titles: 1 + V texts: of the full image, then of every crop.
    """
    import matplotlib.pyplot as plt

    count = 1 + len(views)
    figure, grid = plt.subplots(1, count, figsize=(2.45 * count, 2.75), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    grid[0].imshow(as_picture(image), interpolation="lanczos", extent=(0, 1, 1, 0))
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
    for width, edge in ((3.5, "black"), (1.5, "white")):  # seen on dark and on bright images
        patch = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=width, edgecolor=edge)
        axes.add_patch(patch)
    if number is not None:
        note = {"facecolor": "black", "edgecolor": "white", "pad": 2}
        axes.text(x0, y0, number, color="white", fontsize="small", bbox=note, va="top")


@_styled
def overlay(
    images: Tensor,
    heatmaps: Tensor,
    titles: Sequence[str],
    highest: float | None = None,
    boxes: Tensor | None = None,
) -> Figure:
    """Heatmaps over their images, side by side, with one colour scale for all.

    Where the probability is low the image shows through, in grey.

    Args:
        images: (N, 3, S, S) in 0..255, or one image (3, S, S) for all.
        heatmaps: (N, W, W) probabilities in [0, 1].
        titles: N texts.
        highest: upper end of the colour scale; the largest value by default.
        boxes: (N, 4) or (4,) crop boxes to draw, in fractions; none by default.
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
        grey = images[i].float().mean(0).cpu().numpy()
        within = {"extent": (0, 1, 1, 0)}
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="lanczos", **within)
        heat = heatmaps[i].float().cpu().numpy()
        alpha = 0.1 + 0.65 * scale(heat).data  # so that the object stays in sight
        axes.imshow(heat, cmap=_HEAT, norm=scale, alpha=alpha, **within)
        if boxes is not None:
            _draw_box(axes, boxes.expand(count, 4)[i])
    shown = plt.cm.ScalarMappable(scale, _HEAT)
    figure.colorbar(shown, ax=list(grid[0]), label="probability", shrink=0.85, pad=0.02)
    return figure


@_styled
def targets(
    values: Mapping[str, Mapping[str, float]], present: Sequence[str], given: str
) -> Figure:
    """What each kind of supervision says about every class of one view.

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
            color=colours.get(source, _OTHER_METHOD), label=source, clip_on=False,
        )  # fmt: skip
    names = [f"{name} (given label)" if name == given else name for name in classes]
    axes.set(yticks=range(len(classes)), yticklabels=names, xlim=(-0.02, 1.02))
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlabel("target (yellow rows: the class is in the view)")
    figure.legend(loc="outside upper center", ncols=len(values), frameon=False)
    return figure


@_styled
def overview(
    image: Tensor,
    view: Views,
    crop: Tensor,
    heatmaps: Tensor,
    target: Tensor,
    given: str,
    hidden: str,
) -> Figure:
    """The method at a glance: an image and its crop, two heatmaps, and what SCL reads through it.

    Args:
        image: (3, S, S) in 0..255, the full image.
        view: one view of it.
        crop: (3, s, s) in 0..255, what the view shows.
        heatmaps: (2, W, W) probabilities, of the labelled class and of one that never was.
        target: (G, G) probabilities, the second heatmap read through the view.
        given: name of the labelled class.
        hidden: name of the other.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize

    scale = Normalize(0, 1)
    figure, grid = plt.subplots(1, 5, figsize=(12.6, 2.9), layout="constrained")
    titles = (
        f"one image, one label:\n“{given}”",
        f"a crop that lost it: AN still\nasks for “{given}”, nothing else",
        f"heatmap of “{given}”,\nits label",
        f"heatmap of “{hidden}”,\nwhich nobody labelled",
        f"read through the crop:\nSCL's target for “{hidden}”",
    )
    pictures = (image, crop, image, image, crop)
    heats = (None, None, heatmaps[0], heatmaps[1], target)
    for axes, title, picture, heat in zip(grid, titles, pictures, heats, strict=True):
        axes.set_title(title, fontsize="small")
        axes.set(xticks=[], yticks=[])
        within = {"extent": (0, 1, 1, 0)}
        if heat is None:
            axes.imshow(as_picture(picture), interpolation="lanczos", **within)
            continue
        grey = picture.float().mean(0).numpy()
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="lanczos", **within)
        alpha = 0.1 + 0.65 * scale(heat.numpy()).data  # so that the object stays in sight
        axes.imshow(heat.numpy(), cmap=_HEAT, norm=scale, alpha=alpha, **within)
    for i in (0, 2, 3):
        _draw_box(grid[i], view.boxes[0])
    shown = plt.cm.ScalarMappable(scale, _HEAT)
    figure.colorbar(shown, ax=list(grid[2:]), label="probability", shrink=0.85, pad=0.01)
    return figure
