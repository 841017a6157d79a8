"""Pages that need no other files: every notebook as HTML, and results/index.html."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
import seaborn as sns
from latex2mathml.converter import convert
from matplotlib.figure import Figure
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from spcl_lib.analysis.intervals import Interval, summary
from spcl_lib.analysis.runs import load_runs, table_of
from spcl_lib.config import RunConfig
from spcl_lib.methods import title_of
from spcl_lib.runs.notebooks import describe_figures
from spcl_lib.runs.store import Run
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write

# $$...$$ or $...$; code spans may contain a $, so they match first and stay unchanged.
_FORMULA = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)


def write_notebook_page(notebook: Path) -> Path:
    """Writes the HTML page of an executed notebook beside it; returns the .html file."""
    content = nbformat.read(notebook, as_version=4)
    describe_figures(content)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _FORMULA.sub(_as_mathml, cell.source)
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True,
        exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(content)
    page = notebook.with_suffix(".html")
    _write(page, title=f"spcl: {notebook.stem}", body=body)
    return page


def _as_mathml(found: re.Match[str]) -> str:
    """A formula as MathML, which browsers show without an external script."""
    formula = found["block"] or found["inline"]
    display = "block" if found["block"] else "inline"
    return convert(" ".join(formula.split()), display=display) if formula else found[0]


def write_index(manifest: Mapping[str, Any]) -> Path:
    """Writes results/index.html: tables, figures, and links to all notebooks.

    Args:
        manifest: content of results/manifest.json; experiments without finished runs are left out.

    Returns:
        The file.
    """
    sections = []
    for name, entry in manifest["experiments"].items():
        where = entry["dataset"], entry["profile"], entry["overrides"], entry["data_root"]
        try:
            table = table_of(load_runs("results", *where))
        except UserError as error:
            print(f"page:  without {name}: {error}")
            continue
        explorer = "explorer.html" if name == "scenes-cpu" else f"explorer-{name}.html"
        has_explorer = (paths.results() / explorer).is_file()
        sections.append({
            "name": name, "smoke": entry["profile"] == "smoke", "facts": entry["facts"],
            "explorer": explorer if has_explorer else "", "figure": _figure(table),
            "table": _readable(table).to_html(border=0, index=False),
        })  # fmt: skip
    page = paths.results() / "index.html"
    notebooks = sorted(manifest["notebooks"].items())
    _write(page, title="spcl: results", sections=sections, notebooks=notebooks)
    return page


def table_text(configs: Sequence[RunConfig]) -> str:
    """The table of the finished runs, as text."""
    done = [metrics for config in configs if (metrics := Run.of(config).metrics) is not None]
    text = _readable(table_of(done)).to_string(index=False) + "\n" if done else ""
    smoke = "; a smoke test: the numbers mean nothing" if configs[0].profile == "smoke" else ""
    return f"{text}{len(done)} of {len(configs)} runs finished{smoke}"


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with the 95 % interval of the gain over AN."""
    found = summary(table)
    gains = found[["gain", "gain_low", "gain_high"]].values
    return pd.DataFrame({
        "method": found["method"].map(title_of), "seeds": found["seeds"],
        "mAP %": found["mAP"].map("{:.1f}".format),
        "gain over AN (95 %)": [
            "" if method == "an" else str(Interval(*ends))
            for method, ends in zip(found["method"], gains, strict=True)
        ],
        "gap closed %": found["share"].map("{:.0f}".format),
    })  # fmt: skip


def _figure(table: pd.DataFrame) -> str:
    """Every run's mAP by method, as a PNG in base64."""
    figure = Figure(figsize=(7.2, 0.8 + 0.35 * table["title"].nunique()), layout="constrained")
    axes = figure.add_subplot()
    sns.stripplot(table, x="mAP", y="title", ax=axes, color="#0072b2", jitter=False)
    axes.set(xlabel="mAP in %, a point for each seed", ylabel="")
    axes.grid(axis="x", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()


def _write(page: Path, **values: Any) -> None:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    code_style = HtmlFormatter().get_style_defs(".highlight")
    with atomic_write(page) as temporary:
        temporary.write_text(template.render(code_style=code_style, **values), encoding="utf-8")
