"""The plan of `reproduce`, what it carries out, and the pages that it ends in."""

import json
import re
from importlib import util

import nbformat
import papermill
import pytest
from fake_runs import fake_runs, write_results
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from small_folder import make_folder

from spcl_lib.reproduce import plan
from spcl_lib.reproduce.pages import write_notebook_page
from spcl_lib.runs.notebooks import notebook_file, notebook_names
from spcl_lib.runs.store import run_folder

PIXEL = "iVBORw0KGgo="  # the beginning of a PNG file is enough


def scenes(profile="cpu", **options):
    return plan.experiment_of("scenes", profile, **options)


def executed_notebook():
    """With a formula, code, a printed line and a figure."""
    printed = new_output("stream", name="stdout", text="37 mAP")
    figure = new_output("display_data", {"image/png": PIXEL})
    cells = [
        new_markdown_cell("# A title\n\nInline $p = \\sigma(s)$, and `cost $5` in `code $x$`.\n"),
        new_markdown_cell("## Curves\n\n$$L = \\frac{1}{B} \\sum_b d_b$$"),
        new_code_cell("print('37 mAP')", outputs=[printed, figure], execution_count=1),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def finished(results):
    """All runs of the main job on scenes are finished."""
    write_results(fake_runs())
    return scenes()


@pytest.fixture
def executed(monkeypatch):
    """No kernel starts: a task leaves its files; gives the names of what was executed."""
    names = []

    def run_tasks(tasks, jobs, title):
        for task in tasks:
            names.append(task.name)
            file = task.log.with_suffix(".ipynb")
            file.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(executed_notebook(), file)
            write_notebook_page(file)
            assert task.is_done()
        return []

    monkeypatch.setattr(plan, "run_tasks", run_tasks)
    monkeypatch.setattr(plan, "run_all", lambda *given: [])
    return names


def needs_nothing_else(page):
    assert not re.search(r"<(script|link|iframe)\b|@import|url\(", page)
    assert not re.search(r"\bsrc=[\"'](?!data:)", page)


def test_every_notebook_is_in_it_once_for_each_experiment_that_it_shows(results, tmp_path):
    folder = plan.experiment_of("folder", "smoke", data_root=make_folder(tmp_path))
    tasks = plan.later_steps([scenes(overrides={"lr": 1e-3}), scenes("smoke"), folder])
    names = [task.name for task in tasks]
    assert len(scenes().runs) == 7 * 3 and {c.method for c in scenes().followed} == {"scl", "an"}
    assert len(set(names)) == len(names)
    assert [n[:8] for n in names if "folder-smoke" in n] == ["01_train", "02_resul", "explorer"]
    notebooks = [task for task in tasks if task.arguments[0] == "spcl_lib.reproduce.pages"]
    assert {task.arguments[1] for task in notebooks} == set(notebook_names())
    for task in notebooks:
        known = papermill.inspect_notebook(str(notebook_file(task.arguments[1])))
        assert set(json.loads(task.arguments[3])) <= set(known)  # papermill would only warn
    assert any("lr=0.001" in task.arguments[3] for task in notebooks)


def test_a_folder_that_is_named_alone_is_what_is_reproduced(spcl, results, tmp_path):
    said = spcl("reproduce", "--list", "--data-root", make_folder(tmp_path)).out
    assert said.startswith("folder-frozen-") and "scenes" not in said


def test_the_list_names_every_step_its_state_and_what_all_runs_cost(spcl, results):
    said = spcl("reproduce", "--list", "--jobs", 2).out
    assert "run   scenes-cpu/en_scl-seed2" in said and "page  00_tour: to do" in said
    assert "to do: runs of about " in said and "with 2 side by side" in said


def test_all_lists_the_data_that_are_there_and_says_which_are_not(spcl, voc, results):
    outcome = spcl("reproduce", "--all", "--list", "--data-root", voc)
    assert outcome.status == 0
    assert "scenes-cpu:" in outcome.out and "voc2007-cpu" in outcome.out
    assert "without voc2012: " in outcome.out and "without imagenet: " in outcome.out


def test_it_ends_in_a_table_and_a_page_and_does_nothing_twice(
    finished, results, executed, spcl, capsys
):
    assert plan.reproduce([finished], 1, False) == 0
    assert re.search(r"EN \+ SCL +3 +82\.\d", capsys.readouterr().out)
    page = (results / "index.html").read_text()
    needs_nothing_else(page)
    assert 'href="notebooks/02_results.html"' in page and "<table" in page and "abc1234" in page
    assert 'href="explorer-scenes-cpu.html"' in page
    assert len(executed) == len(notebook_names()) + 1
    out = spcl("reproduce", "--list").out
    assert "finished, mAP 76.60 %" in out and "page  02_results: finished" in out
    executed.clear()
    (run_folder(finished.runs[-1]) / "metrics.json").touch()
    plan.reproduce([finished], 1, False)
    assert executed == ["02_results"]


def test_a_failed_notebook_is_named_and_is_not_taken_for_finished(
    finished, monkeypatch, capsys, executed, results
):
    run_tasks = plan.run_tasks

    def fail_one(tasks, jobs, title):
        run_tasks(tasks, jobs, title)
        (results / "notebooks" / "00_tour.html").unlink()
        return [task for task in tasks if task.name == "00_tour"]

    monkeypatch.setattr(plan, "run_tasks", fail_one)
    assert plan.reproduce([finished], 1, False) == 1
    assert "failed: 00_tour, log: " in capsys.readouterr().out
    assert (results / "index.html").read_text().count("not finished") == 1
    executed.clear()
    monkeypatch.setattr(plan, "run_tasks", run_tasks)
    assert plan.reproduce([finished], 1, False) == 0 and executed == ["00_tour"]


def test_a_notebook_becomes_a_page_with_code_formulas_and_figures(tmp_path):
    nbformat.write(executed_notebook(), tmp_path / "shown.ipynb")
    write_notebook_page(tmp_path / "shown.ipynb")
    page = (tmp_path / "shown.html").read_text()
    needs_nothing_else(page)
    assert "<title>spcl: shown</title>" in page and "37 mAP" in page
    assert page.count("<math") == 2 and "<mfrac>" in page
    assert "cost $5" in page and "code $x$" in page  # code is no formula
    assert 'alt="Figure: Curves"' in page and 'href="../index.html"' in page


def test_without_a_package_nothing_starts_and_the_status_says_so(spcl, monkeypatch):
    """Without papermill no notebook ran, and the exit status was 0."""
    monkeypatch.setattr(plan, "run_all", lambda *given: pytest.fail("it was started"))
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda n: None if n == "papermill" else find(n))
    outcome = spcl("reproduce")
    assert outcome.status == 2 and "need papermill: pip install" in outcome.err
