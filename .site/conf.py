"""A site of the README, the library's page and all notebooks with their stored outputs.

pip install '.[site]' && sphinx-build -c .site . results/site
"""

from pathlib import Path

from sphinx.application import Sphinx

project = "spcl"
root_doc = "README"
extensions = ["myst_nb"]
html_theme = "furo"
nb_execution_mode = "off"  # the outputs are those that the tests check
include_patterns = ["README.md", "notebooks/*.ipynb", "spcl_lib/README.md", "spcl_lib/CHANGELOG.md"]
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure", "myst.header"]


def _add_contents(app: Sphinx, name: str, source: list[str]) -> None:
    """Gives the README the list of pages that Sphinx needs."""
    if name == root_doc:
        notebooks = sorted(Path(app.srcdir, "notebooks").glob("*.ipynb"))
        pages = [f"notebooks/{file.stem}" for file in notebooks]
        pages += ["spcl_lib/README", "spcl_lib/CHANGELOG"]
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", "", *pages, "```"])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _add_contents)
