"""Compares finished runs of any settings that report on the same images."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spcl_lib.analysis.intervals import t_interval
from spcl_lib.config import RunConfig
from spcl_lib.runs.store import Metrics, Run, finished_below
from spcl_lib.system.errors import UserError
from spcl_lib.system.paths import in_results

_SAME = ("dataset", "content", "report", "eval_images", "difficult", "unannotated", "full_labels")


def compare(folders: Sequence[Path]) -> pd.DataFrame:
    """One row, of texts, for all runs that differ by their seed alone.

    The difference is in mAP, to the first row, with the t interval of the seeds that both have. OF1
    and CF1 are those at the runs' own thresholds. All runs in the folders count, and all below.
    """
    places = dict.fromkeys(run for folder in folders for run in _runs_below(folder))
    runs = [Run.find(place) for place in places]
    _check_images(runs)
    groups: dict[RunConfig, dict[int, Metrics]] = {}
    for run in runs:
        group = groups.setdefault(run.config.replace(seed=0, snapshots=0), {})
        if run.config.seed in group:
            raise UserError(f"'{run.folder}' is there twice, with the same settings and seed")
        group[run.config.seed] = run.finished()
    first, rows = next(iter(groups.values())), []
    for name, group in zip(_names(list(groups)), groups.values(), strict=True):
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
    found = finished_below(in_results(place.parent if place.name == "metrics.json" else place))
    if not found:
        raise UserError(f"'{place}' holds no finished run; give the folders of runs")
    return found


def _check_images(runs: Sequence[Run]) -> None:
    first, *others = runs
    for other in others:
        for name in _SAME:
            mine, theirs = getattr(other.config, name), getattr(first.config, name)
            if mine != theirs:
                raise UserError(
                    f"'{other.folder}' and '{first.folder}' are of different data: {name} is "
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
