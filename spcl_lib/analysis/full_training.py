"""The best methods of a league with the whole network trained: does their order hold?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl_lib.analysis.league import consistency_gains, entries_of, whose
from spcl_lib.analysis.results import read_tables, write_tables
from spcl_lib.analysis.statistics import deviation, mean, sign_of_difference
from spcl_lib.config import RunConfig
from spcl_lib.methods import title_of
from spcl_lib.runs.league import Settings
from spcl_lib.runs.settings import changes
from spcl_lib.runs.store import Run
from spcl_lib.system import paths

if TYPE_CHECKING:
    import pandas as pd


def best_of_league(content: Mapping[str, Any], count: int, combined: bool) -> dict[str, Settings]:
    """The best methods of a league, with the mean, and their settings; without the paper's.

    Args:
        content: of `load_league`.
        count: number of methods.
        combined: whether a competitor's loss with SCL counts.
    """
    entries = entries_of(content, False)
    origins = {"ours", "competitor", *(["combined by us"] if combined else [])}
    others = [m for m in entries if whose(m) in origins]
    best = sorted(others, key=lambda m: -mean(entries[m]["mAP"]))[:count]
    return {m: entries[m]["settings"] for m in best}


def collect_full_training(configs: Mapping[str, Sequence[RunConfig]]) -> dict[str, Any]:
    """The content of the reference file.

    Args:
        configs: the result of `full_training_configs`.

    Raises:
        UserError: a run has not finished.
    """
    first = next(iter(configs.values()))[0]
    command = f"./reproduce.sh --league --full-training --dataset {first.dataset}"
    runs = {m: [Run.of(c).finished(command) for c in group] for m, group in configs.items()}
    facts = next(iter(runs.values()))[0]
    final = [
        {
            "method": method, "settings": changes(configs[method][0]),
            "mAP": [run["mAP"] for run in members],
            "train_seconds": mean([run["train_seconds"] for run in members]),
        }
        for method, members in runs.items()
    ]  # fmt: skip
    return {
        "dataset": first.dataset, "profile": first.profile, "machine": facts["machine"],
        "seeds": [c.seed for c in next(iter(configs.values()))],
        "report_images": facts["report_images"], "train_images": facts["train_images"],
        "final": final,
    }  # fmt: skip


def save_full_training(content: Mapping[str, Any]) -> Path:
    """Writes notebooks/reference/full-training-DATASET.json."""
    write_tables(_file(content["dataset"]), content)
    return _file(content["dataset"])


def load_full_training(dataset: str) -> dict[str, Any] | None:
    """The content of the reference file; None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    return read_tables(_file(dataset), "final")


def _file(dataset: str) -> Path:
    return paths.reference() / f"full-training-{dataset}.json"


def full_training_table(content: Mapping[str, Any], league: Mapping[str, Any]) -> pd.DataFrame:
    """One row per method, best first: full training beside the frozen network.

    Args:
        content: of `load_full_training`.
        league: of `load_league`.

    Returns:
        Columns: mAP of full training and its deviation over seeds, gap_closed, the mAP and
        gap_closed of the frozen network, and the origin. The seconds of the file are not compared:
        the runs shared the machine with others.
    """
    import pandas as pd

    frozen = {m: mean(e["mAP"]) for m, e in entries_of(league, False).items()}
    means = {e["method"]: mean(e["mAP"]) for e in content["final"]}
    rows = [
        {
            "method": title_of(e["method"]), "mAP": means[e["method"]], "std": deviation(e["mAP"]),
            "gap_closed": _share(means, e["method"]), "frozen": frozen.get(e["method"], math.nan),
            "frozen_gap_closed": _share(frozen, e["method"]) if e["method"] in frozen else math.nan,
            "whose": whose(e["method"]),
        }
        for e in content["final"]
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("method").sort_values("mAP", ascending=False)


def _share(means: Mapping[str, float], method: str) -> float:
    """The share of the gap between AN and Full that a method closes, in percent."""
    return 100 * (means[method] - means["an"]) / (means["full"] - means["an"])


def rank_correlation(table: pd.DataFrame) -> float:
    """Spearman's rank correlation between full training and the frozen network."""
    ranks = table[["mAP", "frozen"]].dropna().rank()
    return float(ranks["mAP"].corr(ranks["frozen"]))


def full_training_sentences(content: Mapping[str, Any], league: Mapping[str, Any]) -> list[str]:
    """Says which method is best, what SCL adds, and whether the order is that of the league."""
    table = full_training_table(content, league)
    scores = {e["method"]: e["mAP"] for e in content["final"]}
    ranked = sorted((m for m in scores if m != "full"), key=lambda m: -mean(scores[m]))
    first, rival = ranked[0], next(m for m in ranked if whose(m) == "competitor")
    best = table.loc[title_of(first)]
    sentences = [
        f"{title_of(first)} is the best of {len(ranked)} methods: {best['mAP']:.1f} mAP, "
        f"{best['gap_closed']:.0f} % of the gap between AN and Full."
    ]
    for method in dict.fromkeys((first, "en_scl")):
        if method != rival:
            sentences.append(_against(method, rival, scores))
    return [
        *sentences,
        *_added_by_scl(content),
        "The rank correlation between full training and the frozen network over "
        f"{table['frozen'].count()} methods is {rank_correlation(table):.2f}.",
    ]


def _added_by_scl(content: Mapping[str, Any]) -> list[str]:
    """What SCL adds to each term that trained with and without it: no sentence, or one."""
    told = [
        f"{row['gain']:+.1f} to {term}{'' if row['sign'] else ' (not settled)'}"
        for term, row in consistency_gains(content).iterrows()
    ]
    return [f"SCL adds {', '.join(told)}."] if told else []


def _against(method: str, rival: str, scores: Mapping[str, Sequence[float]]) -> str:
    gains = [a - b for a, b in zip(scores[method], scores[rival], strict=True)]
    verdict = {1: "ahead of", 0: "not settled against", -1: "behind"}[sign_of_difference(gains)]
    return (
        f"{title_of(method)} is {verdict} the best loss of another paper, {title_of(rival)}: "
        f"{mean(gains):+.1f} mAP (deviation over seeds {deviation(gains):.1f})."
    )
