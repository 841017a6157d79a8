"""The committed notebooks: their structure and parameters, and that nbval can find a difference."""

import ast
import copy
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbconvert import SlidesExporter
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from spcl_lib.runs import notebooks
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError

FILES = sorted(paths.notebooks().glob("*.ipynb"))
LONGEST_CELL = 15
LARGEST_TREE = 4 * 2**20  # 1.2 MB of it are the small backbone's weights


@pytest.fixture(params=FILES, ids=[f.stem for f in FILES])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


# --- structure ------------------------------------------------------------------------------------


def test_the_notebooks_are_there():
    assert {"00_tour", "01_train", "02_results"} <= {f.stem for f in FILES}
    tree = [f for f in paths.notebooks().rglob("*") if f.is_file() and f.suffix != ".pyc"]
    assert sum(f.stat().st_size for f in tree) < LARGEST_TREE


def test_it_opens_with_what_it_is_for_and_then_its_parameters(notebook):
    title, parameters, *rest = notebook.cells
    assert title.cell_type == "markdown" and title.source.startswith("# ")
    assert tags(parameters) == ["parameters"]
    assert not any("parameters" in tags(cell) for cell in rest)


def test_parameters_are_typed_scalars_with_help(notebook):
    lines = notebook.cells[1].source.splitlines()
    for line in lines:
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
        assert all(parameter["help"] for parameter in known.values())


def test_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


def test_what_they_use_of_the_library_is_there(notebook):
    """A name that has moved would be found by running them only."""
    source = "\n".join(cell.source for cell in code_cells(notebook))
    modules = {}
    for node in ast.walk(ast.parse(source)):
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


def test_every_code_cell_has_been_executed_in_order_and_without_noise(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run: python -m spcl_lib.runs.notebooks"
    assert notebooks.stderr_of(notebook) == []
    for cell in code_cells(notebook):
        assert not any(out.output_type == "error" for out in cell.outputs)


def test_results_have_text_that_nbval_can_compare(notebook):
    checked = 0
    for cell in code_cells(notebook):
        texts = [text_of(out) for out in cell.outputs]
        checked += bool("".join(texts).strip()) and "nbval-ignore-output" not in tags(cell)
    assert checked >= 3


def text_of(output):
    data = output.get("data", {})
    return output.get("text") or data.get("text/markdown") or data.get("text/plain", "")


def test_nothing_of_the_machine_that_ran_it_is_left(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags", "slideshow"} for cell in notebook.cells)
    texts = "\n".join(text_of(out) for cell in code_cells(notebook) for out in cell.outputs)
    for trace in (str(paths.project()), "/home/", "/Users/", "/tmp", "C:\\"):
        assert trace not in texts


def test_figures_are_png(notebook):
    kinds = {k for cell in code_cells(notebook) for o in cell.outputs for k in o.get("data", {})}
    widget = "application/vnd.jupyter.widget-view+json"  # shown where a kernel runs
    assert kinds <= {"text/plain", "text/html", "text/markdown", "image/png", widget}


# --- the tour -------------------------------------------------------------------------------------


@pytest.fixture
def tour():
    return nbformat.read(paths.notebooks() / "00_tour.ipynb", as_version=4)


def test_the_tour_takes_ten_minutes(tour):
    words = sum(len(c.source.split()) for c in tour.cells if c.cell_type == "markdown")
    lines = sum(len(c.source.splitlines()) for c in code_cells(tour))
    assert words <= 700 and lines <= 100


def test_the_tours_example_shows_what_its_text_says(tour):
    """The visible classes are above all others by SCL, and not by the other sources."""
    printed = {c.id: "".join(map(text_of, c.outputs)) for c in code_cells(tour)}
    rows = re.findall(r"(\w+): .*at least ([.\d]+), others at most ([.\d]+)", printed["says"])
    above = {source: float(lowest) > float(highest) for source, lowest, highest in rows}
    assert above == {"AN": False, "CL": False, "SCL": True}, printed["says"]
    rows = re.findall(r"(\w+): .*highest is visible (\d+)%", printed["often"])
    an, cl, scl = (int(share) for _, share in rows)
    assert an == 0 < cl < scl and scl > 50


def test_the_tours_photograph_says_whose_it_is(tour):
    with Image.open(paths.reference() / "coffee.jpg") as photo:
        said = photo.info["comment"].decode()
    assert "Rachel Michetti" in said and "CC0" in said
    text = "\n".join(cell.source for cell in tour.cells)
    assert "Photograph: Rachel Michetti, CC0" in text.replace("\n", " ")


# --- lectures -------------------------------------------------------------------------------------


def test_the_tour_is_a_lecture_of_slides(tour):
    """A section begins a slide; no slide has two figures; what only prepares is left out."""
    figures = 0
    for cell in tour.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "-")
        assert kind in ("slide", "subslide", "skip", "-")
        assert (kind == "slide") == cell.source.startswith(("# ", "## "))
        figures = figures if kind == "-" else 0
        figures += sum("image/png" in out.get("data", {}) for out in cell.get("outputs", []))
        assert figures <= 1, cell.source
    skipped = [
        c.id for c in tour.cells if c.metadata.get("slideshow", {}).get("slide_type") == "skip"
    ]
    assert skipped == ["parameters", "setup"]
    page, _ = SlidesExporter().from_notebook_node(tour)
    slides = re.split("<section", page)[1:]
    assert len(slides) > 16 and page.count("data:image/png") == 6
    assert not any("# help: scenes to train on" in slide for slide in slides)
    assert all(slide.count("data:image/png") <= 1 for slide in slides)


def test_the_marks_of_slides_survive_a_new_run(tour):
    before = [dict(cell.metadata) for cell in tour.cells]
    for cell in tour.cells:
        cell.metadata["execution"] = {"iopub.status.busy": "now"}
    notebooks.clean(tour)
    assert [dict(cell.metadata) for cell in tour.cells] == before


# --- parameters and running -----------------------------------------------------------------------


def test_a_wrong_parameter_is_an_error():
    with pytest.raises(UserError, match="unknown parameter of 01_train 'methd'. Did you mean 'met"):
        notebooks.check_parameters("01_train", {"methd": "an"})
    with pytest.raises(UserError, match="'seed' of 01_train must be of type int; got '0'"):
        notebooks.check_parameters("01_train", {"seed": "0"})
    with pytest.raises(UserError, match="'force' of 01_train must be of type bool; got 1"):
        notebooks.check_parameters("01_train", {"force": 1})
    with pytest.raises(UserError, match="unknown notebook '01_trian'. Did you mean '01_train'"):
        notebooks.check_parameters("01_trian", {})
    notebooks.check_parameters("01_train", {"method": "scl", "seed": 3, "force": True})


def test_the_program_says_what_is_wrong_with_its_options(tmp_path, capsys):
    out = ("--out", str(tmp_path / "out.ipynb"))
    for options, said in (
        (("--parameters", "[1]", *out), "must be names with values, such as {'seed': 1}; got [1]"),
        (("--parameters", "{seed: 1}", *out), "is no JSON"),
        (("--parameters", '{"sead": 1}', *out), "unknown parameter of 01_train 'sead'"),
        (("02_results", *out), "--out keeps one notebook"),
        (("--out", str(tmp_path)), "cannot hold a notebook"),
    ):
        assert notebooks.main(["01_train", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("spcl: error: ") and said in line


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


def test_a_users_mistake_in_a_notebook_is_one_message(small, tmp_path):
    small("from spcl_lib.runs.settings import make_config\nmake_config('scenes', 'sclx')")
    with pytest.raises(UserError, match="^unknown method 'sclx'. Did you mean 'scl'"):
        notebooks.execute("small", {}, tmp_path / "out.ipynb")
    (error,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert len(error["traceback"]) == 1
    assert error["traceback"][0].startswith("UserError: unknown method 'sclx'")


def test_any_other_failure_of_a_notebook_is_raised(small, tmp_path):
    small("print('so far')\n1 / 0")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        notebooks.execute("small", {}, tmp_path / "out.ipynb")
    assert "so far" in (tmp_path / "out.ipynb").read_text()


def test_nothing_is_left_beside_the_notebook_while_it_runs_or_when_it_fails(tmp_path, monkeypatch):
    def run(source, executed, *arguments, **options):
        assert list(tmp_path.iterdir()) == []
        Path(executed).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", run)
    with pytest.raises(KeyboardInterrupt):
        notebooks.execute("01_train", {}, tmp_path / "out.ipynb")
    assert list(tmp_path.iterdir()) == []


def test_refresh_keeps_outputs_and_counts_only(small):
    file = small("from IPython.display import display", "display(x)", "x + 1")
    ids = [cell.id for cell in nbformat.read(file, as_version=4).cells]
    assert notebooks.refresh(["small"]) == [file]
    notebook = nbformat.read(file, as_version=4)
    assert [cell.id for cell in notebook.cells] == ids
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert notebook.cells[-1].outputs[0]["data"] == {"text/plain": "2"}
    kept = [dict(cell.metadata) for cell in notebook.cells]
    assert kept == [{"tags": ["parameters"]}, {}, {}, {}]
    first = file.read_bytes()
    notebooks.refresh()
    assert file.read_bytes() == first


def test_refresh_refuses_what_was_written_to_stderr(small):
    file = small("import sys\nprint('careful', file=sys.stderr)")
    before = file.read_bytes()
    with pytest.raises(UserError, match="small wrote to stderr.*careful"):
        notebooks.refresh(["small"])
    assert file.read_bytes() == before


# --- nbval is strict ------------------------------------------------------------------------------


def nbval(file):
    """Exit status and output of nbval on a file, in a folder without the project's settings."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", file.name]
    command += ["-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_nbval_passes_on_the_results_as_they_are_and_fails_if_one_digit_is_altered(
    tmp_path, own_kernels
):
    source = paths.notebooks() / "02_results.ipynb"
    original = tmp_path / "original.ipynb"
    original.write_bytes(source.read_bytes())
    status, text = nbval(original)
    assert status == 0, text

    notebook = json.loads(source.read_text())
    altered = tmp_path / "altered.ipynb"
    cell = next(cell for cell in notebook["cells"] if cell["id"] == "table")
    cell["outputs"] = with_another_digit(cell["outputs"])
    altered.write_text(json.dumps(notebook))
    status, text = nbval(altered)
    assert status == 1 and "1 failed" in text, text


def with_another_digit(outputs):
    """The outputs of a cell, with the last digit of a text of theirs changed."""
    outputs = copy.deepcopy(outputs)
    lines = outputs[0]["data"]["text/plain"]
    row, place = next(
        (i, k) for i, line in enumerate(lines) for k, c in enumerate(line) if c.isdigit()
    )
    digit = str((int(lines[row][place]) + 1) % 10)
    lines[row] = lines[row][:place] + digit + lines[row][place + 1 :]
    return outputs
