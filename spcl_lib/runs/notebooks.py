"""Runs notebooks with checked parameters, and again in place to renew the committed outputs.

    python -m spcl_lib.runs.notebooks [NAME ...]
    python -m spcl_lib.runs.notebooks NAME --out FILE --parameters '{"seed": 1}'

Jupyter's packages are imported inside functions, because the library works without them.
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from spcl_lib.system import paths
from spcl_lib.system.errors import UserError, one_line, unknown_name
from spcl_lib.system.files import atomic_write, parse_json
from spcl_lib.system.processes import end_with_parent

if TYPE_CHECKING:
    from nbformat import NotebookNode

# Else every kernel warns that its sockets are not encrypted, but only this machine can see them.
_KERNEL = ["--log-level=ERROR"]
_KEPT = ("tags", "slideshow")  # metadata of a cell that a person has given
_LARGE_FIGURE = 30_000  # characters of base64; smaller figures are not changed


def notebook_names() -> list[str]:
    """Names of the project's notebooks, such as "01_train", in their order."""
    return sorted(f.stem for f in paths.notebooks().glob("*.ipynb"))


def notebook_file(name: str) -> Path:
    """File of a notebook of the project.

    Raises:
        UserError: there is no such notebook.
    """
    if name not in notebook_names():
        raise unknown_name("notebook", name, notebook_names())
    return paths.notebooks() / f"{name}.ipynb"


def title_of_notebook(name: str) -> str:
    """The heading of a notebook."""
    cells = json.loads(notebook_file(name).read_text())["cells"]
    return "".join(cells[0]["source"]).partition("\n")[0].strip("# ")


# --- with parameters ------------------------------------------------------------------------------


def check_parameters(name: str, parameters: Mapping[str, object]) -> None:
    """Refuses a parameter that the notebook does not have, because papermill would only warn.

    Args:
        name: name of the notebook.
        parameters: names and values.

    Raises:
        UserError: a parameter is unknown, or its value does not have the type of the default.
    """
    import papermill

    known = papermill.inspect_notebook(str(notebook_file(name)))
    if not isinstance(parameters, Mapping):
        raise UserError(f"parameters must be names with values, such as {{'seed': 1}}; "
                        f"got {parameters!r}")  # fmt: skip
    for key, value in parameters.items():
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, known)
        kind = type(ast.literal_eval(known[key]["default"]))
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(
                f"parameter '{key}' of {name} must be of type {kind.__name__}; got {value!r}"
            )


def check_output(file: Path) -> None:
    """Refuses a place for an executed notebook where something else would be lost.

    Raises:
        UserError: its name does not end in .ipynb, or it is no regular file.
    """
    if file.suffix != ".ipynb" or (os.path.lexists(file) and not file.is_file()):
        raise UserError(f"'{file}' cannot hold a notebook; give the name of a file, NAME.ipynb")


def execute(name: str, parameters: Mapping[str, object], output: Path) -> Path:
    """Runs a notebook in a kernel of its own, in the folder of the notebooks.

    Args:
        name: name of the notebook, such as "01_train".
        parameters: values that differ from the defaults of its parameters cell.
        output: file for the executed notebook; it is also written if the notebook fails.

    Raises:
        UserError: the notebook or a parameter is unknown, the notebook raised a UserError, or
            `check_output` refuses the file.
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

    check_output(Path(output))
    check_parameters(name, parameters)
    _make_paths_absolute()
    output, stopped = Path(output).resolve(), None
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / "executed.ipynb"
        try:
            papermill.execute_notebook(
                str(notebook_file(name)), str(executed), dict(parameters),
                cwd=str(paths.notebooks()), progress_bar=False, extra_arguments=_KERNEL,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            stopped = error
        with atomic_write(output) as temporary:
            shutil.copyfile(executed, temporary)
    if stopped is not None and stopped.ename == UserError.__name__:
        raise UserError(stopped.evalue) from None
    if stopped is not None:
        raise stopped
    return output


def _make_paths_absolute() -> None:
    """Makes the folders of SPCL_* absolute, because the kernel works in another folder."""
    for name in ("SPCL_DATA", "SPCL_RESULTS", "SPCL_CACHE"):
        if os.environ.get(name) and not os.environ[name].startswith("~"):
            os.environ[name] = os.path.abspath(os.environ[name])


# --- in place -------------------------------------------------------------------------------------


def refresh(names: Iterable[str] = ()) -> list[Path]:
    """Runs notebooks again in place, with their default parameters, and cleans them.

    Args:
        names: names of the notebooks; all by default.

    Returns:
        Their files.

    Raises:
        UserError: a notebook is unknown, or it wrote to stderr, which must not be committed.
        nbclient.exceptions.CellExecutionError: a cell failed; the notebook stays as it was.
    """
    import nbformat
    from nbclient import NotebookClient

    paths.require_checkout("refreshing notebooks")
    _make_paths_absolute()
    files = [notebook_file(name) for name in list(names) or notebook_names()]
    for file in files:
        notebook = nbformat.read(file, as_version=4)
        where = {"metadata": {"path": str(paths.notebooks())}}
        NotebookClient(
            notebook, timeout=None, record_timing=False, resources=where, extra_arguments=_KERNEL
        ).execute()
        clean(notebook)
        if noise := stderr_of(notebook):
            raise UserError(f"notebook {file.stem} wrote to stderr, so it is unchanged: {noise[0]}")
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
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in _KEPT}
        for out in cell.get("outputs", []):
            if "metadata" in out:
                out.metadata = {}
            png = out.get("data", {}).get("image/png", "")
            if len(png) > _LARGE_FIGURE:
                smaller = base64.b64encode(reduce_colours(base64.b64decode(png))).decode()
                out.data["image/png"] = min(png, smaller, key=len)
    describe_figures(notebook)


def describe_figures(notebook: NotebookNode) -> None:
    """Gives every figure the heading above it as its text, for people who cannot see it."""
    heading = ""
    for cell in notebook.cells:
        lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
        heading = next((line.strip("# ") for line in lines if line.startswith("#")), heading)
        for out in cell.get("outputs", []):
            if "image/png" in out.get("data", {}):
                out.metadata["image/png"] = {"alt": f"Figure: {heading}"}


def stderr_of(notebook: NotebookNode) -> list[str]:
    """Texts that cells wrote to stderr."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return [out["text"] for out in outputs if out.get("name") == "stderr"]


def reduce_colours(png: bytes) -> bytes:
    """Reduces a PNG to 256 colours; a picture then has a third of its size.

    The colours are chosen by coverage, not by frequency, else colour scales would show bands.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 3, "dither": Image.Dither.NONE}
    buffer = io.BytesIO()
    image.quantize(256, **palette).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Runs notebooks, see the top of this file; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the one notebook as FILE")
    parser.add_argument("--parameters", default="{}", metavar="JSON", help="of that notebook")
    options = parser.parse_args(arguments)
    end_with_parent()
    try:
        if options.out is None:
            print(*refresh(options.names), sep="\n")
        elif len(options.names) != 1:
            raise UserError("--out keeps one notebook; name one, such as 02_results")
        else:
            print(execute(options.names[0], _parsed(options.parameters), options.out))
    except UserError as error:
        print(f"spcl: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _parsed(text: str) -> Mapping[str, object]:
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"--parameters is no JSON ({error}); write '{{\"seed\": 1}}'") from error


if __name__ == "__main__":
    sys.exit(main())
