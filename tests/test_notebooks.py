"""The committed notebooks: executed, short, with checked parameters; and nbval is strict."""

import ast
import importlib
import inspect
import json
import subprocess
import sys

import nbformat
import papermill
import pytest

from spcl_lib.system import paths

FILES = sorted(paths.notebooks().glob("*.ipynb"))
LONGEST_CELL = 16  # lines; and how many bytes a notebook and all of them have at most
LARGEST, LARGEST_TREE = 400_000, 4 * 2**20


@pytest.fixture(params=FILES, ids=[f.stem for f in FILES])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def test_there_are_ten_and_they_are_small():
    assert [f.stem[:2] for f in FILES] == [f"{number:02}" for number in range(10)]
    assert all(f.stat().st_size < LARGEST for f in FILES)
    tree = [f for f in paths.notebooks().rglob("*") if f.is_file() and f.suffix != ".pyc"]
    assert sum(f.stat().st_size for f in tree) < LARGEST_TREE


def test_every_code_cell_has_been_executed_in_order_and_without_noise(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for out in (out for cell in code_cells(notebook) for out in cell.outputs):
        assert out.output_type != "error" and out.get("name") != "stderr", out


def test_it_opens_with_its_title_and_then_its_parameters(notebook):
    title, parameters, *rest = notebook.cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert tags(parameters) == ["parameters"]
    assert not any("parameters" in tags(cell) for cell in rest)
    for line in parameters.source.splitlines():
        statement = ast.parse(line).body[0]
        assert isinstance(statement, ast.AnnAssign), line
        kind, value = statement.annotation.id, ast.literal_eval(statement.value)
        assert kind in ("bool", "int", "float", "str") and type(value).__name__ == kind, line
        assert "  # help: " in line


def test_papermill_understands_every_parameter():
    for file in FILES:  # it skips, with a warning only, lines with a second equals sign
        lines = nbformat.read(file, as_version=4).cells[1].source.splitlines()
        known = papermill.inspect_notebook(str(file))
        assert len(known) == len(lines), f"{file.stem}: {list(known)}"


def test_it_ends_with_conclusions_and_limits(notebook):
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert sum(text.count("\n## ") + text.startswith("## ") for text in words) >= 3
    assert "imits" in "".join(words[-2:])


def test_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_what_they_use_of_the_library_is_there(notebook):
    """A name that has moved would be found by running them only."""
    modules = {}
    for node in ast.walk(ast.parse("\n".join(cell.source for cell in code_cells(notebook)))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("spcl_lib"):
            library = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                if not hasattr(library, name):
                    importlib.import_module(f"{node.module}.{name}")
                modules[name] = getattr(library, name)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name, owner = node.attr, modules.get(node.value.id)
            assert not inspect.ismodule(owner) or hasattr(owner, name), f"{node.value.id}.{name}"
    assert modules


def test_nothing_of_the_machine_that_ran_it_is_left(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    for cell in code_cells(notebook):
        pictures = {"image/png", "image/jpeg"}  # in their letters, anything may stand by chance
        text = json.dumps([out for out in cell.outputs if not pictures & set(out.get("data", {}))])
        assert str(paths.project()) not in text and "/root" not in text and "0x7" not in text


def nbval(file):
    """Exit status and output of nbval on a file, in a folder without the project's settings."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", file.name]
    command += ["-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_nbval_passes_on_a_notebook_and_fails_if_one_digit_is_altered(tmp_path, own_kernels):
    original = tmp_path / "original.ipynb"
    original.write_bytes((paths.notebooks() / "09_exercises.ipynb").read_bytes())
    status, text = nbval(original)
    assert status == 0, text
    content = json.loads(original.read_text())
    (shown,) = (cell for cell in content["cells"] if cell["id"] == "given-target")
    lines = shown["outputs"][0]["text"]
    assert "0.2500" in lines[1]
    lines[1] = lines[1].replace("0.2500", "0.2600")
    altered = tmp_path / "altered.ipynb"
    altered.write_text(json.dumps(content))
    status, text = nbval(altered)
    assert status == 1 and "1 failed" in text, text
