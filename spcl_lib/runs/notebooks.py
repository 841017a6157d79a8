"""Runs notebooks, see `make.py` and `reproduce.pages`.

Jupyter's packages are imported inside functions, because the library works without them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write

if TYPE_CHECKING:
    from nbformat import NotebookNode


def notebook_names() -> list[str]:
    """Names of the project's notebooks, such as "01_train", in their order."""
    return sorted(f.stem for f in paths.notebooks().glob("*.ipynb"))


def notebook_file(name: str) -> Path:
    """File of a notebook of the project."""
    return paths.notebooks() / f"{name}.ipynb"


def execute(name: str, parameters: Mapping[str, object], output: Path) -> Path:
    """Runs a notebook in a kernel of its own; `output` is also written if it fails.

    Raises:
        UserError: the notebook raised one.
        papermill.PapermillExecutionError: a cell failed.
    """
    import papermill

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
