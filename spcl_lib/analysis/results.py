"""Turns finished runs into the table and into sentences about the paper's claims.

A run is the content of its metrics.json. Runs come from results/ on this machine, or from the
small reference files under version control (notebooks/reference/).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl_lib.analysis.statistics import deviation, mean, mean_and_spread, sign_of_difference
from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS, title_of
from spcl_lib.runs import store
from spcl_lib.runs.profiles import PROFILES
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_data
from spcl_lib.runs.store import run_folder
from spcl_lib.system import paths
from spcl_lib.system.checksums import read_summed, with_sum
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


Run = dict[str, Any]  # content of a metrics.json
Runs = list[Run]

RUN_SOURCES = ("reference", "results")


# --- reading and keeping --------------------------------------------------------------------------


def load_runs(
    source: str,
    dataset: str,
    profile: str,
    overrides: Mapping[str, object] | None = None,
    data_root: str | Path | None = None,
) -> Runs:
    """Finished runs of a data set, ordered by method and seed.

    Args:
        source: "results" takes this machine's runs with the profile's settings; "reference" takes
            the runs under version control.
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        overrides: other settings of this machine's runs.
        data_root: the data of this machine's runs, see `paths.data_root`. It matters only if
            there are runs on more than one copy of the data.

    Raises:
        UserError: a name is unknown, or there is no run; the message names the command for it.
    """
    if source not in RUN_SOURCES:
        raise unknown_name("source", source, RUN_SOURCES)
    if dataset not in PROFILES:
        raise unknown_name("data set", dataset, PROFILES)
    if profile not in PROFILES[dataset]:
        raise unknown_name(f"profile of {dataset}", profile, PROFILES[dataset])
    if source == "reference":
        return _sort_runs(_read_reference(dataset, profile))
    return _sort_runs(_read_results(dataset, profile, overrides or {}, data_root))


def _read_results(
    dataset: str, profile: str, overrides: Mapping[str, object], data_root: str | Path | None
) -> Runs:
    first = make_config(dataset, "an", 0, profile, overrides)
    content = _content_of_results(first, data_root)
    runs = []
    for folder in run_folder(replace(first, content=content)).parent.glob("*-seed*"):
        match = re.fullmatch(r"(\w+)-seed(\d+)(-\w{8})?", folder.name)
        if match and match[1] in METHODS:
            config = make_config(dataset, match[1], int(match[2]), profile, overrides)
            config = replace(config, content=content)
            run = store.Run.of(config).metrics if run_folder(config) == folder else None
            runs += [] if run is None else [run]  # None: the run had other default settings
    if not runs:
        raise UserError(
            f"no finished run of {dataset} (profile {profile}) in '{paths.results()}'; "
            f"make them with: ./reproduce.sh --dataset {dataset} --profile {profile}"
        )
    return runs


def _content_of_results(config: RunConfig, data_root: str | Path | None) -> str:
    """`content` of the runs to read: that of the data root, or the only one with runs."""
    if config.dataset == "scenes":
        return ""
    start = f"{config.dataset}-{config.profile}-"
    found = [folder.name.removeprefix(start) for folder in paths.results().glob(f"{start}*")]
    found = [content for content in found if re.fullmatch("[0-9a-f]{8}", content)]
    if data_root is None and len(found) == 1:
        return found[0]
    return identify_data(config, data_root).content


def _reference_file(dataset: str, profile: str) -> Path:
    return paths.reference() / f"{dataset}-{profile}.json"


def _read_reference(dataset: str, profile: str) -> Runs:
    content = read_tables(_reference_file(dataset, profile), "runs")
    if content is None:
        raise UserError(
            f"there are no reference results '{dataset}-{profile}.json'; make the runs with "
            f"./reproduce.sh --dataset {dataset} --profile {profile} and read them with "
            "source=results, or keep them with: "
            f"python -m spcl_lib reference --dataset {dataset} --profile {profile}"
        )
    return content["runs"]


def references() -> list[tuple[str, str]]:
    """(data set, profile) of every reference file."""
    names = sorted(f.stem for f in paths.reference().glob("*.json"))
    pairs = [(d, p) for d in PROFILES for p in PROFILES[d]]
    return [(d, p) for d, p in pairs if f"{d}-{p}" in names]


def save_reference(dataset: str, profile: str, data_root: str | Path | None = None) -> Path:
    """Keeps this machine's finished runs as the reference results: one run per line, rounded.

    The arguments are those of `load_runs`.

    Returns:
        The file, notebooks/reference/<dataset>-<profile>.json.

    Raises:
        UserError: no run has finished.
    """
    runs = load_runs("results", dataset, profile, None, data_root)
    file = _reference_file(dataset, profile)
    write_tables(file, {"runs": [dict(sorted(run.items())) for run in runs]})
    return file


def write_tables(file: Path, content: Mapping[str, Any]) -> None:
    """Writes a reference file: one row per line for each list, with rounded numbers.

    NaN becomes null because JSON has no NaN. The first line has a checksum.
    """
    parts = []
    for name, value in with_sum(round_floats(dict(content))).items():
        text = _json(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(_json(row) for row in value) + "\n]"
        parts.append(f'"{name}": {text}')
    with atomic_write(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def read_tables(file: Path, *needed: str) -> dict[str, Any] | None:
    """The content of a file that `write_tables` wrote; None if there is no file.

    Raises:
        UserError: the file is damaged, or lacks one of the `needed` names.
    """
    if not file.is_file():
        return None
    try:
        content = read_summed(file)
        for name in needed:
            content[name]
        return content
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"reference file '{file}' is damaged ({error}); make it again") from error


def _json(value: object) -> str:
    return json.dumps(round_floats(value), separators=(",", ":"), allow_nan=False)


def round_floats(value: Any) -> Any:
    """Rounds floats to 6 digits (a score in percent: 4 decimals), but not a run's configuration.

    NaN becomes None.
    """
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    if isinstance(value, list):
        return [round_floats(v) for v in value]
    if isinstance(value, dict):
        return {k: v if k == "config" else round_floats(v) for k, v in value.items()}
    return value


def _sort_runs(runs: Runs) -> Runs:
    rank = {name: i for i, name in enumerate(METHODS)}
    return sorted(runs, key=lambda r: (rank.get(r["method"], len(rank)), r["method"], r["seed"]))


def by_method(runs: Runs) -> dict[str, Runs]:
    """Runs by method: methods in the order of the table, runs in the order of the seeds."""
    groups: dict[str, Runs] = {}
    for run in _sort_runs(runs):
        groups.setdefault(run["method"], []).append(run)
    return groups


def paired_gains(runs: Runs, method: str, other: str) -> list[float]:
    """Gains in mAP of `method` over `other`, one for every seed of both."""
    scores = {name: {r["seed"]: r["mAP"] for r in runs if r["method"] == name}
              for name in (method, other)}  # fmt: skip
    seeds = sorted(scores[method].keys() & scores[other].keys())
    return [scores[method][seed] - scores[other][seed] for seed in seeds]


def table(runs: Runs) -> pd.DataFrame:
    """One row per method, in the order of METHODS.

    Returns:
        Columns: mAP, its standard deviation over seeds (ddof = 1; NaN for one seed), seeds, gain
        over AN paired by seed and its standard deviation, gap_closed in percent, OF1 and CF1 at
        probability 0.5, train_seconds. Scores are means in percent. Values that need AN or Full
        are NaN if it is missing.
    """
    import pandas as pd

    groups = by_method(runs)
    means = {name: mean([r["mAP"] for r in members]) for name, members in groups.items()}
    rows = []
    for name, members in groups.items():
        gains = paired_gains(runs, name, "an")
        rows.append({
            "method": name, "mAP": means[name], "std": deviation([r["mAP"] for r in members]),
            "seeds": len(members), "gain": mean(gains), "gain_std": deviation(gains),
            "gap_closed": _gap_closed(means, name),
            "OF1": mean([r["at_0.5"]["OF1"] for r in members]),
            "CF1": mean([r["at_0.5"]["CF1"] for r in members]),
            "train_seconds": mean([r["train_seconds"] for r in members]),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("method")


def _gap_closed(means: dict[str, float], method: str) -> float:
    """(mAP - mAP_AN) / (mAP_Full - mAP_AN) in percent; NaN if there is no gap."""
    gap = means.get("full", math.nan) - means.get("an", math.nan)
    return 100 * (means[method] - means["an"]) / gap if gap > 0 else math.nan


def per_class(runs: Runs) -> pd.DataFrame:
    """Mean AP over seeds in percent: classes (rows) by methods (columns)."""
    import pandas as pd

    rows = [{"method": r["method"], **r["AP"]} for r in runs]
    means = pd.DataFrame(rows).groupby("method").mean().astype(float)
    return means.loc[list(by_method(runs))].T.rename_axis("class")


def histories(runs: Runs) -> pd.DataFrame:
    """Learning curves of the evaluated epochs: columns method, seed, epoch, mAP."""
    import pandas as pd

    rows = [
        {"method": r["method"], "seed": r["seed"], "epoch": h["epoch"], "mAP": h["mAP"]}
        for r in runs
        for h in r["history"]
        if h.get("mAP") is not None
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "epoch", "mAP"])


# --- in words -------------------------------------------------------------------------------------

_CLAIMS = (
    ("cl", "an"), ("scl", "an"), ("scl", "cl"), ("en", "an"), ("en_cl", "en"), ("en_scl", "en"),
    ("en_scl", "en_cl"),
)  # fmt: skip


def claim_sentences(runs: Runs) -> list[str]:
    """A sentence for each of the paper's claims, computed from the runs by DIFFERENCE_RULE."""
    sentences = [_worth_solving(runs)]
    sentences += [compare_methods(runs, method, other) for method, other in _CLAIMS]
    return [*sentences, _best_spatial(runs)]


def compare_methods(runs: Runs, method: str, other: str) -> str:
    """Says whether `method` beats `other`, does not beat it, or whether this is not settled."""
    a, b = title_of(method), title_of(other)
    present = by_method(runs)
    missing = [title_of(name) for name in (method, other) if name not in present]
    if missing:
        return f"No verdict on {a} against {b}: no run of {' and '.join(missing)}."
    differences = paired_gains(runs, method, other)
    if not differences:
        return f"No verdict on {a} against {b}: they have no seed in common."
    amount, count = f"{mean_and_spread(differences, '+')} mAP", len(differences)
    if count == 1:
        return f"Not settled: {a} against {b}, {amount} for one seed; spread needs two."
    sign = sign_of_difference(differences)
    if sign == 0:
        return f"Not settled by {count} seeds: {a} against {b}, {amount}."
    if sign > 0:
        return f"{a} beats {b}: {amount} over {count} seeds."
    return f"{a} does not beat {b} here: {amount} over {count} seeds."


def _worth_solving(runs: Runs) -> str:
    sentence = compare_methods(runs, "full", "an")
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
    sentence = f"The best method with SCL is {title_of(best)}: {score:.1f} mAP"
    if not math.isnan(gain):
        sentence += f", {gain:+.1f} against AN"
    if math.isnan(closed):
        return f"{sentence}. How much of the gap it closes needs runs of AN and of Full, above AN."
    sentence += f"; it closes {closed:.0f} % of the gap between AN and Full."
    overall = rows["mAP"].drop("full").idxmax()
    if overall != best:
        sentence += f" {title_of(overall)} is better ({rows.loc[overall, 'mAP']:.1f})."
    return sentence
