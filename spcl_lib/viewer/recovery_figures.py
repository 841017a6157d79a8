"""Figures of the findings about crop recovery and localisation; each gives a matplotlib Figure.

Methods have the colours of `style.COLOURS`. Visible parts of objects have a sequential scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spcl_lib.analysis.measurement_files import Measurements
from spcl_lib.analysis.measurement_tables import (
    SUPERVISION_NAMES,
    Rows,
    rows_of,
    sources_in,
    values,
)
from spcl_lib.analysis.recovery import NOT_THERE
from spcl_lib.analysis.statistics import mean_and_deviation
from spcl_lib.analysis.visibility import LEAST, VISIBILITY
from spcl_lib.methods import title_of
from spcl_lib.viewer.style import OTHER_METHOD, colour, house_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_GROUP_TITLES = {"labelled": "the labelled class", "unlabelled": "unlabelled classes"}
_MARKERS = {"an": "s", "cl": "D", "scl_whole": "v", "scl": "o", "en_scl": "^", "gr_scl": "X",
            "ren_scl": "p", "full": "P"}  # fmt: skip


def _colour(source: str) -> str:
    return OTHER_METHOD if source == "scl_whole" else colour(source)


@house_style
def label_wrongness(found: Measurements) -> Figure:
    """Shows how much of the labelled object is in the crops, by the least area of the crops."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    scales = sorted({r["scale_min"] for r in found["wrongness"]}, reverse=True)
    names = [f"{100 * s:g}" for s in scales]
    colours = sns.color_palette("cividis", len(VISIBILITY))
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    base = np.zeros(len(scales))
    for group, shade in zip(VISIBILITY, colours, strict=True):
        share = [
            mean_and_deviation(values(rows_of(found, "wrongness", scale_min=s), group))[0]
            for s in scales
        ]
        axes.bar(names, share, 0.75, base, color=shade, label=group, edgecolor="white")
        base += share
    for place, scale in enumerate(scales):
        wrong = mean_and_deviation(values(rows_of(found, "wrongness", scale_min=scale), "wrong"))[0]
        axes.annotate(f"{wrong:.0f} % wrong", (place, 100), (0, 3), textcoords="offset points",
                      ha="center", fontsize="small")  # fmt: skip
    axes.set(xlabel="least area of a crop, in % of the image", ylabel="views, in %", ylim=(0, 110))
    axes.grid(False, axis="x")
    entries = (part[::-1] for part in axes.get_legend_handles_labels())
    axes.legend(*entries, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False,
                title="visible of the\nlabelled class")  # fmt: skip
    return figure


@house_style
def source_scores(found: Measurements) -> Figure:
    """Shows how well each source of supervision says what is in the view, as AUROC and AP."""
    import matplotlib.pyplot as plt

    sources = sources_in(found)
    cases = (
        ("labelled", "AUROC", "AUROC in %", "labelled class:\nis it in the view?"),
        ("labelled", "AP_wrong", "AP in %", "labelled class:\nwhich labels are wrong?"),
        ("unlabelled", "AUROC", "AUROC in %", "unlabelled classes:\nare they in the view?"),
        ("unlabelled", "AP", "AP in %", "unlabelled classes:\nare they in the view?"),
    )
    figure, grid = plt.subplots(1, 4, figsize=(10.6, 3.7), layout="constrained")
    for axes, (group, metric, unit, title) in zip(grid, cases, strict=True):
        for place, source in enumerate(sources):
            rows = rows_of(found, "sources", source=source, group=group, least=LEAST)
            mean, spread = mean_and_deviation(values(rows, metric))
            axes.bar(place, mean, 0.8, color=_colour(source), label=SUPERVISION_NAMES[source])
            axes.errorbar(place, mean, spread, color="black", capsize=3, linewidth=1)
            axes.annotate(f"{mean:.0f}", (place, mean + spread), (0, 2), ha="center",
                          textcoords="offset points", fontsize="small")  # fmt: skip
        chance = mean_and_deviation(
            values(rows_of(found, "sources", source="an", group=group, least=LEAST), metric)
        )
        axes.axhline(chance[0], color="black", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize="small")
        axes.set(ylabel=unit, ylim=(0, 108), xticks=[])
        axes.grid(False, axis="x")
    legend = {"title": "mean ± standard deviation over seeds; dotted: a constant", "ncols": 3}
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, **legend)
    return figure


@house_style
def reliability_curves(found: Measurements) -> Figure:
    """Shows how often a class is in the view if a source says p; calibrated is the diagonal."""
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 2, figsize=(8.2, 4.6), layout="constrained", sharey=True)
    for axes, group in zip(grid, ("labelled", "unlabelled"), strict=True):
        axes.plot([0, 1], [0, 1], ":", color="black", linewidth=1)
        for source in (s for s in sources_in(found) if s != "scl_whole"):
            rows = rows_of(found, "reliability", source=source, group=group)
            score, share, count = _pool_bins(rows)
            line = {"color": _colour(source), "marker": _MARKERS[source]}
            axes.plot(
                score, share, linewidth=1.2, markersize=4, label=SUPERVISION_NAMES[source], **line
            )
            axes.scatter(score, share, 150 * count / count.sum(), **line)
        axes.set_title(_GROUP_TITLES[group], fontsize="small")
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axes.set_xlabel("what the source says (probability)")
    grid[0].set_ylabel("share of views that show the class")
    legend = {"title": "dotted: calibrated; larger marks: more views", "ncols": 2}
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, **legend)
    return figure


def _pool_bins(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score, share and count over all seeds, for bins that are not empty."""
    count = np.array([r["count"] for r in rows], float)  # (seeds, bins)
    parts = [np.array([r[k] for r in rows], float) for k in ("score", "share")]
    used = count.sum(0) > 0
    total = count.sum(0)[used]
    means = [(np.nan_to_num(part) * count).sum(0)[used] / total for part in parts]
    return means[0], means[1], total


@house_style
def targets_by_visibility(found: Measurements) -> Figure:
    """Shows the mean target of each source, by how much of the class's objects the view shows.

    The raw label is left out, because it is the same for every view.
    """
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained", sharey=True)
    for axes, group in zip(grid, ("labelled", "unlabelled"), strict=True):
        names = [*([NOT_THERE] if group == "unlabelled" else []), *VISIBILITY]
        for source in sources_in(found)[1:]:
            rows = rows_of(found, "visibility", source=source, group=group)
            stats = [
                mean_and_deviation(values([r for r in rows if r["visibility"] == name], "target"))
                for name in names
            ]
            mean, spread = zip(*stats, strict=True)
            line = {"marker": _MARKERS[source], "color": _colour(source), "linewidth": 1.3}
            name = SUPERVISION_NAMES[source]
            axes.errorbar(range(len(names)), mean, spread, capsize=2, label=name, **line)
        axes.set_title(_GROUP_TITLES[group], fontsize="small")
        axes.set(xticks=range(len(names)), xlabel="visible of the class's objects", ylim=(0, None))
        axes.set_xticklabels([_in_two_lines(name) for name in names], fontsize="small")
    grid[0].set_ylabel("mean target (probability)")
    handles = grid[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _in_two_lines(text: str) -> str:
    """Breaks a short text at the space nearest to its middle."""
    blanks = [i for i, c in enumerate(text) if c == " "]
    middle = min(blanks, key=lambda i: abs(i - len(text) / 2))
    return f"{text[:middle]}\n{text[middle + 1 :]}"


@house_style
def corrections(found: Measurements) -> Figure:
    """Shows wrong labels corrected and right labels spoiled, over epochs and decision shares."""
    import matplotlib.pyplot as plt

    figure, (over, against) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained")
    methods = list(dict.fromkeys(r["method"] for r in found["decisions"]))
    for method in methods:
        _over_epochs(over, rows_of(found, "decisions", images="followed", method=method))
        _trade_off(against, rows_of(found, "decisions", images="all", method=method))
    usual = found["about"]["fall"]
    over.set(xlabel="epoch", ylabel="labels, in % of each kind", ylim=(-3, 103))
    over.set_title(f"decided at {usual:g} (solid: corrected, dashed: spoiled)", fontsize="small")
    over.xaxis.get_major_locator().set_params(integer=True)
    if not over.lines:
        over.text(0.5, 0.5, "not recorded: these runs\nfollowed no image (snapshots = 0)",
                  ha="center", va="center", transform=over.transAxes)  # fmt: skip
        over.set(xticks=[])
    against.set(xlabel="right labels spoiled, in %", ylabel="wrong labels corrected, in %")
    against.set(xlim=(-2, None), ylim=(-3, 103))
    against.set_title("at the end, for other shares of the whole image's", fontsize="small")
    handles = dict(zip(*reversed(against.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _over_epochs(axes: Axes, rows: Rows) -> None:
    epochs = sorted({r["epoch"] for r in rows})
    for column, line in (("corrected", "-"), ("spoiled", "--")):
        stats = [
            mean_and_deviation(values([r for r in rows if r["epoch"] == e], column)) for e in epochs
        ]
        mean, spread = np.array(stats).reshape(-1, 2).T
        for method in {r["method"] for r in rows}:
            axes.plot(epochs, mean, line, marker=_MARKERS[method], markersize=4,
                      color=colour(method))  # fmt: skip
            axes.fill_between(
                epochs, mean - spread, mean + spread, color=colour(method), alpha=0.15
            )


def _trade_off(axes: Axes, rows: Rows) -> None:
    """Draws corrected against spoiled labels, with a mark for every share."""
    falls = sorted({r["fall"] for r in rows})
    points = [[mean_and_deviation(values([r for r in rows if r["fall"] == f], column))[0]
               for column in ("spoiled", "corrected")] for f in falls]  # fmt: skip
    for method in {r["method"] for r in rows}:
        axes.plot(*np.array(points).T, marker=_MARKERS[method], markersize=4,
                  color=colour(method), label=title_of(method))  # fmt: skip
        if method == "scl":  # the shares are written for one method only
            for fall, point in zip(falls, points, strict=True):
                axes.annotate(f"{fall:g}", point, (5, -9), textcoords="offset points",
                              fontsize="x-small", color=colour(method))  # fmt: skip


@house_style
def map_over_scales(found: Measurements) -> Figure:
    """Shows the mAP of every method, by the least area of its training crops."""
    import matplotlib.pyplot as plt

    rows = found["crop_scale"]
    figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
    scales = sorted({r["scale_min"] for r in rows})
    ends = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = [r for r in rows if r["method"] == method]
        own = sorted({r["scale_min"] for r in mine})
        stats = [
            mean_and_deviation(values([r for r in mine if r["scale_min"] == s], "mAP")) for s in own
        ]
        mean, spread = zip(*stats, strict=True)
        axes.errorbar(own, mean, spread, marker=_MARKERS[method], color=colour(method), capsize=3,
                      label=title_of(method))  # fmt: skip
        ends[method] = mean[0]
    axes.set_xscale("log")
    axes.invert_xaxis()  # smaller, harder crops are on the right
    axes.set_xticks(scales, [f"{100 * s:g}" for s in scales])
    axes.minorticks_off()
    axes.set(xlabel="least area of a crop, in % of the image", ylabel="mAP in %")
    handles = dict(zip(ends, axes.get_legend_handles_labels()[0], strict=True))
    best = sorted(ends, key=ends.get, reverse=True)
    axes.legend([handles[m] for m in best], [title_of(m) for m in best], loc="center left",
                bbox_to_anchor=(1.01, 0.5), frameon=False, title="mean ± std")  # fmt: skip
    return figure


_HATCH = {"network": "", "heatmaps": "///"}


@house_style
def localisation(found: Measurements) -> Figure:
    """Shows how well maps lie on objects (pointing game, IoU), on training and on new images."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    cases = (("train", "unlabelled", "training images,\nclasses never labelled"),
             ("train", "labelled", "training images,\nlabelled classes"),
             ("report", "all", "new images,\nall classes"))  # fmt: skip
    figure, grid = plt.subplots(2, 3, figsize=(10.2, 5.6), layout="constrained", sharey="row")
    for row, (metric, chance, unit) in enumerate(
        (
            ("pointing", "pointing_chance", "pointing game, hits in %"),
            ("iou", "iou_everywhere", "IoU in %"),
        )  # fmt: skip
    ):
        for axes, (split, group, title) in zip(grid[row], cases, strict=True):
            rows = rows_of(found, "localisation", split=split, group=group)
            _bars(axes, rows, metric)
            level = mean_and_deviation(values(rows, chance))[0]
            axes.axhline(level, color="black", linestyle=":", linewidth=1)
            if row == 0:
                axes.set_title(title, fontsize="small")
        grid[row, 0].set_ylabel(unit)
    kinds = (("network", "the network's score maps"), ("heatmaps", "heatmaps kept in training"))
    handles = [
        Patch(facecolor="grey", edgecolor="white", hatch=_HATCH[k], label=t) for k, t in kinds
    ]
    handles.append(Line2D([], [], color="black", linestyle=":", linewidth=1, label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _bars(axes: Axes, rows: Rows, metric: str) -> None:
    """Draws a bar for every method and kind of maps."""
    kinds = list(dict.fromkeys((r["method"], r["maps"]) for r in rows))
    for place, (method, maps) in enumerate(kinds):
        mean, spread = mean_and_deviation(
            values([r for r in rows if (r["method"], r["maps"]) == (method, maps)], metric)
        )
        axes.bar(place, mean, 0.8, color=colour(method), hatch=_HATCH[maps],
                 edgecolor="white")  # fmt: skip
        axes.errorbar(place, mean, spread, color="black", capsize=3, linewidth=1)
        axes.annotate(f"{mean:.0f}", (place, mean + spread), (0, 2), ha="center",
                      textcoords="offset points", fontsize="x-small")  # fmt: skip
    names = [title_of(method) for method, _ in kinds]
    axes.set_xticks(range(len(kinds)), names, rotation=30, ha="right", fontsize="small")
    axes.margins(y=0.12)  # room for the numbers
    axes.grid(False, axis="x")
