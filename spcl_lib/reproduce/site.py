"""The site: a static book of the README, all notebooks as they are committed, and the library.

Sphinx makes it from files that are copied into a temporary folder, at their places in the checkout.
So links between them work. Nothing is executed, and the pages load nothing from elsewhere.
"""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spcl_lib.runs.notebooks import describe_figures, notebook_file, notebook_names
from spcl_lib.system import VERSION, paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import explain_refusals, lock_file

PACKAGES = {"sphinx": "sphinx", "myst_nb": "myst-nb", "furo": "furo"}  # modules and their packages
LESSON = (
    "views", "bank", "sparse_bank", "losses", "terms", "methods", "pooling", "model", "train",
    "evaluate", "config",
)  # fmt: skip
EXPLORER = "explorer.html"  # in the results; notebooks/04_heatmaps says how to make it
_MARK = ".spcl-site"  # in the site's folder: it is ours, so it can be replaced
_GITHUB = re.compile(
    r"(?:https://github\.com/|git@github\.com:)(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(?:\.git)?"
    r"(?:/tree/(?P<branch>[\w./-]+))?/?"
)
_WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Repository:
    """A public copy of the project on GitHub.

    Attributes:
        owner: user or organisation.
        name: name of the repository.
        branch: the branch that the links show.
    """

    owner: str
    name: str
    branch: str = "main"

    @property
    def url(self) -> str:
        """Address of the repository."""
        return f"https://github.com/{self.owner}/{self.name}"

    def file(self, path: str) -> str:
        """Address of a file or a folder of the project."""
        return f"{self.url}/blob/{self.branch}/{path}"

    def colab(self, notebook: str) -> str:
        """Address that opens a notebook in Colab."""
        place = f"{self.owner}/{self.name}/blob/{self.branch}/notebooks/{notebook}.ipynb"
        return f"https://colab.research.google.com/github/{place}"

    def binder(self, notebook: str) -> str:
        """Address that opens a notebook in Binder."""
        place = f"{self.owner}/{self.name}/{self.branch.replace('/', '%2F')}"
        return f"https://mybinder.org/v2/gh/{place}?labpath=notebooks%2F{notebook}.ipynb"


def parse_repository(address: str) -> Repository:
    """Reads https://github.com/OWNER/NAME, or an address of a branch: .../tree/BRANCH.

    Raises:
        UserError: it is no address of a repository on GitHub.
    """
    found = _GITHUB.fullmatch(address.strip())
    if not found:
        raise UserError(
            f"--repository must be https://github.com/OWNER/NAME, or .../NAME/tree/BRANCH; "
            f"got '{address}'"
        )
    parts = {key: value for key, value in found.groupdict().items() if value}
    return Repository(**parts)


def known_repository() -> Repository | None:
    """The checkout's remote `origin`, if it is on GitHub."""
    command = ["git", "-C", str(paths.project()), "remote", "get-url", "origin"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return parse_repository(said) if _GITHUB.fullmatch(said) else None


def build_site(out: Path, repository: Repository | None = None) -> Path:
    """Builds the site.

    Args:
        out: folder for it; an earlier site in it is replaced when the new one is complete.
        repository: where the project is public; without it, the pages have no links to Colab,
            Binder and the source files.

    Returns:
        Its first page.

    Raises:
        UserError: Sphinx is missing or has a complaint, there is no checkout, `out` holds something
            else, or the system refuses.
    """
    _check_packages()
    if paths.checkout() is None:
        raise UserError(
            "site reads README.md and the notebooks of a checkout; run it in a checkout"
        )
    if out.exists() and not (out / _MARK).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"'{out}' holds something else than a site; name another folder by --out")
    with tempfile.TemporaryDirectory(prefix="spcl-site-") as temporary, explain_refusals(out):
        source, built = Path(temporary, "source"), Path(temporary, "site")
        write_sources(source, repository)
        _run_sphinx(source, built, Path(temporary, "doctrees"), repository)
        (built / _MARK).touch()
        with lock_file(out):
            _replace(built, out)
    return out / "index.html"


def _check_packages() -> None:
    missing = [p for module, p in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"the site needs {', '.join(missing)}; install them with: pip install '.[site]'"
        )


def _replace(built: Path, out: Path) -> None:
    """Moves a folder to `out`, which may be on another disk, and removes what was there."""
    new, old = (out.with_name(f".{out.name}.{word}") for word in ("new", "old"))
    for left in (new, old):  # by a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(built, new)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


# --- the sources ----------------------------------------------------------------------------------


def write_sources(folder: Path, repository: Repository | None) -> None:
    """Writes all that Sphinx reads; the README becomes index.md.

    Args:
        folder: it is created.
        repository: see `build_site`.
    """
    (folder / "notebooks" / "reference").mkdir(parents=True)
    (folder / "spcl_lib").mkdir()
    for picture in paths.reference().glob("*.png"):
        shutil.copy(picture, folder / "notebooks" / "reference")
    for name in ("README.md", "CHANGELOG.md"):
        shutil.copyfile(paths.PACKAGE / name, folder / "spcl_lib" / name)
    (folder / "_static").mkdir()
    (folder / "_static" / "site.css").write_text(_STYLE, encoding="utf-8")
    explorer = _write_explorer(folder)
    for name in notebook_names():
        _write_notebook(name, folder / "notebooks" / f"{name}.ipynb", repository)
    _write_api(folder / "api")
    text = (paths.project() / "README.md").read_text(encoding="utf-8")
    notebooks = [f"notebooks/{name}" for name in notebook_names()]
    code = ["spcl_lib/README", *(f"api/{name}" for name in (*LESSON, "predictor"))]
    contents = [_contents("Notebooks", [*notebooks, explorer]), _contents("The library", code)]
    contents.append(_contents("About", ["spcl_lib/CHANGELOG"]))
    (folder / "index.md").write_text("\n\n".join([text, *contents]), encoding="utf-8")


def _contents(caption: str, pages: Sequence[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"])


def _write_explorer(folder: Path) -> str:
    """The page with the explorer, or with how to make it."""
    made = paths.results() / EXPLORER
    (folder / "extra").mkdir()
    if made.is_file():
        shutil.copyfile(made, folder / "extra" / EXPLORER)
        shown = (
            f'<p><a href="{EXPLORER}">The explorer in a window of its own</a></p>\n'
            f'<iframe class="explorer" src="{EXPLORER}" title="The explorer"></iframe>'
        )
    else:
        shown = (
            "This copy of the site was built without it, because `results/explorer.html` was not "
            "there. `04_heatmaps` makes it; then build the site again."
        )
    text = (
        "# The explorer\n\nDrag a crop over an image, and see what SCL asks for: the heatmap, read "
        f"through the crop. `04_heatmaps` explains what is shown.\n\n{shown}\n"
    )
    (folder / "explore.md").write_text(text, encoding="utf-8")
    return "explore"


def _write_notebook(name: str, file: Path, repository: Repository | None) -> None:
    """A copy with its outputs, and with a line of links below its title."""
    import nbformat

    content = nbformat.read(notebook_file(name), as_version=4)
    describe_figures(content)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if _WIDGET not in out.get("data", {})]
    first = content.cells[0]
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{_links(name, repository)}\n{rest}"
    nbformat.write(content, file)
    original = file.parents[1] / "extra" / "notebooks" / f"{name}.ipynb"
    original.parent.mkdir(exist_ok=True)
    shutil.copyfile(notebook_file(name), original)


def _links(name: str, repository: Repository | None) -> str:
    links = [f'<a href="{name}.ipynb" download>Download</a>']
    more = ""
    if repository:
        links.append(f'<a href="{repository.colab(name)}">Open in Colab</a>')
        links.append(f'<a href="{repository.binder(name)}">Open in Binder</a>')
        install = f"!pip install git+{repository.url}@{repository.branch}"
        more = f"<br>In Colab, run this first, in a cell of its own: <code>{install}</code>"
    return f'<p class="notebook-links">{" ".join(links)}{more}</p>\n'


def _write_api(folder: Path) -> None:
    """A page for every module of the lesson, and one for Predictor, from their docstrings."""
    folder.mkdir()
    for name in LESSON:
        more = (
            "   :imported-members:\n" if name == "losses" else ""
        )  # they are in files of their own
        directive = f".. automodule:: spcl_lib.{name}\n   :members:\n{more}"
        _write_page(folder / f"{name}.rst", name, directive)
    directive = ".. autoclass:: spcl_lib.Predictor\n   :members:\n"
    _write_page(folder / "predictor.rst", "Predictor", directive)


def _write_page(file: Path, title: str, text: str) -> None:
    file.write_text(f"{title}\n{'=' * len(title)}\n\n{text}", encoding="utf-8")


# --- Sphinx ---------------------------------------------------------------------------------------


def _run_sphinx(source: Path, built: Path, doctrees: Path, repository: Repository | None) -> None:
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError
    from sphinx.util.console import nocolor
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    complaints = io.StringIO()
    settings = _SETTINGS | {"spcl_repository": repository}
    nocolor()
    try:
        with patch_docutils(), docutils_namespace():  # else a second site would complain
            Sphinx(
                source, None, built, doctrees, "html", confoverrides=settings, status=None,
                warning=complaints,
            ).build()  # fmt: skip
    except SphinxError as error:
        raise UserError(f"Sphinx stopped: {error}") from error
    if found := complaints.getvalue().strip().splitlines():
        more = f" (and {len(found) - 1} lines more)" if len(found) > 1 else ""
        raise UserError(f"Sphinx complains: {found[0]}{more}")


# Lines of 100 characters fit where the window is wide; what is wider than the window scrolls alone.
_STYLE = """
@media (min-width: 75em) { .content { width: 53em; } }
h1 { font-size: 2em; }
.notebook-links a { display: inline-block; margin: 0 .4em .4em 0; padding: .1em .7em;
  border: 1px solid var(--color-background-border); border-radius: 1em; font-size: .85em;
  text-decoration: none; }
.cell_output .output, .formula { overflow-x: auto; }
table.docutils { font-size: .9em; }
table.docutils .text-right { white-space: nowrap; }
.cell_output table.dataframe { width: auto; border: 0; border-collapse: collapse; font-size: .85em;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
.cell_output .dataframe :is(td, th) { padding: .25em .6em; border: 0; text-align: right;
  border-bottom: 1px solid var(--color-background-border); }
.cell_output img { background: #fff; }
.explorer { width: 100%; height: 90vh; border: 1px solid var(--color-background-border); }
"""
_SETTINGS: dict[str, Any] = {
    "project": "spcl",
    "version": VERSION,
    "html_title": "spcl",
    "html_theme": "furo",
    "extensions": [
        "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "spcl_lib.reproduce.site_pages",
    ],
    "exclude_patterns": ["extra"],
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "html_static_path": ["_static"],
    "html_css_files": ["site.css"],
    "html_math_renderer": "mathml",
    "html_extra_path": ["extra"],
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_show_sphinx": False,
    "autodoc_typehints": "signature",
    "napoleon_use_rtype": False,  # ours name the returned values, not their types
    "autodoc_member_order": "bysource",
    "default_role": "literal",
    "python_use_unqualified_type_names": True,
}  # fmt: skip
