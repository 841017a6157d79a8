"""Compares finished runs of any settings that report on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spcl_lib.analysis.intervals import t_interval
from spcl_lib.config import RunConfig
from spcl_lib.runs.store import Metrics, Run, finished_below
from spcl_lib.system.errors import UserError

_SAME = ("dataset", "content", "report", "eval_images", "difficult", "unannotated", "full_labels")


def compare(folders: Sequence[Path]) -> pd.DataFrame:
    """One row, of texts, for all runs that differ by their seed alone.

    The difference is in mAP, to the first row, with the t interval of the seeds that both have. OF1
    and CF1 are those at the runs' own thresholds.

    Args:
        folders: folders of runs, or folders of runs' folders; all runs below them count.

    Raises:
        UserError: a run has not finished or is damaged, or runs report on different images.
    """
    places = dict.fromkeys(run for folder in folders for run in _runs_below(folder))
    found = {place: Run.find(place) for place in places}
    runs = {place: (run.config, run.finished()) for place, run in found.items()}
    _check_images(runs)
    groups: dict[RunConfig, dict[int, Metrics]] = {}
    for config, metrics in runs.values():
        groups.setdefault(config.replace(seed=0, snapshots=0), {})[config.seed] = metrics
    names, first, rows = _names(list(groups)), next(iter(groups.values())), []
    for name, group in zip(names, groups.values(), strict=True):
        both = [] if group is first else sorted(group.keys() & first.keys())
        difference = t_interval(group[seed]["mAP"] - first[seed]["mAP"] for seed in both)
        scores = pd.Series([metrics["mAP"] for metrics in group.values()])
        spread = "" if len(scores) == 1 else f" ± {scores.std():.1f}"
        rows.append({
            "runs": name, "seeds": len(scores), "mAP %": f"{scores.mean():.1f}{spread}",
            "difference (95 %)": str(difference) if both else "",
            "OF1": _f1(group, "OF1"), "CF1": _f1(group, "CF1"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _runs_below(place: Path) -> list[Path]:
    place = place.parent if place.name == "metrics.json" else place
    found = finished_below(place)
    if not found:
        raise UserError(f"'{place}' holds no finished run; give the folders of runs")
    return found


def _check_images(runs: dict[Path, tuple[RunConfig, Metrics]]) -> None:
    (first, (config, _)), *others = runs.items()
    for place, (other, _) in others:
        for name in _SAME:
            mine, theirs = getattr(other, name), getattr(config, name)
            if mine != theirs:
                raise UserError(
                    f"'{place}' and '{first}' report on different images: {name} is "
                    f"'{mine}' and '{theirs}'"
                )


def _names(configs: Sequence[RunConfig]) -> list[str]:
    """The method of every configuration, and its settings where they are not all the same."""
    flat = [config.flat() for config in configs]
    differ = [k for k in flat[0] if k != "method" and len({str(f[k]) for f in flat}) > 1]
    return [" ".join([f["method"], *(f"{k}={f[k]}" for k in differ)]) for f in flat]


def _f1(group: dict[int, Metrics], name: str) -> str:
    found = [m["at_threshold"][name] for m in group.values() if "at_threshold" in m]
    return f"{sum(found) / len(found):.1f}" if found else ""
