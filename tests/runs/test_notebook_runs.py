"""Running notebooks: with checked parameters, and again in place."""

import nbformat
import pytest
from fake_runs import fake_runs, write_results
from nbformat.v4 import new_code_cell, new_notebook

from spcl_lib.runs import notebooks
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError


@pytest.fixture
def small(tmp_path, monkeypatch, own_kernels):
    """A folder of notebooks with one of them, `small`; its cells after the parameters are given."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "notebooks", lambda: folder)

    def write(*cells):
        cells = [new_code_cell(text, metadata={"trusted": True}) for text in cells]
        first = new_code_cell("x: int = 1  # help: a number", metadata={"tags": ["parameters"]})
        notebook = new_notebook(cells=[first, *cells])
        kernel = {"name": "python3", "display_name": "Python", "language": "python"}
        notebook.metadata["kernelspec"] = kernel
        nbformat.write(notebook, folder / "small.ipynb")
        return folder / "small.ipynb"

    return write


def test_execute_runs_with_parameters_in_the_notebooks_folder(small, tmp_path):
    source = small("import os\nprint(x + 1, os.path.basename(os.getcwd()))")
    before = source.read_bytes()
    done = notebooks.execute("small", {"x": 41}, tmp_path / "out" / "small.ipynb")
    assert nbformat.read(done, as_version=4).cells[-1].outputs[0]["text"] == "42 notebooks\n"
    assert [f.name for f in done.parent.iterdir()] == ["small.ipynb"]
    assert source.read_bytes() == before


def test_the_results_of_some_methods_need_no_others(results, own_kernels, tmp_path):
    write_results(fake_runs(methods=("scl", "en_scl")))
    notebooks.execute("02_results", {"source": "results"}, tmp_path / "out.ipynb")


def test_a_users_mistake_in_a_notebook_is_one_message(small, tmp_path):
    small("from spcl_lib.runs.settings import make_config\nmake_config('scenes', 'sclx')")
    with pytest.raises(UserError, match="^unknown method 'sclx'. Did you mean 'scl'"):
        notebooks.execute("small", {}, tmp_path / "out.ipynb")
    (error,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert len(error["traceback"]) == 1
    assert error["traceback"][0].startswith("UserError: unknown method 'sclx'")
