"""Pages that need no other files: every notebook as HTML, and results/index.html."""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spcl_lib.analysis.intervals import Interval, summary
from spcl_lib.analysis.runs import table_of
from spcl_lib.methods import title_of
from spcl_lib.reproduce.plan import explorer_file
from spcl_lib.runs.notebooks import describe_figures
from spcl_lib.runs.profiles import duration
from spcl_lib.runs.store import Metrics
from spcl_lib.system import paths
from spcl_lib.system.files import atomic_write, lock_file


def write_notebook_page(notebook: Path, show_code: bool = True) -> Path:
    """Writes the HTML page of an executed notebook beside it, with figures and style inside.

    Args:
        notebook: the .ipynb file.
        show_code: whether the page shows the code cells.

    Returns:
        The .html file.
    """
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    describe_figures(content)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _FORMULA.sub(_as_mathml, cell.source)
    exporter = HTMLExporter(
        template_name="basic", exclude_input=not show_code, exclude_input_prompt=True,
        exclude_output_prompt=True, exclude_anchor_links=True,
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(content)
    page = notebook.with_suffix(".html")
    link = '<p><a href="../index.html">All results</a></p>\n'
    with lock_file(page), atomic_write(page) as temporary:
        temporary.write_text(_page(f"spcl: {notebook.stem}", link + body), encoding="utf-8")
    return page


# $$...$$ or $...$; code spans may contain a $, so they match first and stay unchanged.
_FORMULA = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)


def _as_mathml(found: re.Match[str]) -> str:
    """A formula as MathML, which browsers show without an external script."""
    formula = found["block"] or found["inline"]
    if not formula or importlib.util.find_spec("latex2mathml") is None:
        return found[0]
    from latex2mathml.converter import convert

    display = "block" if found["block"] else "inline"
    return convert(" ".join(formula.split()), display=display)


def write_index(manifest: Mapping[str, Any], runs: Mapping[str, Sequence[Metrics]]) -> Path:
    """Writes results/index.html: tables, figures, and links to all notebooks.

    Args:
        manifest: content of results/manifest.json, see `plan`.
        runs: finished runs by experiment; experiments without finished runs are left out.

    Returns:
        The file.
    """
    experiments = [name for name in manifest["experiments"] if name in runs]
    body = ["<h1>spcl: results of this machine</h1>", _notebook_list(manifest["notebooks"])]
    body += [_section(name, manifest["experiments"][name], runs[name]) for name in experiments]
    path = paths.results() / "index.html"
    with lock_file(path), atomic_write(path) as temporary:
        temporary.write_text(_page("spcl: results", "\n".join(body)), encoding="utf-8")
    return path


def _notebook_list(notebooks: Mapping[str, Any]) -> str:
    lines = []
    for name, entry in sorted(notebooks.items()):
        if entry.get("skipped"):
            lines.append(f"<li>{html.escape(name)}: {html.escape(entry['skipped'])}</li>")
            continue
        state = "" if entry["finished"] else " <strong>stopped with an error</strong>"
        lines.append(
            f'<li><a href="notebooks/{name}.html">{html.escape(entry["title"])}</a> '
            f'(<a href="notebooks/{name}.ipynb">{name}.ipynb</a>, '
            f"{duration(entry['seconds'])}){state}</li>"
        )
    return "<h2>Notebooks, executed on this machine</h2>\n<ul>\n" + "\n".join(lines) + "\n</ul>"


def _section(name: str, entry: Mapping[str, Any], runs: Sequence[Metrics]) -> str:
    parts = [f"<h2>{html.escape(name)}</h2>"]
    if entry["profile"] == "smoke":
        parts.append("<p><strong>A smoke test: these numbers mean nothing.</strong></p>")
    explorer = explorer_file(name)
    if explorer.is_file():
        parts.append(
            f'<p><a href="{html.escape(explorer.name)}">The explorer</a>: drag a crop over a '
            "training image, play the epochs, and see what the heatmaps ask for.</p>"
        )
    parts.append(f'<div class="wide">{_table(runs)}</div>')
    first = runs[0]
    facts = {
        "runs": f"{first['train_images']:,} training images, {first['report_images']:,} to report "
        f"on, {first['epochs']} epochs",
        **entry["facts"],
    }
    listed = (f"<li>{html.escape(f'{key}: {value}')}</li>" for key, value in facts.items())
    parts.append("<ul>" + "".join(listed) + "</ul>")
    return "\n".join(parts)


def _table(runs: Sequence[Metrics]) -> str:
    """Means over seeds, with the 95 % interval of the gain over AN."""
    found = summary(table_of(runs))
    shown = pd.DataFrame({
        "method": found["method"].map(title_of), "seeds": found["seeds"],
        "mAP %": found["mAP"].map("{:.1f}".format),
        "gain over AN (95 %)": [
            "" if method == "an" else str(Interval(*ends))
            for method, *ends in found[["method", "gain", "gain_low", "gain_high"]].values
        ],
        "gap closed %": found["share"].map("{:.0f}".format),
    })  # fmt: skip
    return shown.to_html(border=0, index=False)


def _page(title: str, body: str) -> str:
    from pygments.formatters import HtmlFormatter  # installed with nbconvert

    style = _STYLE + HtmlFormatter().get_style_defs(".highlight")
    return _PAGE.format(title=html.escape(title), style=style, body=body)


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
main { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .6rem; }
img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; color: #444; }
.highlight pre, .input pre { background: #f6f6f6; padding: .6rem .8rem; border-radius: 4px; }
.wide, .jp-RenderedHTMLCommon, .output { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border: 0; border-bottom: 1px solid #ddd; }
.dataframe { border: 0; }
.dataframe td, .dataframe thead th { text-align: right; }
.dataframe td, .dataframe tbody th { white-space: nowrap; }
code { font-size: .9em; background: #f3f3f3; padding: .1em .3em; border-radius: 3px; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
"""
