"""Figures that two notebooks still draw with: learning curves, and the time of the bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spcl_lib.methods import title_of
from spcl_lib.viewer.style import colour, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@house_style
def learning_curves(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Shows the mAP of every run over its epochs.

    Args:
        runs: contents of metrics.json.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
    for run in runs:
        rows = [row for row in run["history"] if row.get("mAP") is not None]
        epochs, scores = [row["epoch"] for row in rows], [row["mAP"] for row in rows]
        method = run["method"]
        axes.plot(epochs, scores, "-o", ms=3.5, color=colour(method), label=title_of(method))
    axes.set(xlabel="epoch", ylabel="mAP in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


@house_style
def bank_curves(curves: dict[str, dict[int, dict[str, float]]]) -> Figure:
    """Shows the time of a batch against classes and cells, for the bank, a loop and plain copies.

    Args:
        curves: the result of `speed.bank_curves`.
    """
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(curves), figsize=(8.6, 3.2), layout="constrained")
    colours = {"plain loop": "#8c8c8c", "bank": "#d55e00", "bank in a file": "#cc79a7",
               "bytes moved": "#0072b2"}  # fmt: skip
    for axes, (axis, values) in zip(panels, curves.items(), strict=True):
        for name, hue in colours.items():
            times = [of_value[name] for of_value in values.values()]
            axes.plot(list(values), times, "o-", color=hue, label=name)
        axes.set(xscale="log", yscale="log", xlabel=axis)
        axes.set_xticks(list(values), [str(value) for value in values])
        axes.minorticks_off()
    panels[0].set_ylabel("ms for a batch of 64")
    panels[0].legend(frameon=False, fontsize="small")
    return figure
