"""Figures of the league: the table as dots, what SCL adds, what pooling does, where F1 misleads.

Every function gives a matplotlib Figure and shows nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spcl_lib.analysis.full_training import full_training_table
from spcl_lib.analysis.league import (
    consistency_gains,
    entries_of,
    pooling_scores,
    whose,
)
from spcl_lib.analysis.statistics import mean
from spcl_lib.methods import title_of
from spcl_lib.viewer.style import house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "the paper": "#0072b2", "competitor": "#8c8c8c", "combined by us": "#cc79a7",
    "ours": "#d55e00", "sees all labels": "#000000",
}  # fmt: skip


@house_style
def league_scores(content: dict[str, Any], best_pooling: bool = False) -> Figure:
    """Shows mAP of every seed (small dots) and their mean (large dot), best on top.

    Args:
        content: of `load_league`.
        best_pooling: with each method's chosen pooling; else all with the mean.
    """
    import matplotlib.pyplot as plt

    entries = entries_of(content, best_pooling)
    order = sorted(entries, key=lambda name: -mean(entries[name]["mAP"]))
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.24 * len(order)), layout="constrained")
    for row, name in enumerate(order):
        scores, colour = entries[name]["mAP"], _COLOURS[whose(name)]
        axes.plot(scores, [row] * len(scores), "o", color=colour, alpha=0.4, markersize=4)
        axes.plot(mean(scores), row, "o", color=colour, markersize=8)
    for name in ("an", "full"):
        if name in entries:
            axes.axvline(mean(entries[name]["mAP"]), color="#555555", linestyle="--", linewidth=1)
    axes.set(yticks=range(len(order)), yticklabels=[title_of(name) for name in order])
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_xlabel("mAP in % (small: one seed, large: mean; dashed: AN and Full)")
    _add_origins(axes, {whose(name) for name in order})
    axes.grid(False, axis="y")
    return figure


@house_style
def consistency_adds(leagues: dict[str, dict[str, Any]]) -> Figure:
    """Shows what SCL adds to each term (mean pooling), with one deviation over seeds.

    Args:
        leagues: data set -> content of `load_league`.
    """
    import matplotlib.pyplot as plt

    figure, all_axes = plt.subplots(
        1, len(leagues), figsize=(1.2 + 4.2 * len(leagues), 5.2), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, (dataset, content) in zip(all_axes[0], leagues.items(), strict=True):
        gains = consistency_gains(content)
        rows = np.arange(len(gains))
        axes.barh(rows, gains["gain"], xerr=gains["std"], color=_COLOURS["the paper"],
                  error_kw={"linewidth": 1})  # fmt: skip
        axes.set(yticks=rows, yticklabels=gains.index, title=dataset)
        axes.axvline(0, color="black", linewidth=1)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("mAP that SCL adds, points")
    return figure


@house_style
def pooling_changes(content: dict[str, Any]) -> Figure:
    """Shows what another pooling in prediction changes, on validation data: method by pooling.

    Args:
        content: of `load_league`.
    """
    import matplotlib.pyplot as plt

    scores = pooling_scores(content)
    changes = scores.drop(columns="mean").sub(scores["mean"], axis=0)
    names = [f"{name}  ({value:.1f})" for name, value in scores["mean"].items()]
    limit = max(1.0, float(changes.abs().max().max()))
    size = (3.2 + 0.75 * changes.shape[1], 1.4 + 0.25 * len(changes))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    shown = axes.imshow(changes, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(changes.to_numpy()):
        axes.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize="small",
                  color="white" if abs(value) > 0.6 * limit else "black")  # fmt: skip
    figure.colorbar(shown, ax=axes, label="change in mAP, points")
    axes.set(xticks=range(changes.shape[1]), yticks=range(len(names)), yticklabels=names)
    axes.set_xticklabels(changes.columns, rotation=30, ha="right")
    axes.set_ylabel("method (mAP with the mean, %)")
    axes.grid(False)
    axes.tick_params(length=0)
    return figure


@house_style
def f1_against_map(content: dict[str, Any]) -> Figure:
    """Shows OF1 against mAP: at probability 0.5 (hollow) and at the run's own threshold (filled).

    Args:
        content: of `load_league`.
    """
    import matplotlib.pyplot as plt

    entries = entries_of(content, False)
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    for name, entry in entries.items():
        score, colour = mean(entry["mAP"]), _COLOURS[whose(name)]
        axes.plot([score, score], [entry["OF1_at_0.5"], entry["OF1"]], "-", color=colour,
                  linewidth=0.7, alpha=0.5)  # fmt: skip
        axes.plot(score, entry["OF1_at_0.5"], "o", color=colour, markerfacecolor="white")
        axes.plot(score, entry["OF1"], "o", color=colour)
    axes.set(xlabel="mAP in %", ylabel="OF1 in % (hollow: at 0.5; filled: own threshold)")
    return figure


@house_style
def full_against_frozen(content: dict[str, Any], league: dict[str, Any]) -> Figure:
    """Shows the order of the methods with the frozen network and with full training, joined.

    Args:
        content: of `load_full_training`.
        league: of `load_league`.
    """
    import matplotlib.pyplot as plt

    rows = full_training_table(content, league).dropna(subset="frozen")
    places = rows[["frozen", "mAP"]].rank(ascending=False, method="first")
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.28 * len(rows)), layout="constrained")
    for name, row in rows.iterrows():
        left, right = places.loc[name]
        colour = _COLOURS[row["whose"]]
        axes.plot([0, 1], [left, right], "o-", color=colour, linewidth=1.5)
        axes.text(-0.04, left, f"{name}  {row['frozen']:.1f}", ha="right", va="center")
        axes.text(1.04, right, f"{row['mAP']:.1f}  {name}", ha="left", va="center")
    axes.set(title=content["dataset"], xlim=(-0.85, 1.8), xticks=(0, 1), yticks=())
    axes.set_ylim(len(rows) + 0.5, 0.5)
    axes.set_xticklabels(["frozen network", "full training"])
    axes.set_xlabel("mAP in %, the best on top")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _add_origins(axes, set(rows["whose"]))
    return figure


def _add_origins(axes: Axes, present: set[str]) -> None:
    """Adds the legend of the colours."""
    import matplotlib.pyplot as plt

    marks = [plt.Line2D([], [], marker="o", linestyle="", color=c, label=n)
             for n, c in _COLOURS.items() if n in present]  # fmt: skip
    axes.legend(handles=marks, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
