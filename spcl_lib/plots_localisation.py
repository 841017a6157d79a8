"""The figure of localisation: do maps lie on the objects?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spcl_lib.findings import Findings
from spcl_lib.recovery_tables import Rows, mean_and_std, rows_of, values
from spcl_lib.results import label
from spcl_lib.style import colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HATCH = {"network": "", "heatmaps": "///"}


@styled
def localisation(found: Findings) -> Figure:
    """Do maps lie on the objects? Pointing game and IoU, on training and on new images."""
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
            axes.axhline(
                mean_and_std(values(rows, chance))[0], color="black", linestyle=":", linewidth=1
            )
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
    """A bar for every method and kind of maps."""
    kinds = list(dict.fromkeys((r["method"], r["maps"]) for r in rows))
    for place, (method, maps) in enumerate(kinds):
        mean, spread = mean_and_std(
            values([r for r in rows if (r["method"], r["maps"]) == (method, maps)], metric)
        )
        axes.bar(place, mean, 0.8, color=colour(method), hatch=_HATCH[maps],
                 edgecolor="white")  # fmt: skip
        axes.errorbar(place, mean, spread, color="black", capsize=3, linewidth=1)
        axes.annotate(f"{mean:.0f}", (place, mean + spread), (0, 2), ha="center",
                      textcoords="offset points", fontsize="x-small")  # fmt: skip
    axes.set_xticks(
        range(len(kinds)), [label(m) for m, _ in kinds], rotation=30, ha="right", fontsize="small"
    )
    axes.margins(y=0.12)  # room for the numbers
    axes.grid(False, axis="x")
