"""Makes tables for people from the measurements of crop recovery and localisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spcl_lib.analysis.measurement_files import Measurements
from spcl_lib.analysis.statistics import Rows, mean, mean_and_spread, percent
from spcl_lib.analysis.visibility import LEAST, LIMITS, VISIBILITY
from spcl_lib.methods import METHODS, title_of

if TYPE_CHECKING:
    import pandas as pd


SUPERVISION_NAMES = {
    "an": "raw label (AN)",
    "cl": "image's average (CL)",
    "scl_whole": "whole heatmap (SCL)",
    "scl": "heatmap through the view (SCL)",
    "en_scl": "heatmap through the view (EN + SCL)",
    "gr_scl": "heatmap through the view (GR + SCL)",
    "ren_scl": "heatmap through the view (REN + SCL)",
}
QUESTIONS = {
    "labelled": "is the labelled class in the view?",
    "unlabelled": "which unlabelled classes are in the view?",
    "all": "which classes are in the view?",
}


# --- choosing rows --------------------------------------------------------------------------------


def rows_of(found: Measurements, table: str, **wanted: object) -> Rows:
    """The rows of a table that have these values."""
    return [r for r in found[table] if all(r[k] == v for k, v in wanted.items())]


def values(rows: Rows, column: str) -> list[float]:
    """The values of a column in the order of the seeds, without those that are None."""
    ordered = sorted(rows, key=lambda r: r["seed"])
    return [r[column] for r in ordered if r[column] is not None]


def differences(rows: Rows, others: Rows, column: str) -> list[float]:
    """Differences of a column, one for every seed with a value in both."""
    first, second = ({r["seed"]: r[column] for r in part if r[column] is not None}
                     for part in (rows, others))  # fmt: skip
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def sources_in(found: Measurements) -> list[str]:
    """The measured sources, in the order of SUPERVISION_NAMES."""
    return [s for s in SUPERVISION_NAMES if rows_of(found, "sources", source=s)]


# --- tables ---------------------------------------------------------------------------------------


def provenance(found: Measurements) -> list[str]:
    """Says in a few lines what was measured, where and when."""
    about = found["about"]
    methods, seeds = ", ".join(map(title_of, about["methods"])), ", ".join(map(str, about["seeds"]))
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
    if found.get("crop_scale_source") == "reference":
        lines.append("the effect of the crops' least area: of the reference runs, not of these")
    if about["missing"]:
        lines += [f"not finished: {', '.join(about['missing'])}", f"make: {about['command']}"]
    return lines


def wrongness_table(found: Measurements) -> pd.DataFrame:
    """How much of the labelled object crops show, in percent of the views, by least crop area."""
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


def source_table(found: Measurements, group: str) -> pd.DataFrame:
    """How well every source answers a question of QUESTIONS, in percent."""
    import pandas as pd

    columns = {"AP": "AP", "AUROC": "AUROC", "ECE": "ECE"}
    if group == "labelled":
        columns = {"AP": "AP", "AP_wrong": "AP of wrong labels", **columns}
    part = {"group": group, "least": LEAST}
    lines = {
        SUPERVISION_NAMES[s]: [
            mean_and_spread(values(rows_of(found, "sources", source=s, **part), c)) for c in columns
        ]
        for s in sources_in(found)
    }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(columns.values()))


def limit_table(found: Measurements, group: str = "labelled") -> pd.DataFrame:
    """AUROC in percent, for every limit (LIMITS) above which a class counts as in the view."""
    import pandas as pd

    lines = {
        SUPERVISION_NAMES[s]: [
            mean_and_spread(
                values(rows_of(found, "sources", source=s, group=group, least=limit), "AUROC")
            )
            for limit in LIMITS
        ]
        for s in sources_in(found)
    }
    names = ["any pixel" if limit == 0 else f"{percent(limit)} visible" for limit in LIMITS]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names)


def decision_table(found: Measurements) -> pd.DataFrame:
    """Wrong labels corrected and right labels spoiled after the training, in percent of each."""
    import pandas as pd

    rows = rows_of(found, "decisions", images="all", fall=found["about"]["fall"])
    methods = list(dict.fromkeys(r["method"] for r in rows))
    lines = {
        title_of(m): [mean_and_spread(values([r for r in rows if r["method"] == m], c))
                   for c in ("corrected", "spoiled")]
        for m in methods
    }  # fmt: skip
    names = ["wrong labels corrected", "right labels spoiled"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=names)


def crop_scale_texts(rows: Rows) -> list[list[str]]:
    """The mAP in percent as texts: a header, then a row per method, with the largest crops first.

    Args:
        rows: method, scale_min, seed and mAP of every run.
    """
    scales = sorted({r["scale_min"] for r in rows}, reverse=True)
    lines = [["method", *(f"{scale:g}" for scale in scales)]]
    for method in (m for m in METHODS if any(r["method"] == m for r in rows)):
        part = [r for r in rows if r["method"] == method]
        cells = [[r["mAP"] for r in part if r["scale_min"] == scale] for scale in scales]
        lines.append([title_of(method), *map(mean_and_spread, cells)])
    return lines


def crop_scale_table(found: Measurements) -> pd.DataFrame:
    """The mAP of every method in percent, by the least area of its training crops."""
    import pandas as pd

    head, *lines = crop_scale_texts(found["crop_scale"])
    return pd.DataFrame.from_dict(
        {line[0]: line[1:] for line in lines}, orient="index", columns=head[1:]
    )


def localisation_table(found: Measurements, split: str) -> pd.DataFrame:
    """Pointing game and IoU in percent on "train" or "report" images; a row per kind of maps."""
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
        table[f"{title_of(method)}, {maps}"] = line
    if rows:
        first = {g: [r for r in rows if r["group"] == g] for g in groups}
        table["chance"] = {
            f"{name}, {g}": mean_and_spread([mean(values(first[g], column))])
            for g in groups
            for name, column in (("pointing", "pointing_chance"), ("IoU", "iou_everywhere"))
        }
    return pd.DataFrame.from_dict(table, orient="index").fillna("")
