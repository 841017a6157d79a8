"""Runs notebooks with checked parameters, and again in place to renew the committed outputs.

    python -m spcl_lib.runs.notebooks [NAME ...]
    python -m spcl_lib.runs.notebooks NAME --out FILE --parameters '{"seed": 1}'

Jupyter's packages are imported inside functions, because the library works without them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from spcl_lib.system import paths
from spcl_lib.system.errors import UserError, one_line, unknown_name
from spcl_lib.system.files import atomic_write
from spcl_lib.system.processes import end_with_parent

if TYPE_CHECKING:
    from nbformat import NotebookNode

_KEPT = ("tags", "slideshow")  # metadata of a cell that a person has given
_LARGE_FIGURE = 30_000  # characters of base64; smaller figures are not changed


def notebook_names() -> list[str]:
    """Names of the project's notebooks, such as "01_train", in their order."""
    return sorted(f.stem for f in paths.notebooks().glob("*.ipynb"))


def notebook_file(name: str) -> Path:
    """File of a notebook of the project."""
    if name not in notebook_names():
        raise unknown_name("notebook", name, notebook_names())
    return paths.notebooks() / f"{name}.ipynb"


def title_of_notebook(name: str) -> str:
    """The heading of a notebook."""
    cells = json.loads(notebook_file(name).read_text())["cells"]
    return "".join(cells[0]["source"]).partition("\n")[0].strip("# ")


def check_parameters(name: str, parameters: Iterable[str]) -> None:
    """Refuses a parameter that the notebook does not have; papermill would only warn."""
    import papermill

    known = papermill.inspect_notebook(str(notebook_file(name)))
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, known)


def check_output(file: Path) -> None:
    """Refuses a place for an executed notebook where something else would be lost."""
    if file.suffix != ".ipynb" or file.is_dir():
        raise UserError(f"'{file}' cannot hold a notebook; give the name of a file, NAME.ipynb")


def execute(name: str, parameters: Mapping[str, object], output: Path) -> Path:
    """Runs a notebook in a kernel of its own; `output` is also written if it fails.

    Raises:
        UserError: the notebook or a parameter is unknown, or the notebook raised a UserError.
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

    check_parameters(name, parameters)
    for folder in ("SPCL_DATA", "SPCL_RESULTS", "SPCL_CACHE"):  # the kernel works elsewhere
        if os.environ.get(folder):
            os.environ[folder] = str(paths.real_path(os.environ[folder]))
    failure = None
    with atomic_write(output, ".ipynb") as temporary:
        try:
            papermill.execute_notebook(
                str(notebook_file(name)), str(temporary), dict(parameters),
                cwd=str(paths.notebooks()), progress_bar=False,
                # Else every kernel warns that its sockets are not encrypted.
                extra_arguments=["--log-level=ERROR"],
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            failure = UserError(error.evalue) if error.ename == "UserError" else error
    if failure is not None:
        raise failure
    return output


# --- in place -------------------------------------------------------------------------------------


def refresh(names: Iterable[str] = ()) -> list[Path]:
    """Runs notebooks (by default all) again in place, with their default parameters; cleans them.

    A notebook that fails stays as it was.
    """
    import nbformat

    paths.require_checkout("refreshing notebooks")
    files = [notebook_file(name) for name in list(names) or notebook_names()]
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            executed = execute(file.stem, {}, Path(folder) / file.name)
            notebook = nbformat.read(executed, as_version=4)
        clean(notebook)
        with atomic_write(file) as temporary:
            nbformat.write(notebook, str(temporary))
    return files


def clean(notebook: NotebookNode) -> None:
    """Removes metadata that differ between runs and machines; keeps outputs and counts."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if v and k in _KEPT}
        for out in cell.get("outputs", []):
            if "metadata" in out:
                out.metadata = {}
            png = out.get("data", {}).get("image/png", "")
            if len(png) > _LARGE_FIGURE:
                out.data["image/png"] = min(png, _with_fewer_colours(png), key=len)
    describe_figures(notebook)


def _with_fewer_colours(png: str) -> str:
    """A figure with 256 colours, in base64; a picture then has a third of its size.

    The colours are chosen by coverage, not by frequency, else colour scales would show bands.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    palette = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 3, "dither": Image.Dither.NONE}
    buffer = io.BytesIO()
    image.quantize(256, **palette).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def describe_figures(notebook: NotebookNode) -> None:
    """Gives every figure the heading above it as its text, for people who cannot see it."""
    heading = ""
    for cell in notebook.cells:
        lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
        heading = next((line.strip("# ") for line in lines if line.startswith("#")), heading)
        for out in cell.get("outputs", []):
            if "image/png" in out.get("data", {}):
                out.metadata["image/png"] = {"alt": f"Figure: {heading}"}


def main(arguments: list[str] | None = None) -> int:
    """Runs notebooks, see the top of this file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the one notebook as FILE")
    parser.add_argument("--parameters", type=json.loads, default={}, metavar="JSON")
    options = parser.parse_args(arguments)
    end_with_parent()
    try:
        if options.out is None:
            print(*refresh(options.names), sep="\n")
        else:
            print(execute(*options.names, options.parameters, options.out))
    except UserError as error:
        print(f"spcl: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
