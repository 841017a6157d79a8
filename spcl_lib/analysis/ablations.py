"""The ablations' reference file, made from finished runs, and their tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl_lib.analysis.results import read_tables, write_tables
from spcl_lib.analysis.statistics import mean, mean_and_spread, sign_of_difference
from spcl_lib.methods import title_of
from spcl_lib.runs.ablation import Ablation, ablation_configs
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_all
from spcl_lib.runs.store import Run
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Content = dict[str, Any]  # of a reference file
Scores = dict[str, dict[str, list[float]]]  # value -> method -> mAP of every seed


# --- keeping --------------------------------------------------------------------------------------


def collect_ablations(
    asked: Mapping[str, Ablation], dataset: str, profile: str, seeds: Sequence[int],
    data_root: str | Path | None = None,
) -> Content:  # fmt: skip
    """The content of the reference file, from finished runs.

    Args:
        asked: ablations by name.
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        seeds: seeds of the runs.
        data_root: see `paths.data_root`.

    Raises:
        UserError: a run has not finished.
    """
    rows, first, command = [], None, _command(dataset, profile)
    for name, ablation in asked.items():
        for (value, method), configs in ablation_configs(ablation, dataset, profile, seeds).items():
            runs = [Run.of(c).finished(command) for c in identify_all(configs, data_root)]
            first = first or runs[0]
            rows.append({
                "ablation": name, "value": value, "method": method,
                "usual": configs[0] == make_config(dataset, method, seeds[0], profile),
                "mAP": [run["mAP"] for run in runs],
            })  # fmt: skip
    texts = {name: {"question": a.question, "axis": a.axis} for name, a in asked.items()}
    return {
        "dataset": dataset, "profile": profile, "seeds": list(seeds), "ablations": texts,
        "machine": first["machine"], "rows": rows,
    }  # fmt: skip


def _command(dataset: str, profile: str) -> str:
    return f"python -m spcl_lib ablation all --dataset {dataset} --profile {profile}"


def _file(dataset: str, profile: str) -> Path:
    return paths.reference() / f"ablations-{dataset}-{profile}.json"


def save_ablations(content: Content) -> Path:
    """Puts ablations into notebooks/reference/ablations-DATASET-PROFILE.json, and gives the file.

    The file's other ablations stay.

    Raises:
        UserError: the file is damaged, or its ablations have other seeds.
    """
    file = _file(content["dataset"], content["profile"])
    kept = read_tables(file, "ablations", "rows")
    if kept is not None:
        others = [row for row in kept["rows"] if row["ablation"] not in content["ablations"]]
        if others and kept["seeds"] != content["seeds"]:
            raise UserError(
                f"'{file.name}' holds other ablations with the seeds {kept['seeds']}; give the "
                f"same --seeds, not {content['seeds']}"
            )
        texts = {row["ablation"]: kept["ablations"][row["ablation"]] for row in others}
        content = content | {
            "ablations": texts | content["ablations"], "rows": others + content["rows"]
        }  # fmt: skip
    write_tables(file, content)
    return file


def load_ablations(dataset: str, profile: str) -> Content:
    """The content of a reference file.

    Raises:
        UserError: there is no file, or it is damaged.
    """
    content = read_tables(_file(dataset, profile), "ablations", "rows")
    if content is None:
        raise UserError(
            f"there are no kept ablations of {dataset}, profile {profile}; make them with: "
            f"{_command(dataset, profile)} --keep"
        )
    return content


# --- showing --------------------------------------------------------------------------------------


def scores_of(content: Content, name: str) -> Scores:
    """The scores of an ablation: value -> method -> mAP of every seed, in the kept order."""
    found: Scores = {}
    for row in content["rows"]:
        if row["ablation"] == name:
            found.setdefault(row["value"], {})[row["method"]] = row["mAP"]
    return found


def usual_value(content: Content, name: str) -> str | None:
    """The profile's own value of an ablation; None if the ablation lacks it."""
    rows = (row for row in content["rows"] if row["ablation"] == name and row["usual"])
    return next((row["value"] for row in rows), None)


def ablation_table(content: Content, name: str) -> pd.DataFrame:
    """Mean ± deviation over seeds: one row per method, one column per value; * marks ours."""
    import pandas as pd

    scores, usual = scores_of(content, name), usual_value(content, name)
    columns = {
        f"{value}{' *' if value == usual else ''}":
        {title_of(m): mean_and_spread(s) for m, s in by_method.items()}
        for value, by_method in scores.items()
    }  # fmt: skip
    return pd.DataFrame(columns).rename_axis("method")


def ablation_sentences(content: Content, name: str) -> list[str]:
    """What an ablation shows: gains over AN if AN is part of it, else the best values."""
    scores = scores_of(content, name)
    if all("an" in by_method for by_method in scores.values()):
        return [_gains(scores, method) for method in ("scl", "en_scl", "full")]
    usual = usual_value(content, name)
    methods = next(iter(scores.values()))
    return [_best_value(scores, method, usual) for method in methods]


def _gains(scores: Scores, method: str) -> str:
    parts = []
    for value, by_method in scores.items():
        gains = _differences(by_method[method], by_method["an"])
        parts.append(f"{mean_and_spread(gains, '+')} at {value}{_unless_settled(gains)}")
    return f"{title_of(method)} against AN: {'; '.join(parts)}."


def _best_value(scores: Scores, method: str, usual: str | None) -> str:
    means = {value: mean(by_method[method]) for value, by_method in scores.items()}
    best = max(means, key=means.get)
    text = (
        f"{title_of(method)}: from the worst value to the best, mAP changes by "
        f"{max(means.values()) - min(means.values()):.1f}; "
    )
    if usual is None or best == usual:
        return f"{text}{best} is the best."
    gains = _differences(scores[best][method], scores[usual][method])
    return (
        f"{text}{best} is the best, {mean_and_spread(gains, '+')} against our {usual}"
        f"{_unless_settled(gains)}."
    )


def _differences(some: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(some, others, strict=True)]


def _unless_settled(differences: Sequence[float]) -> str:
    return "" if sign_of_difference(differences) else " (not settled)"
