"""Figures of results: scores, learning curves, classes.

Every function gives a matplotlib Figure and shows nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spcl_lib.analysis.ablations import scores_of, usual_value
from spcl_lib.analysis.results import Runs, by_method, histories, per_class, table
from spcl_lib.analysis.statistics import mean
from spcl_lib.methods import title_of
from spcl_lib.viewer.style import colour, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@house_style
def map_by_method(runs: Runs) -> Figure:
    """Shows mAP of every seed (small dots) and their mean (large dot), between AN and Full.

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
    axes.set(yticks=range(len(groups)), yticklabels=[title_of(name) for name in groups])
    axes.set_ylim(len(groups) - 0.5, -0.75)  # AN is on top, with space for its number
    axes.set_xlabel("mAP in % (small: one seed, large: mean; dashed: AN and Full)")
    axes.grid(False, axis="y")
    axes.margins(x=0.06)
    return figure


@house_style
def learning_curves(runs: Runs) -> Figure:
    """Shows mAP over epochs: mean over seeds, with a band of one standard deviation.

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
        axes.plot(mean.index, mean, "-o", color=colour(name), markersize=3.5, label=title_of(name))
        axes.fill_between(mean.index, mean - spread, mean + spread, color=colour(name), alpha=0.15)
        ends[name] = float(mean.iloc[-1])
    axes.set(xlabel="epoch", ylabel="mAP in %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    # The legend has the order of the curves' ends; the best is on top.
    handles = dict(zip(ends, axes.get_legend_handles_labels()[0], strict=True))
    best = sorted(ends, key=ends.get, reverse=True)
    axes.legend(
        [handles[name] for name in best], [title_of(name) for name in best],
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title="mean of seeds",
    )  # fmt: skip
    return figure


@house_style
def per_class_ap(runs: Runs) -> Figure:
    """Shows the gain in AP over AN: a row per class (with AN's own AP), a column per method.

    If AN is missing or is the only method, it shows the AP itself.

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
        xticks=range(values.shape[1]), xticklabels=[title_of(name) for name in values.columns],
        yticks=range(len(values)), yticklabels=names,
        ylabel="class" if limits[0] == 0 else "class (AP of AN in %)",
    )  # fmt: skip
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


@house_style
def ablation(content: dict[str, Any], name: str) -> Figure:
    """Shows mAP for each value of an ablation: dots are seeds, lines join the means.

    Args:
        content: of `load_ablations`.
        name: an ablation of it.
    """
    import matplotlib.pyplot as plt

    scores = scores_of(content, name)
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for method in next(iter(scores.values())):
        rows = [by_method[method] for by_method in scores.values()]
        axes.plot([mean(row) for row in rows], color=colour(method), label=title_of(method))
        for place, row in enumerate(rows):
            axes.plot([place] * len(row), row, "o", color=colour(method), markersize=4, alpha=0.6)
    usual = usual_value(content, name)
    if usual is not None:
        axes.axvline(list(scores).index(usual), color="#555555", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(scores)), scores)
    axes.set_xlabel(f"{content['ablations'][name]['axis']} (dashed: our usual value)")
    axes.set_ylabel("mAP in %")
    axes.grid(False, axis="x")
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
