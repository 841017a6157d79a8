"""Heatmaps over the epochs: film strips, and a table of how supervision appears without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.figures import show_heat, show_image
from spcl_lib.viewer.style import COLOURS, HEAT, house_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_GROUPS = ("labelled", "unlabelled", "absent")


def class_groups(trace: Trace) -> dict[str, Tensor]:
    """The pairs of image and class (n, C) of each of CLASS_GROUPS."""
    labels, observed = trace.data.labels, trace.observed
    return dict(zip(CLASS_GROUPS, (observed, labels & ~observed, ~labels), strict=True))


def peaks(trace: Trace) -> Tensor:
    """(E, n, C) in [0, 1]: the highest seen cell of every heatmap after every epoch."""
    cells = trace.heatmaps * trace.seen[:, :, None]  # (E, n, C, W, W)
    return cells.flatten(3).amax(3).float() / 255


def appearance(trace: Trace) -> pd.DataFrame:
    """The peaks of all heatmaps, to see supervision appear where no label was.

    Returns:
        A row for every epoch in which something had been seen, image and class: epoch, image,
        group (of CLASS_GROUPS), peak.
    """
    import pandas as pd

    peak, rows = peaks(trace), []
    for e, epoch in enumerate(trace.epochs):
        if bool(trace.seen[e].any()):
            for group, mask in class_groups(trace).items():
                image, _ = mask.nonzero(as_tuple=True)
                rows.append(pd.DataFrame({"epoch": epoch, "image": image, "group": group,
                                          "peak": peak[e][mask]}))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


@house_style
def film_strip(
    trace: Trace, image: int, classes: Sequence[int] | None = None, frames: int = 5
) -> Figure:
    """One image, with a row per class: its objects, then its heatmap epoch by epoch.

    Args:
        trace: trace of a run.
        image: number of the image in the trace.
        classes: numbers of classes; by default those of `telling_classes`.
        frames: number of epochs to show, spread evenly from the last one before anything was seen.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize

    classes = telling_classes(trace, image) if classes is None else classes
    seen = trace.seen[:, image].flatten(1).any(1).int()
    first = max(0, int(seen.argmax()) - 1)
    chosen = torch.linspace(first, len(trace.epochs) - 1, frames).round().long().unique().tolist()
    shape, side = (len(classes), 1 + len(chosen)), 1.0
    size = (side * shape[1] + 0.8, side * shape[0] + 0.35)
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    heat = trace.heatmaps[:, image].float() / 255  # (E, C, W, W)
    top = float(heat[:, classes].max().clamp(min=0.1))
    for row, c in enumerate(classes):
        _show_object(grid[row, 0], trace, image, c)
        for column, e in enumerate(chosen, 1):
            axes = grid[row, column]
            show_heat(axes, trace.data.images[image], heat[e, c], top, trace.seen[e, image])
            if row == 0:
                axes.set_title(f"epoch {trace.epochs[e]}", fontsize="small")
    grid[0, 0].set_title("image", fontsize="small")
    scale = plt.cm.ScalarMappable(Normalize(0, top), HEAT)
    figure.colorbar(scale, ax=grid, label="probability", shrink=0.8, pad=0.01)
    return figure


def telling_classes(trace: Trace, image: int) -> list[int]:
    """The labelled class, up to two unlabelled ones, and the highest absent one."""
    order = peaks(trace)[-1, image].argsort(descending=True, stable=True).tolist()
    groups = [mask[image] for mask in class_groups(trace).values()]
    return [c for mask, most in zip(groups, (1, 2, 1), strict=True)
            for c in [c for c in order if mask[c]][:most]]  # fmt: skip


def _show_object(axes: Axes, trace: Trace, image: int, c: int) -> None:
    """Shows the image with the border of a class's objects, and the group of the class."""
    show_image(axes, trace.data.images[image])
    (group,) = (name for name, mask in class_groups(trace).items() if mask[image, c])
    axes.set_ylabel(f"{trace.data.classes[c]}\n({group})", fontsize="small")
    region = trace.region(image)
    if region is not None and bool(region[c].any()):
        centres = (torch.arange(region.shape[-1]) + 0.5) / region.shape[-1]
        for width, edge in ((2.6, "white"), (1.2, COLOURS["en_scl"])):
            axes.contour(centres, centres, region[c].float(), [0.5], colors=edge, linewidths=width)
