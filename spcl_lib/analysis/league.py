"""The league's table: a small reference file from finished runs, and the rows from this file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.analysis.bootstrap import Resamples, interval_of
from spcl_lib.analysis.results import read_tables, write_tables
from spcl_lib.analysis.statistics import deviation, mean, sign_of_difference
from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS, PAPER_METHODS, title_of
from spcl_lib.pooling import Pooling
from spcl_lib.runs.league import LEAGUES, League, Settings, finished, search_conditions
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.store import Metrics, explain_content, read_tensors, run_folder
from spcl_lib.system import paths
from spcl_lib.system.shapes import require_tensor

if TYPE_CHECKING:
    import pandas as pd

Entry = dict[str, Any]  # a row of the file: one method with one pooling

RESAMPLES = 1000
OURS = frozenset({"ren"})  # our own terms; see terms.py


# --- keeping --------------------------------------------------------------------------------------


def collect(league: League, resamples: int = RESAMPLES) -> dict[str, Any]:
    """The content of the reference file of a finished league.

    Args:
        league: a league without unfinished runs.
        resamples: number of bootstrap resamples.

    Returns:
        "dataset", "profile", `search_conditions`, "machine" and other facts. "search": every tried
        setting with its mAP on validation data. "final": for every method one entry with the mean,
        and one with the chosen poolings if these differ from the mean.

    Raises:
        UserError: a run has not finished.
    """
    entries, draws = [], {}
    _, report = load_splits(league.final_configs("an", {})[0], league.data_root)
    resampled = Resamples(report.labels, report.ignored, len(league.seeds), resamples)
    for method in tqdm(league.methods, desc="intervals", unit="method"):
        best = league.chosen_pooling(method)
        for pooling, predicts in [({}, "mean"), *([best] if best != ({}, "mean") else [])]:
            entry, scores = _final_entry(league, method, pooling, predicts)
            entries.append(entry)
            draws[_key(entry)] = resampled.mean_average_precisions(scores)
    _add_intervals(entries, draws)
    first = finished(league.final_configs("an", {})[0])
    return {
        "dataset": league.dataset, "profile": league.profile,
        **search_conditions(league.dataset), "machine": first["machine"],
        "seeds": list(league.seeds), "report_images": len(report),
        "train_images": first["train_images"], "search": _search_rows(league), "final": entries,
    }  # fmt: skip


def _final_entry(
    league: League, method: str, pooling: Settings, predicts: str
) -> tuple[Entry, list[Tensor]]:
    """An entry and the scores of its runs, with a pooling in training and one in prediction."""
    configs = league.final_configs(method, pooling)
    runs = [finished(config) for config in configs]
    scores = [_scores_of(c, r, predicts) for c, r in zip(configs, runs, strict=True)]
    trained = str(Pooling(**_pooling_arguments(pooling)))
    entry = {
        "method": method, "pooling": trained, "predicts": predicts,
        "settings": league.chosen_settings(method),
        "mAP": [run["mAP_by_pooling"][predicts] for run in runs],
        "mAP_by_pooling": {
            name: mean([run["mAP_by_pooling"][name] for run in runs])
            for name in runs[0]["mAP_by_pooling"]
        },
        "OF1": mean([run["at_threshold"]["OF1"] for run in runs]),
        "CF1": mean([run["at_threshold"]["CF1"] for run in runs]),
        "OF1_at_0.5": mean([run["at_0.5"]["OF1"] for run in runs]),
        "train_seconds": mean([run["train_seconds"] for run in runs]),
    }  # fmt: skip
    return entry, scores


def _scores_of(config: RunConfig, run: Metrics, predicts: str) -> Tensor:
    """(N, C) scores of a run's report images with one of the poolings."""
    file = run_folder(config) / "scores.safetensors"
    stored = read_tensors(file)
    with explain_content(file):
        shape = run["report_images"], len(run["classes"])
        scores = stored[predicts]
        require_tensor(predicts, scores, shape, "float")
        if not scores.isfinite().all():
            raise ValueError(f"{predicts} has scores that are no numbers")
        return scores


def _pooling_arguments(settings: Settings) -> dict[str, Any]:
    return {
        "kind": settings.get("pooling", "mean"), "strength": settings.get("pooling_strength", 0.0)
    }  # fmt: skip


def _search_rows(league: League) -> list[Entry]:
    return [
        {"method": step.method, **settings, "mAP_by_pooling": found["mAP_by_pooling"]}
        for step in league.steps()
        for settings, found in league.results(step)
    ]


def _key(entry: Entry) -> tuple[str, str, str]:
    return entry["method"], entry["pooling"], entry["predicts"]


def save_league(content: dict[str, Any]) -> None:
    """Writes notebooks/reference/league-DATASET.json."""
    write_tables(_file(content["dataset"]), content)


def _file(dataset: str) -> Path:
    return paths.reference() / f"league-{dataset}.json"


def load_league(dataset: str) -> dict[str, Any] | None:
    """The content of a league's reference file; None if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    return read_tables(_file(dataset), "final", "search")


def leagues() -> dict[str, dict[str, Any]]:
    """The contents of all leagues' reference files, by data set."""
    found = {dataset: load_league(dataset) for dataset in LEAGUES}
    return {dataset: content for dataset, content in found.items() if content is not None}


# --- intervals ------------------------------------------------------------------------------------


def _add_intervals(entries: list[Entry], draws: dict[tuple[str, str, str], Tensor]) -> None:
    """Adds the intervals of the differences to AN and to the best competitor to every entry.

    An entry with the mean is compared with AN and the best competitor with the mean. An entry with
    other poolings is compared with AN with its own choice, and the best competitor with any.
    """
    rivals = [e for e in entries if whose(e["method"]) == "competitor"]
    for entry in entries:
        plain = entry["pooling"] == entry["predicts"] == "mean"
        equals = [r for r in rivals if not plain or r["pooling"] == r["predicts"] == "mean"]
        baselines = [_key(e) for e in entries if e["method"] == "an"]  # the mean, then its choice
        entry["against_an"] = _interval(draws, entry, baselines[0 if plain else -1])
        if equals:
            best = max(equals, key=lambda r: mean(r["mAP"]))
            entry["best_competitor"] = list(_key(best))
            entry["against_best"] = _interval(draws, entry, _key(best))


def _interval(
    draws: dict[tuple[str, str, str], Tensor], entry: Entry, other: tuple[str, str, str]
) -> list[float] | None:
    """Ends of the 95 % interval of a difference in mAP; None if there is no other entry."""
    if other not in draws or other == _key(entry):
        return None
    return interval_of(draws[_key(entry)] - draws[other])


# --- showing --------------------------------------------------------------------------------------


def league_table(content: dict[str, Any], best_pooling: bool = False) -> pd.DataFrame:
    """One row per method, best first.

    Args:
        content: the result of `load_league`.
        best_pooling: True takes each method's chosen poolings; False takes the mean for all.

    Returns:
        Columns: mAP and its deviation over seeds, gap_closed (share of the gap between AN and Full:
        both with the mean, or AN with its choice and the best Full there is), low and high of the
        difference to AN, OF1 at the run's own threshold, cost (training time relative to AN), the
        poolings, and the origin.
    """
    import pandas as pd

    entries = entries_of(content, best_pooling)
    means = {m: mean(e["mAP"]) for m, e in entries.items()}
    full = [mean(e["mAP"]) for e in content["final"] if e["method"] == "full"]
    gap = max(full if best_pooling else full[:1], default=math.nan) - means["an"]
    rows = [
        {
            "method": title_of(m), "mAP": means[m], "std": deviation(e["mAP"]),
            "gap_closed": 100 * (means[m] - means["an"]) / gap,
            "low": (e["against_an"] or [math.nan] * 2)[0],
            "high": (e["against_an"] or [math.nan] * 2)[1],
            "OF1": e["OF1"], "cost": e["train_seconds"] / entries["an"]["train_seconds"],
            "trained": e["pooling"], "predicts": e["predicts"], "whose": whose(m),
        }
        for m, e in entries.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("method").sort_values("mAP", ascending=False)


def leagues_side_by_side(found: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """All leagues in one table: mAP and the share of the gap closed, as text.

    Args:
        found: the result of `leagues`.

    Returns:
        One row per method, the largest mean share of the gap (own pooling) first. A column for
        the origin, and two for each data set: with the mean, and with each method's own pooling.
        None where a league lacks the method.
    """
    import pandas as pd

    columns: dict[str, dict[str, str]] = {"whose": {}}
    shares: dict[str, list[float]] = {}
    for dataset, content in found.items():
        for best_pooling, how in ((False, "mean"), (True, "own")):
            table = league_table(content, best_pooling)
            columns["whose"] |= table["whose"].to_dict()
            columns[f"{dataset}, {how}"] = {
                name: f"{row['mAP']:.1f} ({row['gap_closed']:.0f} %)"
                for name, row in table.iterrows()
            }
        for name, share in table["gap_closed"].items():
            shares.setdefault(name, []).append(share)
    order = sorted(shares, key=lambda name: -mean(shares[name]))
    return pd.DataFrame(columns).reindex(order).rename_axis("method")


def entries_of(content: Mapping[str, Any], best_pooling: bool) -> dict[str, Entry]:
    """The entries of a table by method: with the mean, or with the chosen poolings."""
    found: dict[str, Entry] = {}
    for entry in content["final"]:
        if entry["method"] not in found or best_pooling:
            found[entry["method"]] = entry
    return found


def whose(method: str) -> str:
    """The origin of a method, for a table."""
    spec = METHODS[method]
    if spec.sees_all_labels:
        return "sees all labels"
    if spec.term in OURS:
        return "ours"
    if method in PAPER_METHODS:
        return "the paper"
    return "combined by us" if spec.consistency else "competitor"


def consistency_gains(content: Mapping[str, Any]) -> pd.DataFrame:
    """What SCL adds to each term, with the mean, largest first.

    Args:
        content: of `load_league` or `load_full_training`.

    Returns:
        By title of the term: gain, its deviation over seeds (std), and sign of the difference (0:
        not settled).
    """
    import pandas as pd

    entries = entries_of(content, False)
    rows = []
    for method, entry in entries.items():
        base = entries.get(METHODS[method].term)
        if METHODS[method].consistency == "scl" and base is not None:
            gains = [a - b for a, b in zip(entry["mAP"], base["mAP"], strict=True)]
            rows.append({"term": title_of(base["method"]), "gain": mean(gains),
                         "std": deviation(gains), "sign": sign_of_difference(gains)})  # fmt: skip
    table = pd.DataFrame(rows, columns=["term", "gain", "std", "sign"])
    return table.set_index("term").sort_values("gain", ascending=False)


def pooling_scores(content: dict[str, Any], final: bool = False) -> pd.DataFrame:
    """The mAP of each method (rows, best first) with each pooling in prediction (columns).

    The networks are trained with the mean and the method's best settings.

    Args:
        content: the result of `load_league`.
        final: False: validation data, seed 0, the mean over the held-out parts. True: the final
            data, the mean over seeds.
    """
    import pandas as pd

    if final:
        found = {method: [entry] for method, entry in entries_of(content, False).items()}
    else:
        methods = dict.fromkeys(row["method"] for row in content["search"])
        found = {method: _rows_of_choice(content, method) for method in methods}
    means = {
        title_of(method): pd.DataFrame([part["mAP_by_pooling"] for part in parts]).mean()
        for method, parts in found.items()
    }
    return pd.DataFrame(means).T.rename_axis("method").sort_values("mean", ascending=False)


def _rows_of_choice(content: dict[str, Any], method: str) -> list[Entry]:
    """The rows of a method's chosen settings with the mean, one for every held-out part."""
    tried: dict[frozenset[tuple[str, Any]], list[Entry]] = {}
    for row in content["search"]:
        if row["method"] == method and "pooling" not in row:
            others = ("held_out", "mAP_by_pooling")
            settings = frozenset((k, v) for k, v in row.items() if k not in others)
            tried.setdefault(settings, []).append(row)
    means = {key: mean([r["mAP_by_pooling"]["mean"] for r in rows]) for key, rows in tried.items()}
    return tried[max(tried, key=lambda key: (len(tried[key]), means[key]))]


# --- in words -------------------------------------------------------------------------------------


def league_sentences(content: dict[str, Any]) -> list[str]:
    """Sentences about the league: the best method, ours, the paper's, and the gain of SCL."""
    sentences = []
    for best_pooling, how in ((False, "With the mean"), (True, "With the poolings chosen")):
        entries = entries_of(content, best_pooling)
        table = league_table(content, best_pooling)
        ranked = sorted(entries, key=lambda m: -mean(entries[m]["mAP"]))
        ranked = [m for m in ranked if not METHODS[m].sees_all_labels]
        first = ranked[0]
        sentences.append(
            f"{how}, {title_of(first)} is the best of {len(ranked)} methods: "
            f"{table.loc[title_of(first), 'mAP']:.1f} mAP, "
            f"{table.loc[title_of(first), 'gap_closed']:.0f} % of the gap between AN and Full."
        )
        ours = next((m for m in ranked if METHODS[m].term in OURS), None)
        if ours is not None:
            sentences.append(f"{how}: {_against(entries[ours])}")
        if "en_scl" in ranked:
            sentences.append(
                f"{how}, the paper's EN + SCL has place {ranked.index('en_scl') + 1} of "
                f"{len(ranked)}: {_against(entries['en_scl'])}"
            )
        if "iun" in entries:
            bound = mean(entries["iun"]["mAP"])
            better = [title_of(m) for m in ranked if mean(entries[m]["mAP"]) > bound]
            sentences.append(
                f"{how}: IUN, which leaves out exactly the hidden positives, closes "
                f"{table.loc['IUN', 'gap_closed']:.0f} %. "
                f"Methods that close more: {', '.join(better) or 'none'}."
            )
    return [*sentences, _consistency_sentence(content)]


def same_pooling_sentence(content: dict[str, Any]) -> str:
    """Which pooling in prediction is best on the final data, and who is first if all use it.

    Args:
        content: the result of `load_league`.
    """
    scores = pooling_scores(content, final=True)
    methods = scores.drop(
        [title_of(m) for m in METHODS if METHODS[m].sees_all_labels], errors="ignore"
    )
    best = methods.idxmax(axis=1)
    pooling = best.mode()[0]
    column = scores[pooling]
    first, second = methods[pooling].nlargest(2).index
    share = (column[first] - column["AN"]) / (column["Full"] - column["AN"])
    return (
        f"{(best == pooling).sum()} of the {len(methods)} methods are best "
        f"with {pooling} in prediction. With it for all, {first} is first: "
        f"{column[first]:.1f} mAP, {100 * share:.0f} % of the gap between AN and Full. "
        f"{second} has {column[second]:.1f}."
    )


def _against(entry: Entry) -> str:
    name, rival = title_of(entry["method"]), title_of(entry["best_competitor"][0])
    if entry["against_best"] is None:
        return f"{name} is itself the best loss of another paper."
    low, high = entry["against_best"]
    verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not settled against"
    return (
        f"{name} is {verdict} the best loss of another paper, {rival}: the 95 % interval of the "
        f"difference is {low:+.2f} to {high:+.2f}."
    )


def _consistency_sentence(content: dict[str, Any]) -> str:
    sign = consistency_gains(content)["sign"]
    adds, takes = list(sign.index[sign > 0]), list(sign.index[sign < 0])
    return (
        f"SCL helps {len(adds)} of {len(sign)} terms ({', '.join(adds) or 'none'}) and harms "
        f"{len(takes)} ({', '.join(takes) or 'none'}); for the others it is not settled."
    )
