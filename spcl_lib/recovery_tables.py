"""The findings about crop recovery and localisation as tables for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spcl_lib.ablation import crop_scale_table
from spcl_lib.findings import Findings
from spcl_lib.results import label
from spcl_lib.visibility import LEAST, LIMITS, VISIBILITY

if TYPE_CHECKING:
    import pandas as pd

Rows = list[dict[str, Any]]

SOURCES = {
    "an": "raw label (AN)",
    "cl": "image's average (CL)",
    "scl_whole": "whole heatmap (SCL)",
    "scl": "heatmap through the view (SCL)",
    "en_scl": "heatmap through the view (EN + SCL)",
}
QUESTIONS = {
    "labelled": "is the labelled class in the view?",
    "unlabelled": "which unlabelled classes are in the view?",
    "all": "which classes are in the view?",
}


# --- choosing rows --------------------------------------------------------------------------------


def rows_of(found: Findings, table: str, **wanted: object) -> Rows:
    """The rows of a table that have these values."""
    return [r for r in found[table] if all(r[k] == v for k, v in wanted.items())]


def values(rows: Rows, column: str) -> list[float]:
    """The values of a column by rising seed, without those that could not be computed."""
    ordered = sorted(rows, key=lambda r: r["seed"])
    return [r[column] for r in ordered if r[column] is not None]


def differences(rows: Rows, others: Rows, column: str) -> list[float]:
    """Differences of a column, one for every seed that both have a value for."""
    first, second = ({r["seed"]: r[column] for r in part if r[column] is not None}
                     for part in (rows, others))  # fmt: skip
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def mean_and_std(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed); NaN for none."""
    if not numbers:
        return math.nan, math.nan
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def mean_and_spread(numbers: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation over seeds, as text; the mean alone for one seed."""
    if not numbers:
        return "-"
    mean = f"{statistics.fmean(numbers):{sign}.1f}"
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.1f}"


def percent(share: float) -> str:
    """A share as text, as in "5 %"."""
    return f"{100 * share:g} %"


def sources_in(found: Findings) -> list[str]:
    """The sources that have been measured, in the order of SOURCES."""
    return [s for s in SOURCES if rows_of(found, "sources", source=s)]


# --- tables ---------------------------------------------------------------------------------------


def provenance(found: Findings) -> list[str]:
    """What was measured, where and when: a few lines."""
    about = found["about"]
    methods, seeds = ", ".join(map(label, about["methods"])), ", ".join(map(str, about["seeds"]))
    lines = [
        f"{about['dataset']}, profile {about['profile']}, crops from {about['scale_min']:g} of the "
        f"image: {methods}; seeds {seeds}; {about['epochs']} epochs on "
        f"{about['train_images']:,} images, {about['report_images']:,} images to report on",
        f"{about['views']} views of each training image; a class is in a view if at least "
        f"{percent(about['least'])} of it is visible",
        f"machine: {about['device']}, torch {about['torch']}; finished: "
        f"{', '.join(about['finished'])}; commit {', '.join(about['commits'])}",
    ]
    if about["settings"]:
        changed = ", ".join(f"{k}={v}" for k, v in about["settings"].items())
        lines.append(f"NOT the profile's settings: {changed}")
    if about["missing"]:
        lines += [f"not finished: {', '.join(about['missing'])}", f"make: {about['command']}"]
    return lines


def wrongness_table(found: Findings) -> pd.DataFrame:
    """What crops leave of the labelled object, in percent of the views, by least crop area."""
    import pandas as pd

    columns = [*VISIBILITY, "wrong"]
    scales = sorted({r["scale_min"] for r in found["wrongness"]}, reverse=True)
    lines = {
        f"{s:g}": [mean_and_spread(values(rows_of(found, "wrongness", scale_min=s), column))
                   for column in columns]
        for s in scales
    }  # fmt: skip
    names = [*VISIBILITY, "label is wrong"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names)


def source_table(found: Findings, group: str) -> pd.DataFrame:
    """How well every source answers a question of QUESTIONS, in percent; "chance": a constant."""
    import pandas as pd

    columns = {"AP": "AP", "AUROC": "AUROC", "ECE": "ECE"}
    if group == "labelled":
        columns = {"AP": "AP", "AP_wrong": "AP of wrong labels", **columns}
    part = {"group": group, "least": LEAST}
    lines = {
        SOURCES[s]: [mean_and_spread(values(rows_of(found, "sources", source=s, **part), c))
                     for c in columns]
        for s in sources_in(found)
    }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(columns.values()))


def limit_table(found: Findings, group: str = "labelled") -> pd.DataFrame:
    """AUROC in percent when a class counts as in the view from another visible fraction on."""
    import pandas as pd

    lines = {
        SOURCES[s]: [
            mean_and_spread(
                values(rows_of(found, "sources", source=s, group=group, least=limit), "AUROC")
            )
            for limit in LIMITS
        ]
        for s in sources_in(found)
    }
    names = ["any pixel" if limit == 0 else f"{percent(limit)} visible" for limit in LIMITS]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names)


def decision_table(found: Findings) -> pd.DataFrame:
    """Wrong labels corrected and right ones spoiled at the end of training, in percent of each."""
    import pandas as pd

    rows = rows_of(found, "decisions", images="all", fall=found["about"]["fall"])
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = {
        label(m): [mean_and_spread(values([r for r in rows if r["method"] == m], c))
                   for c in ("corrected", "spoiled")]
        for m in methods
    }  # fmt: skip
    names = ["wrong labels corrected", "right labels spoiled"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names)


def crop_scale_frame(found: Findings) -> pd.DataFrame:
    """The mAP in percent of every method, by the least area of the crops it was trained on."""
    import pandas as pd

    head, *lines = crop_scale_table(found["crop_scale"])
    texts = {label(line[0]): line[1:] for line in lines}
    return pd.DataFrame.from_dict(texts, orient="index", columns=head[1:])


def localisation_table(found: Findings, split: str) -> pd.DataFrame:
    """Pointing game and IoU in percent, on "train" or "report" images; a row per kind of maps."""
    import pandas as pd

    groups = ("all", "labelled", "unlabelled") if split == "train" else ("all",)
    rows = rows_of(found, "localisation", split=split)
    kinds = dict.fromkeys((r["method"], r["maps"]) for r in rows)
    table = {}
    for method, maps in kinds:
        line = {}
        for group in groups:
            part = [
                r for r in rows if (r["method"], r["maps"], r["group"]) == (method, maps, group)
            ]
            line[f"pointing, {group}"] = mean_and_spread(values(part, "pointing"))
            line[f"IoU, {group}"] = mean_and_spread(values(part, "iou"))
        part = [r for r in rows if (r["method"], r["maps"], r["group"]) == (method, maps, "all")]
        line["threshold"] = mean_and_spread([100 * v for v in values(part, "threshold")])
        table[f"{label(method)}, {maps}"] = line
    if rows:
        first = {g: [r for r in rows if r["group"] == g] for g in groups}
        table["chance"] = {
            f"{name}, {g}": mean_and_spread([statistics.fmean(values(first[g], column))])
            for g in groups
            for name, column in (("pointing", "pointing_chance"), ("IoU", "iou_everywhere"))
        }
    return pd.DataFrame.from_dict(table, orient="index").fillna("")
