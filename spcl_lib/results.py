"""From finished runs to the table and the verdicts in words.

A run is the content of its metrics.json. Runs come from results/ on this machine, or from the
small reference files that are kept under version control (notebooks/reference/).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl_lib import paths
from spcl_lib.config import PROFILES, make_config
from spcl_lib.data.cache import replacing
from spcl_lib.errors import UserError, unknown
from spcl_lib.experiment import finished
from spcl_lib.losses import METHODS

if TYPE_CHECKING:
    import pandas as pd

Run = dict[str, Any]
Runs = list[Run]

SOURCES = ("reference", "results")


# --- reading and keeping --------------------------------------------------------------------------


def load_runs(source: str, dataset: str, profile: str) -> Runs:
    """Finished runs of a data set, ordered by method and seed.

    Args:
        source: "results": runs on this machine whose configuration is the profile's, unmodified;
            "reference": the runs kept under version control.
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].

    Raises:
        UserError: an unknown name, or no run; the message names the command that makes them.
    """
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    if dataset not in PROFILES:
        raise unknown("data set", dataset, PROFILES)
    if profile not in PROFILES[dataset]:
        raise unknown(f"profile of {dataset}", profile, PROFILES[dataset])
    runs = (_read_results if source == "results" else _read_reference)(dataset, profile)
    return _sorted(runs)


def _read_results(dataset: str, profile: str) -> Runs:
    runs = []
    for folder in (paths.results() / f"{dataset}-{profile}").glob("*-seed*"):
        match = re.fullmatch(r"(\w+)-seed(\d+)", folder.name)  # no digest: not modified
        if match and match[1] in METHODS:
            run = finished(make_config(dataset, match[1], int(match[2]), profile))
            runs += [] if run is None else [run]  # None: made with other defaults than today's
    if not runs:
        raise UserError(
            f"no finished run of {dataset} (profile {profile}) in '{paths.results()}'; "
            f"make them with: ./reproduce.sh --dataset {dataset} --profile {profile}"
        )
    return runs


def _reference_file(dataset: str, profile: str) -> Path:
    return paths.reference() / f"{dataset}-{profile}.json"


def _read_reference(dataset: str, profile: str) -> Runs:
    file = _reference_file(dataset, profile)
    try:
        return json.loads(file.read_text())["runs"]
    except FileNotFoundError:
        raise UserError(
            f"there are no reference results '{file.name}'; make the runs with "
            f"./reproduce.sh --dataset {dataset} --profile {profile} and read them with "
            "source=results, or keep them with: "
            f"python -m spcl_lib reference --dataset {dataset} --profile {profile}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"reference file '{file}' is damaged ({error}); make it anew") from error


def references() -> list[tuple[str, str]]:
    """(data set, profile) of every reference file that is there."""
    names = sorted(f.stem for f in paths.reference().glob("*.json"))
    pairs = [(d, p) for d in PROFILES for p in PROFILES[d]]
    return [(d, p) for d, p in pairs if f"{d}-{p}" in names]


def save_reference(dataset: str, profile: str) -> Path:
    """Keeps this machine's finished runs as the reference results: one run a line, rounded.

    Returns:
        The file, notebooks/reference/<dataset>-<profile>.json.

    Raises:
        UserError: no run has finished.
    """
    runs = load_runs("results", dataset, profile)
    file = _reference_file(dataset, profile)
    lines = [json.dumps(_rounded(run), separators=(",", ":"), sort_keys=True) for run in runs]
    with replacing(file) as temporary:
        temporary.write_text('{"runs": [\n' + ",\n".join(lines) + "\n]}\n")
    return file


def _rounded(value: Any) -> Any:
    """Floats to 4 decimals, settings apart: 1e-5 is a rate, and must stay one."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: v if k == "config" else _rounded(v) for k, v in value.items()}
    return value


def _sorted(runs: Runs) -> Runs:
    rank = {name: i for i, name in enumerate(METHODS)}
    return sorted(runs, key=lambda r: (rank.get(r["method"], len(rank)), r["method"], r["seed"]))


# --- arithmetic -----------------------------------------------------------------------------------


def label(method: str) -> str:
    """How a method is written for people: "en_scl" is EN + SCL."""
    return "Full" if method == "full" else method.upper().replace("_", " + ")


def by_method(runs: Runs) -> dict[str, Runs]:
    """Runs grouped by method, methods in the order of the table and runs by seed."""
    groups: dict[str, Runs] = {}
    for run in _sorted(runs):
        groups.setdefault(run["method"], []).append(run)
    return groups


def paired(runs: Runs, method: str, other: str) -> list[float]:
    """Gains in mAP of `method` over `other`, one for every seed that both have."""
    scores = {name: {r["seed"]: r["mAP"] for r in runs if r["method"] == name}
              for name in (method, other)}  # fmt: skip
    seeds = sorted(scores[method].keys() & scores[other].keys())
    return [scores[method][seed] - scores[other][seed] for seed in seeds]


def table(runs: Runs) -> pd.DataFrame:
    """One row per method, in the order of METHODS.

    Returns:
        Columns: mAP, its standard deviation over seeds (ddof = 1; NaN for one seed), seeds, gain
        over AN paired by seed and its standard deviation, gap_closed in percent, OF1 and CF1 at
        probability 0.5, train_seconds. Scores are means in percent. What cannot be computed,
        because AN or Full is missing, is NaN.
    """
    import pandas as pd

    groups = by_method(runs)
    means = {name: _mean([r["mAP"] for r in members]) for name, members in groups.items()}
    rows = []
    for name, members in groups.items():
        gains = paired(runs, name, "an")
        rows.append({
            "method": name, "mAP": means[name], "std": _std([r["mAP"] for r in members]),
            "seeds": len(members), "gain": _mean(gains), "gain_std": _std(gains),
            "gap_closed": _gap_closed(means, name),
            "OF1": _mean([r["at_0.5"]["OF1"] for r in members]),
            "CF1": _mean([r["at_0.5"]["CF1"] for r in members]),
            "train_seconds": _mean([r["train_seconds"] for r in members]),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("method")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def _std(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _gap_closed(means: dict[str, float], method: str) -> float:
    """(mAP - mAP_AN) / (mAP_Full - mAP_AN) in percent; NaN without a gap to close."""
    gap = means.get("full", math.nan) - means.get("an", math.nan)
    return 100 * (means[method] - means["an"]) / gap if gap > 0 else math.nan


def per_class(runs: Runs) -> pd.DataFrame:
    """Mean AP over seeds in percent: classes (rows) by methods (columns)."""
    import pandas as pd

    rows = [{"method": r["method"], **r["AP"]} for r in runs]
    mean = pd.DataFrame(rows).groupby("method").mean().astype(float)
    return mean.loc[list(by_method(runs))].T.rename_axis("class")


def histories(runs: Runs) -> pd.DataFrame:
    """Learning curves: columns method, seed, epoch, mAP; evaluated epochs only."""
    import pandas as pd

    rows = [
        {"method": r["method"], "seed": r["seed"], "epoch": h["epoch"], "mAP": h["mAP"]}
        for r in runs
        for h in r["history"]
        if h.get("mAP") is not None
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "epoch", "mAP"])


# --- in words -------------------------------------------------------------------------------------

RULE = (
    "A difference is the mean over seeds of mAP differences, paired by seed, with their standard "
    "deviation. It counts as settled if it is larger than two standard errors (2 x standard "
    "deviation / square root of the number of seeds): a rough rule, no test."
)
_CLAIMS = (
    ("cl", "an"), ("scl", "an"), ("scl", "cl"), ("en", "an"), ("en_cl", "en"), ("en_scl", "en"),
    ("en_scl", "en_cl"),
)  # fmt: skip


def verdicts(runs: Runs) -> list[str]:
    """What the runs say about the paper's claims, one computed sentence each; see RULE."""
    sentences = [_worth_solving(runs)]
    sentences += [compared(runs, method, other) for method, other in _CLAIMS]
    return [*sentences, _best_spatial(runs)]


def compared(runs: Runs, method: str, other: str) -> str:
    """A sentence: does `method` beat `other`, does it not, or is it not settled?"""
    a, b = label(method), label(other)
    present = by_method(runs)
    missing = [label(name) for name in (method, other) if name not in present]
    if missing:
        return f"No verdict on {a} against {b}: no run of {' and '.join(missing)}."
    differences = paired(runs, method, other)
    if not differences:
        return f"No verdict on {a} against {b}: they have no seed in common."
    mean, spread, count = _mean(differences), _std(differences), len(differences)
    if count == 1:
        return f"Not settled: {a} against {b}, {mean:+.1f} mAP for one seed; spread needs two."
    amount = f"{mean:+.1f} ± {spread:.1f} mAP"
    if settled(differences) == 0:
        return f"Not settled by {count} seeds: {a} against {b}, {amount}."
    if mean > 0:
        return f"{a} beats {b}: {amount} over {count} seeds."
    return f"{a} does not beat {b} here: {amount} over {count} seeds."


def settled(differences: list[float]) -> int:
    """1 or -1 if differences over seeds are settled above or below 0 by the RULE, else 0."""
    mean, spread, count = _mean(differences), _std(differences), len(differences)
    if count < 2 or abs(mean) <= 2 * spread / math.sqrt(count):
        return 0
    return 1 if mean > 0 else -1


def _worth_solving(runs: Runs) -> str:
    sentence = compared(runs, "full", "an")
    if " beats " in sentence:
        return f"{sentence} This is the gap that single labels leave open."
    if "does not beat" in sentence:
        return f"{sentence} So there is no gap to close, and the task is not worth solving."
    return sentence


def _best_spatial(runs: Runs) -> str:
    spatial = [n for n in by_method(runs) if n in METHODS and METHODS[n].consistency == "scl"]
    if not spatial:
        return "No verdict on the best method with SCL: no run of one."
    rows = table(runs)
    best = rows.loc[spatial, "mAP"].idxmax()
    score, gain, closed = (float(rows.loc[best, c]) for c in ("mAP", "gain", "gap_closed"))
    sentence = f"The best method with SCL is {label(best)}: {score:.1f} mAP"
    if not math.isnan(gain):
        sentence += f", {gain:+.1f} against AN"
    if math.isnan(closed):
        return f"{sentence}. How much of the gap it closes needs runs of AN and of Full, above AN."
    sentence += f"; it closes {closed:.0f} % of the gap between AN and Full."
    overall = rows["mAP"].drop("full").idxmax()
    if overall != best:
        sentence += f" {label(overall)} is better ({rows.loc[overall, 'mAP']:.1f})."
    return sentence
