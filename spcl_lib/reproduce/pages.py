"""Pages that need no other files: every notebook as HTML, and results/index.html.

`python -m spcl_lib.reproduce.pages NAME OUTPUT PARAMETERS` executes a notebook and writes its page.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from spcl_lib.analysis.intervals import summary
from spcl_lib.analysis.runs import table_of
from spcl_lib.methods import title_of
from spcl_lib.runs.notebooks import describe_figures, execute
from spcl_lib.runs.store import Metrics, Run
from spcl_lib.system import paths
from spcl_lib.system.processes import end_with_parent
from spcl_lib.viewer.pages import write_page

# $$...$$ or $...$; code spans may contain a $, so they match first and stay unchanged.
_FORMULA = re.compile(r"`[^`]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)


def write_notebook_page(notebook: Path) -> None:
    """Writes the HTML page of an executed notebook beside it."""
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
    style = HtmlFormatter().get_style_defs(".highlight")
    page = notebook.with_suffix(".html")
    write_page(page, "notebook.html", name=notebook.stem, body=body, code_style=style)


def _as_mathml(found: re.Match[str]) -> str:
    """A formula as MathML, which browsers show without an external script."""
    formula = found["block"] or found["inline"]
    display = "block" if found["block"] else "inline"
    return convert(" ".join(formula.split()), display=display) if formula else found[0]


def write_index() -> Path:
    """Writes results/index.html: links to all notebooks, and the tables of all usual runs."""
    notebooks, sections = [], []
    for file in sorted((paths.results() / "notebooks").glob("*.ipynb")):
        title = nbformat.read(file, as_version=4).cells[0].source.partition("\n")[0].strip("# ")
        finished = file.with_suffix(".html").is_file()
        notebooks.append({"name": file.stem, "title": title, "finished": finished})
    for name, runs in _usual_runs().items():
        explorer = paths.results() / f"explorer-{name}.html"
        sections.append({
            "name": name, "run": runs[-1], "explorer": explorer.name * explorer.is_file(),
            "table": readable(runs).to_html(border=0, index=False, na_rep=""),
        })  # fmt: skip
    page = paths.results() / "index.html"
    write_page(page, "index.html", sections=sections, notebooks=notebooks)
    return page


def _usual_runs() -> dict[str, list[Metrics]]:
    """The finished runs with a profile's own settings, by their folder; not 00_tour's."""
    found: dict[str, list[Metrics]] = {}
    for file in sorted(paths.results().glob("*/*-seed*/metrics.json")):
        usual = re.fullmatch(r"\w+-seed\d+", file.parent.name)
        if usual and (metrics := Run.find(file).metrics) and metrics["profile"] != "tour":
            found.setdefault(file.parents[1].name, []).append(metrics)
    return found


def readable(runs: Sequence[Metrics]) -> pd.DataFrame:
    """Means over seeds in percent, with the 95 % interval of the gain over AN."""
    found = summary(table_of(runs))
    found["method"] = found["method"].map(title_of)
    names = {"gain": "gain over AN", "gain_low": "from", "gain_high": "to", "share": "gap closed"}
    return found[["method", "seeds", "mAP", *names]].round(1).rename(columns=names)


if __name__ == "__main__":
    end_with_parent()
    name, output, parameters = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    output.with_suffix(".html").unlink(missing_ok=True)  # a page means that it has finished
    write_notebook_page(execute(name, parameters, output))
