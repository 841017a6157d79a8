"""The league's results: what is kept of its runs, and tables of it.

Every method stands there twice: with the mean in training and prediction (pooling "mean"), and with
the poolings that held-out data chose for it ("own"), which may be the mean as well.
"""

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from spcl_lib.analysis.intervals import gain
from spcl_lib.analysis.runs import as_table
from spcl_lib.methods import METHODS, PAPER_METHODS, title_of
from spcl_lib.pooling import Pooling
from spcl_lib.runs.league import League, Settings, own_pooling
from spcl_lib.runs.settings import changes
from spcl_lib.runs.store import Run

Content = Mapping[str, Any]  # of a file league-DATASET.json or full-training-DATASET.json
WHOSE = ("sees all labels", "the paper", "ours", "another paper", "another paper, with SCL")


def whose(method: str) -> str:
    """The origin of a method, one of WHOSE."""
    spec = METHODS[method]
    if spec.row.sees:
        return WHOSE[0]
    if spec.row.source == "ours":
        return WHOSE[2]
    if method in PAPER_METHODS:
        return WHOSE[1]
    return WHOSE[4] if spec.consistency else WHOSE[3]


def collect(league: League) -> dict[str, Any]:
    """What is kept of a league, whose runs must have finished.

    "search" has every tried setting with its mAP on held-out data. "final" has for every method one
    entry with the mean, and one with the chosen poolings; "held_out" is what chose it.
    """
    runs = [(c, Run.of(c).finished()) for _, configs in league.rounds() for c in configs]
    search = [
        {"method": config.method, **changes(config), "mAP_by_pooling": run["mAP_by_pooling"]}
        for config, run in runs
        if config.report == "val"
    ]
    entries = []
    for method in league.methods:
        entries.append(_entry(league, method, league.chosen(method), own_pooling(method)))
        entries.append(_entry(league, method, *league.chosen_pooling(method)))
    _, first = runs[0]
    return {
        "dataset": league.dataset, "profile": league.profile, "machine": first["machine"],
        "seeds": list(league.seeds), "search": search, "final": entries,
    }  # fmt: skip


def _entry(league: League, method: str, settings: Settings, predicts: str) -> dict[str, Any]:
    """A method with one pooling in training and one in prediction."""
    runs = [Run.of(config).finished() for config in league.final_configs(method, settings)]
    own = Pooling(settings.get("pooling", "mean"), settings.get("pooling_strength", 0.0))
    by_pooling = {n: fmean(r["mAP_by_pooling"][n] for r in runs) for n in runs[0]["mAP_by_pooling"]}
    return {
        "method": method, "pooling": str(own), "predicts": predicts,
        "settings": league.chosen(method),
        "held_out": league.scores(method, settings, league.parts)[predicts],
        "mAP": [run["mAP_by_pooling"][predicts] for run in runs], "mAP_by_pooling": by_pooling,
        "train_seconds": fmean(run["train_seconds"] for run in runs),
    }  # fmt: skip


def league_table(content: Content) -> pd.DataFrame:
    """The table of a kept league (study "league"), with the origin of each method; see WHOSE."""
    about = {"study": "league", "dataset": content["dataset"], "profile": content["profile"]}
    rows = [
        about | entry | {"pooling": pooling, "seed": seed, "mAP": score}
        for pooling, entry in _entries(content)
        for seed, score in zip(content["seeds"], entry["mAP"], strict=True)
    ]
    table = as_table(rows)
    return table.assign(whose=table["method"].map(whose))


def _entries(content: Content) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(pooling, entry) of every method: that with the mean is first, that with its own last."""
    plain = {e["method"]: e for e in reversed(content["final"])}
    own = {e["method"]: e for e in content["final"]}
    yield from (("mean", plain[method]) for method in own)
    yield from (("own", entry) for entry in own.values())


def best_on_held_out(content: Content, pooling: str, origin: str) -> str:
    """The method of an origin (see WHOSE) that is best on held-out data, with one pooling."""
    entries = [entry for how, entry in _entries(content) if how == pooling]
    ours = [entry for entry in entries if whose(entry["method"]) == origin]
    return max(ours, key=lambda entry: entry["held_out"])["method"]


def poolings(content: Content) -> pd.DataFrame:
    """Final mAP with each pooling in prediction: trained with the mean, the mean over seeds."""
    rows = [
        (entry["method"], title_of(entry["method"]), name, score)
        for pooling, entry in _entries(content) if pooling == "mean"
        for name, score in entry["mAP_by_pooling"].items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "title", "pooling", "mAP"])


def added_by_scl(table: pd.DataFrame) -> pd.DataFrame:
    """What SCL adds to every term, in a table of one data set and pooling; the most comes first."""
    present = set(table["method"])
    rows = [
        (spec.term, title_of(spec.term), *gain(table, method, spec.term))
        for method, spec in METHODS.items()
        if spec.consistency == "scl" and {method, spec.term} <= present
    ]
    found = pd.DataFrame(rows, columns=["term", "title", "gain", "low", "high"])
    return found.sort_values("gain", ascending=False, ignore_index=True)
