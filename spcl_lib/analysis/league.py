"""The league's results: what is kept of its runs, and tables of it.

Every method stands there twice: with the mean in training and prediction (pooling "mean"), and with
the poolings that held-out data chose for it ("own"), which may be the mean as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import pandas as pd

from spcl_lib.analysis.intervals import gain
from spcl_lib.analysis.runs import as_table
from spcl_lib.methods import METHODS, PAPER_METHODS, title_of
from spcl_lib.pooling import Pooling
from spcl_lib.runs.league import League, Settings
from spcl_lib.runs.settings import changes
from spcl_lib.runs.store import Run

Content = Mapping[str, Any]  # of a file league-DATASET.json
OURS = frozenset({"ren"})  # our own terms
WHOSE = ("sees all labels", "the paper", "ours", "another paper", "another paper, with SCL")


def whose(method: str) -> str:
    """The origin of a method, one of WHOSE."""
    spec = METHODS[method]
    if spec.sees_all_labels:
        return WHOSE[0]
    if spec.term in OURS:
        return WHOSE[2]
    if method in PAPER_METHODS:
        return WHOSE[1]
    return WHOSE[4] if spec.consistency else WHOSE[3]


# --- keeping --------------------------------------------------------------------------------------


def collect(league: League) -> dict[str, Any]:
    """What is kept of a league, whose runs must have finished.

    "search" has every tried setting with its mAP on held-out data. "final" has for every method one
    entry with the mean, and one with the chosen poolings if these differ from the mean.
    """
    entries = []
    for method in league.methods:
        mean, own = (league.chosen(method), "mean"), league.chosen_pooling(method)
        entries.append(_entry(league, method, *mean))
        if own != mean:
            entries.append(_entry(league, method, *own))
    method = league.methods[0]
    first = Run.of(league.final_configs(method, league.chosen(method))[0]).finished()
    return {
        "dataset": league.dataset, "profile": league.profile, "machine": first["machine"],
        "seeds": list(league.seeds), "report_images": first["report_images"],
        "train_images": first["train_images"], "search": search_rows(league), "final": entries,
    }  # fmt: skip


def search_rows(league: League) -> list[dict[str, Any]]:
    """The settings of every run of a finished search, with its mAP on held-out data."""
    return [
        {"method": config.method, **changes(config),
         "mAP_by_pooling": Run.of(config).finished()["mAP_by_pooling"]}
        for title, configs in league.rounds() if title != "final" for config in configs
    ]  # fmt: skip


def _entry(league: League, method: str, settings: Settings, predicts: str) -> dict[str, Any]:
    """A method with one pooling in training and one in prediction."""
    runs = [Run.of(config).finished() for config in league.final_configs(method, settings)]
    by_pooling = {n: fmean(r["mAP_by_pooling"][n] for r in runs) for n in runs[0]["mAP_by_pooling"]}
    return {
        "method": method, "pooling": _pooling_of(settings), "predicts": predicts,
        "settings": league.chosen(method),
        "mAP": [run["mAP_by_pooling"][predicts] for run in runs], "mAP_by_pooling": by_pooling,
        "OF1": fmean(run["at_threshold"]["OF1"] for run in runs),
        "OF1_at_0.5": fmean(run["at_0.5"]["OF1"] for run in runs),
        "train_seconds": fmean(run["train_seconds"] for run in runs),
    }  # fmt: skip


def _pooling_of(settings: Mapping[str, Any]) -> str:
    return str(Pooling(settings.get("pooling", "mean"), settings.get("pooling_strength", 0.0)))


# --- tables ---------------------------------------------------------------------------------------


def league_table(content: Content) -> pd.DataFrame:
    """The table of a kept league (study "league"), with the origin of each method; see WHOSE."""
    about = {"study": "league", "dataset": content["dataset"], "profile": content["profile"]}
    rows = [
        about | entry | {"pooling": pooling, "seed": seed, "mAP": score, "OF1": entry["OF1_at_0.5"]}
        for pooling, entry in _entries(content)
        for seed, score in zip(content["seeds"], entry["mAP"], strict=True)
    ]
    table = as_table(rows)
    return table.assign(whose=table["method"].map(whose))


def _entries(content: Content) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(pooling, entry) of every method, with the mean and with its own pooling."""
    plain = {e["method"]: e for e in reversed(content["final"])}  # the entry with the mean is first
    own = {e["method"]: e for e in content["final"]}
    yield from (("mean", plain[method]) for method in own)
    yield from (("own", entry) for entry in own.values())


def held_out_scores(content: Content) -> pd.DataFrame:
    """What held-out data said of every method as it was chosen: mAP over the parts, best first."""
    rows = []
    for pooling, entry in _entries(content):
        parts = _parts_of(content, entry["method"], entry["pooling"])
        score = fmean(part["mAP_by_pooling"][entry["predicts"]] for part in parts)
        rows.append((pooling, entry["method"], whose(entry["method"]), score))
    table = pd.DataFrame(rows, columns=["pooling", "method", "whose", "mAP"])
    return table.sort_values("mAP", ascending=False, ignore_index=True)


def _parts_of(content: Content, method: str, pooling: str) -> list[Mapping[str, Any]]:
    """The rows of the search with a method's chosen settings, one for every held-out part."""
    tried: dict[str, list[Mapping[str, Any]]] = {}
    for row in content["search"]:
        settings = {k: v for k, v in row.items() if k not in ("held_out", "mAP_by_pooling")}
        if row["method"] == method and _pooling_of(settings) == pooling:
            tried.setdefault(str(sorted(settings.items())), []).append(row)

    def score(rows: list[Mapping[str, Any]]) -> float:
        return fmean(row["mAP_by_pooling"]["mean"] for row in rows)

    # The best were repeated with all parts, and the mean over these decided.
    return max(tried.values(), key=lambda rows: (len(rows), score(rows)))


def best_on_held_out(content: Content, pooling: str, origin: str) -> str:
    """The method of an origin (see WHOSE) that is best on held-out data, with one pooling."""
    scores = held_out_scores(content)
    found = scores[(scores["pooling"] == pooling) & (scores["whose"] == origin)]
    return str(found["method"].iloc[0])


def poolings(content: Content) -> pd.DataFrame:
    """Final mAP with each pooling in prediction: trained with the mean, the mean over seeds."""
    rows = [
        (entry["method"], title_of(entry["method"]), name, score)
        for pooling, entry in _entries(content) if pooling == "mean"
        for name, score in entry["mAP_by_pooling"].items()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "title", "pooling", "mAP"])


def added_by_scl(table: pd.DataFrame) -> pd.DataFrame:
    """What SCL adds to every term that trained with it and without it; the largest gain first.

    The table has the rows of one data set and pooling.
    """
    present = set(table["method"])
    rows = [
        (spec.term, title_of(spec.term), *gain(table, method, spec.term))
        for method, spec in METHODS.items()
        if spec.consistency == "scl" and {method, spec.term} <= present
    ]
    found = pd.DataFrame(rows, columns=["term", "title", "gain", "low", "high"])
    return found.sort_values("gain", ascending=False, ignore_index=True)
