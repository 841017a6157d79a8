"""Finished runs and kept results as one tidy table: a row is one method with one seed.

Results come from this machine's runs, or from the small files under version control
(notebooks/reference/), which `notebooks/reference/make.py` makes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS, title_of
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_data
from spcl_lib.runs.store import Metrics, Run, finished_below
from spcl_lib.system import paths
from spcl_lib.system.checksums import read_summed
from spcl_lib.system.errors import UserError, unknown_name

# study: "runs" (one data set with the paper's methods), "league" or "ablation". pooling: "mean", or
# "own" for that which held-out data chose. setting, value: what an ablation varies; usual: whether
# the value is the profile's. mAP is in percent.
COLUMNS = (
    "study", "dataset", "profile", "method", "title", "pooling", "setting", "value", "usual",
    "seed", "mAP", "train_seconds",
)  # fmt: skip
Row = Mapping[str, Any]  # also the content of a kept file


def as_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows with some of COLUMNS as a table with all, methods in the order of METHODS."""
    usual = {"pooling": "mean", "setting": "", "value": "", "usual": True}
    table = pd.DataFrame([usual | dict(row) for row in rows], columns=[*COLUMNS])
    table["title"] = table["method"].map(title_of)
    ranks = {name: rank for rank, name in enumerate(METHODS)}
    order = table["method"].map(ranks).fillna(len(ranks))
    return table.iloc[order.argsort(kind="stable")].reset_index(drop=True)


def load_runs(
    source: str,
    dataset: str,
    profile: str,
    overrides: Mapping[str, object] | None = None,
    data_root: str | Path | None = None,
) -> list[Metrics]:
    """The metrics of the finished runs of a data set.

    The source "results" takes this machine's runs with the profile's settings and `overrides`;
    "reference" takes the runs under version control. `data_root` matters only if this machine has
    runs on more than one copy of the data.
    """
    if source not in ("reference", "results"):
        raise unknown_name("source", source, ("reference", "results"))
    wanted = make_config(dataset, "an", 0, profile, overrides)
    if source == "reference":
        return list(read_kept(f"{dataset}-{profile}")["runs"])
    folders = sorted(paths.results().glob(f"{dataset}-{profile}*"))
    runs = [Run.find(place) for folder in folders for place in finished_below(folder)]
    runs = [run for run in runs if _has(run.config, profile, overrides)]
    if data_root is not None or len({run.config.content for run in runs}) > 1:
        content = identify_data(wanted, data_root).content
        runs = [run for run in runs if run.config.content == content]
    if not runs:
        raise UserError(
            f"no finished run of {dataset} (profile {profile}) in '{paths.results()}'; "
            f"make them with: ./reproduce.sh --dataset {dataset} --profile {profile}"
        )
    return [run.finished() for run in runs]


def _has(config: RunConfig, profile: str, overrides: Mapping[str, object] | None) -> bool:
    usual = make_config(config.dataset, config.method, config.seed, profile, overrides)
    return config == replace(usual, content=config.content, snapshots=config.snapshots)


def table_of(runs: Iterable[Metrics]) -> pd.DataFrame:
    """The table of some runs of one data set."""
    names = ("dataset", "profile", "method", "seed", "mAP", "train_seconds")
    return as_table({"study": "runs", **{name: run[name] for name in names}} for run in runs)


def ablation_table(content: Row) -> pd.DataFrame:
    """The table of a kept `ablations-DATASET-PROFILE`, values in their order."""
    about = {"study": "ablation", "dataset": content["dataset"], "profile": content["profile"]}
    return as_table(
        about | row | {"setting": row["ablation"], "seed": seed, "mAP": score}
        for row in content["rows"]
        for seed, score in zip(content["seeds"], row["mAP"], strict=True)
    )


def read_kept(name: str) -> dict[str, Any]:
    """The content of notebooks/reference/NAME.json."""
    file = paths.reference() / f"{name}.json"
    if not file.is_file():
        known = sorted(f.stem for f in paths.reference().glob("*.json"))
        raise UserError(f"no results are kept as '{file.name}'; there are {', '.join(known)}")
    try:
        return read_summed(file)
    except (OSError, ValueError) as error:
        raise UserError(f"reference file '{file}' is damaged ({error}); make it again") from error
