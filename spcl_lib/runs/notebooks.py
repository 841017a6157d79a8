"""Runs notebooks, see `make.py` and `reproduce.pages`.

Jupyter's packages are imported inside functions, because the library works without them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spcl_lib.system import paths
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode


def notebook_names() -> list[str]:
    """Names of the project's notebooks, such as "01_train", in their order."""
    return sorted(f.stem for f in paths.notebooks().glob("*.ipynb"))


def notebook_file(name: str) -> Path:
    """File of a notebook of the project."""
    if name not in notebook_names():
        raise unknown_name("notebook", name, notebook_names())
    return paths.notebooks() / f"{name}.ipynb"


def check_parameters(name: str, parameters: Iterable[str]) -> None:
    """Refuses a parameter that the notebook does not have; papermill would only warn."""
    import papermill

    known = papermill.inspect_notebook(str(notebook_file(name)))
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of {name}", key, known)


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


def describe_figures(notebook: NotebookNode) -> None:
    """Gives every figure the heading above it as its text, for people who cannot see it."""
    heading = ""
    for cell in notebook.cells:
        lines = cell.source.splitlines() if cell.cell_type == "markdown" else []
        heading = next((line.strip("# ") for line in lines if line.startswith("#")), heading)
        for out in cell.get("outputs", []):
            if "image/png" in out.get("data", {}):
                out.metadata["image/png"] = {"alt": f"Figure: {heading}"}
