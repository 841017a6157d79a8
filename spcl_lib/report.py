"""What people read: the table as texts, the README's numbers, the report in one page."""

from __future__ import annotations

import html
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from spcl_lib import paths
from spcl_lib.data.cache import replacing
from spcl_lib.errors import UserError
from spcl_lib.results import Runs, by_method, label, load_runs, references, table

if TYPE_CHECKING:
    import pandas as pd


# --- the table ------------------------------------------------------------------------------------


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
    import nbformat
    from nbconvert import HTMLExporter

    from spcl_lib.notebooks import describe_figures

    content = nbformat.read(notebook, as_version=4)
    describe_figures(content)
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(content)
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
