"""Heatmaps over the epochs: film strips, and curves of how supervision appears without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.figures import WHOLE, as_picture, show_heat
from spcl_lib.viewer.style import COLOURS, HEAT, house_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


CLASS_GROUPS = ("the label", "there, not labelled", "not there")


def appearance(trace: Trace) -> pd.DataFrame:
    """The highest value of a heatmap after every epoch, for labelled, hidden and absent classes.

    Returns:
        One row per epoch and group of CLASS_GROUPS. It has the highest value among the seen cells
        of a heatmap, as mean and standard deviation over all images and classes of the group. A
        group without a heatmap has no row: with single labels only, nothing is known to be hidden.
    """
    import pandas as pd

    labels, observed = trace.data.labels, trace.observed
    masks = dict(zip(CLASS_GROUPS, (observed, labels & ~observed, ~labels), strict=True))
    rows = []
    for e, epoch in enumerate(trace.epochs):
        if not bool(trace.seen[e].any()):  # the averages have not started
            continue
        cells = trace.heatmaps[e].float() / 255 * trace.seen[e, :, None]  # (n, C, W, W)
        peak = cells.flatten(2).amax(2)  # (n, C)
        for group, mask in masks.items():
            values = peak[mask]
            if not len(values):
                continue
            row = {"epoch": epoch, "group": group, "mean": float(values.mean())}
            rows.append(row | {"std": float(values.std(correction=0)), "heatmaps": len(values)})
    return pd.DataFrame(rows, columns=["epoch", "group", "mean", "std", "heatmaps"])


def verdict(table: pd.DataFrame) -> str:
    """Says whether supervision has appeared without labels after the last epoch."""
    last = table[table.epoch == table.epoch.max()].set_index("group")["mean"]
    if not set(CLASS_GROUPS) <= set(last.index):
        return (
            "Whether supervision has appeared where no label was cannot be told: these data do not "
            "say which classes are there without a label."
        )
    label, hidden, absent = (float(last[group]) for group in CLASS_GROUPS)
    ratio = hidden / max(absent, 1e-6)
    if ratio > 1.5:
        found = "Supervision has appeared where no label was"
    elif ratio > 1.1:
        found = "A little supervision has appeared where no label was"
    else:
        found = "No supervision has appeared where no label was"
    return (
        f"{found}: the heatmaps of classes that are there without a label peak {ratio:.1f} times "
        f"as high as those of absent classes, and at {hidden / max(label, 1e-6):.0%} of the "
        "labelled classes' height."
    )


@house_style
def appearance_curves(table: pd.DataFrame) -> Figure:
    """Draws the table of `appearance` as curves."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.8, 3.3), layout="constrained")
    colours, styles = (COLOURS["en_scl"], COLOURS["scl"], "#6b6b6b"), ("-", "--", ":")
    for group, colour, style in zip(CLASS_GROUPS, colours, styles, strict=True):
        part = table[table.group == group]
        if part.empty:
            continue
        axes.plot(part.epoch, part["mean"], style, marker="o", ms=4, color=colour, label=group)
    axes.set(xlabel="epochs done", ylabel="peak of the heatmap\n(probability)", ylim=(0, None))
    axes.legend(title="the class is", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@house_style
def film_strip(
    trace: Trace, image: int, classes: Sequence[int] | None = None, frames: int = 8
) -> Figure:
    """One image, with a row per class: its objects, then its heatmap epoch by epoch.

    Args:
        trace: trace of a run.
        image: number of the image in the trace.
        classes: numbers of classes; by default those of `telling_classes`.
        frames: number of epochs to show, spread evenly over the recorded epochs.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import Normalize

    if classes is None:
        classes = telling_classes(trace, image)
    chosen = _frames(trace, image, frames)
    shape, side = (len(classes), 1 + len(chosen)), 1.28
    size = (side * shape[1] + 0.8, side * shape[0] + 0.35)
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    heat = trace.heatmaps[:, image].float() / 255  # (E, C, W, W)
    top = float(heat[:, classes].max().clamp(min=0.1))
    for row, c in enumerate(classes):
        _show_object(grid[row, 0], trace, image, c)
        for column, e in enumerate(chosen, 1):
            axes = grid[row, column]
            axes.set(xticks=[], yticks=[])
            show_heat(axes, trace.data.images[image], heat[e, c], top, trace.seen[e, image])
            if row == 0:
                axes.set_title(f"epoch {trace.epochs[e]}", fontsize="small")
    grid[0, 0].set_title("image", fontsize="small")
    scale = plt.cm.ScalarMappable(Normalize(0, top), HEAT)
    figure.colorbar(scale, ax=grid, label="probability", shrink=0.8, pad=0.01)
    return figure


def _frames(trace: Trace, image: int, most: int) -> list[int]:
    """At most `most` places of epochs, spread evenly from the last one before anything was seen."""
    seen = trace.seen[:, image].flatten(1).any(1).int()
    first = max(0, int(seen.argmax()) - 1) if bool(seen.any()) else 0
    count = min(most, len(trace.epochs) - first)
    return torch.linspace(first, len(trace.epochs) - 1, count).round().long().tolist()


def telling_classes(trace: Trace, image: int) -> list[int]:
    """The label, up to two classes that are in the image without a label, and one absent class."""
    peak = trace.heatmaps[-1, image].flatten(1).amax(1).int()
    order = peak.argsort(descending=True).tolist()
    label = [c for c in order if trace.observed[image, c]]
    hidden = [c for c in order if trace.hidden()[image, c]][:2]
    absent = [c for c in order if not trace.data.labels[image, c]][:1]
    return label + hidden + absent


def _show_object(axes: object, trace: Trace, image: int, c: int) -> None:
    """Shows the image with the border of a class's objects, and the group of the class."""
    axes.set(xticks=[], yticks=[])
    axes.imshow(as_picture(trace.data.images[image]), interpolation="lanczos", extent=WHOLE)
    group = (
        "label" if trace.observed[image, c]
        else "not labelled" if trace.data.labels[image, c] else "not there"
    )  # fmt: skip
    axes.set_ylabel(f"{trace.data.classes[c]}\n({group})", fontsize="small")
    region = trace.region(image)
    if region is not None and bool(region[c].any()):
        side = region.shape[-1]
        centres = (torch.arange(side) + 0.5) / side
        mask = region[c].float().numpy()
        axes.contour(centres, centres, mask, [0.5], colors="white", linewidths=2.6)
        axes.contour(centres, centres, mask, [0.5], colors=COLOURS["en_scl"], linewidths=1.2)
