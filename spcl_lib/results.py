"""From finished runs to the table, the verdicts in words, the report and the README's numbers.

A run is the content of its metrics.json. Runs come from results/ on this machine, or from the
small reference files that are kept under version control (notebooks/reference/).
"""

from __future__ import annotations

import html
import json
import math
import re
import statistics
import tempfile
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
    ("cl", "an"), ("scl", "an"), ("scl", "cl"), ("en", "an"), ("en_scl", "en"), ("en_scl", "en_cl"),
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
    if abs(mean) <= 2 * spread / math.sqrt(count):
        return f"Not settled by {count} seeds: {a} against {b}, {amount}."
    if mean > 0:
        return f"{a} beats {b}: {amount} over {count} seeds."
    return f"{a} does not beat {b} here: {amount} over {count} seeds."


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


# --- for people -----------------------------------------------------------------------------------


def readable(runs: Runs) -> pd.DataFrame:
    """The table as texts: mean ± standard deviation over seeds."""
    import pandas as pd

    rows = [
        {
            "method": label(str(name)),
            "mAP %": _pm(row["mAP"], row["std"]),
            "gain over AN": "" if name == "an" else _pm(row["gain"], row["gain_std"], "+"),
            "gap closed": "" if name == "an" or math.isnan(row["gap_closed"])
            else f"{row['gap_closed']:.0f} %",
            "OF1": f"{row['OF1']:.1f}",
            "CF1": f"{row['CF1']:.1f}",
            "seeds": str(int(row["seeds"])),
            "training": _duration(row["train_seconds"]),
        }
        for name, row in table(runs).iterrows()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("method").rename_axis(None)  # no header row for a name


def others(dataset: str, profile: str) -> pd.DataFrame:
    """The readable tables of all reference files but one, with the data in a column; short."""
    import pandas as pd

    frames = [
        readable(load_runs("reference", d, p))[["mAP %", "gain over AN", "gap closed", "seeds"]]
        .rename_axis("method").reset_index().assign(data=f"{d}, {p}").set_index(["data", "method"])
        for d, p in references()
        if (d, p) != (dataset, profile)
    ]  # fmt: skip
    return pd.concat(frames) if frames else pd.DataFrame()


def _pm(mean: float, spread: float, sign: str = "") -> str:
    if math.isnan(mean):
        return ""
    text = f"{mean:{sign}.1f}"
    return text if math.isnan(spread) else f"{text} ± {spread:.1f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def provenance(runs: Runs) -> list[str]:
    """What was run, where and when: a few lines."""
    seeds = [len(members) for members in by_method(runs).values()]
    each = f"{seeds[0]}" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
    first = runs[0]
    machines = sorted({f"{m['device']}, {_plural(m['threads'], 'thread')} a run, torch {m['torch']}"
                       for m in (r["machine"] for r in runs)})  # fmt: skip
    dates = sorted({r["finished"] for r in runs})
    commits = sorted({str(r["machine"]["commit"]) for r in runs})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return [
        f"{first['dataset']}, profile {first['profile']}: {len(seeds)} methods, seeds: {each} each;"
        f" {first['train_images']:,} training images with one label each, "
        f"{first['report_images']:,} images to report on, {_plural(first['epochs'], 'epoch')}",
        f"machine: {'; '.join(machines)}",
        f"finished: {span}; commit {', '.join(commits)}",
    ]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- README ---------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(<!-- table (\w+)-(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def readme_table(runs: Runs) -> str:
    """The table in Markdown, with a line on seeds, machine and date below it."""
    frame = readable(runs).drop(columns="seeds").rename_axis("method").reset_index()
    rows = [list(frame.columns), ["---"] + ["--:"] * (frame.shape[1] - 1), *frame.values.tolist()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    what, machine, when = provenance(runs)
    note = f"{what.partition(': ')[2]}. Mean ± standard deviation over seeds. {machine}; {when}."
    return "\n".join([*lines, "", f"<sub>{note[0].upper()}{note[1:]}</sub>"])


def update_readme(readme: Path | None = None) -> bool:
    """Writes every `<!-- table DATASET-PROFILE -->` block of the README from its reference file.

    Blocks without a reference file are left as they are.

    Returns:
        Whether anything changed.
    """
    readme = readme or paths.project() / "README.md"
    old = readme.read_text()
    new = with_tables(old)
    if new != old:
        with replacing(readme) as temporary:
            temporary.write_text(new)
    return new != old


def with_tables(text: str) -> str:
    """A text with its table blocks filled from the reference files."""

    def fill(block: re.Match[str]) -> str:
        start, dataset, profile, _, end = block.groups()
        if (dataset, profile) not in references():
            return block[0]
        return f"{start}\n{readme_table(load_runs('reference', dataset, profile))}\n\n{end}"

    return _BLOCK.sub(fill, text)


# --- report ---------------------------------------------------------------------------------------


def write_report(dataset: str, profile: str) -> Path:
    """Writes results/report.html: the notebook 02_results on this machine's runs, in one file.

    The page needs nothing from elsewhere: no scripts, figures embedded. The same page stays as
    report-<dataset>-<profile>.html when report.html is written for other data.

    Returns:
        The path of report.html.

    Raises:
        UserError: no run has finished, or Jupyter's packages are not installed.
    """
    load_runs("results", dataset, profile)  # before anything is started
    try:
        from spcl_lib.notebooks import execute

        with tempfile.TemporaryDirectory() as folder:
            notebook = Path(folder) / "report.ipynb"
            parameters = {"source": "results", "dataset": dataset, "profile": profile}
            execute("02_results", parameters, notebook)
            page = _as_page(notebook, f"spcl: {dataset}, profile {profile}")
    except ImportError as error:
        raise UserError(
            f"the report needs Jupyter's packages ({error.name} is missing); "
            "install them with: pip install papermill nbconvert ipykernel pandas seaborn"
        ) from error
    for name in (f"report-{dataset}-{profile}.html", "report.html"):
        with replacing(paths.results() / name) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return paths.results() / "report.html"


def _as_page(notebook: Path, title: str) -> str:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_filename(str(notebook))
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
body { margin: 0; background: #fff; color: #1c1c1c; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .6rem; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; font-size: .85rem; color: #444; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border: 0; border-bottom: 1px solid #ddd; }
.dataframe { border: 0; }
.dataframe td, .dataframe thead th { text-align: right; }
code { font-size: .9em; background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
li { margin: .3rem 0; }
"""
