"""Every notebook and the index become pages, each in one file that needs no other file."""

import re

import nbformat
import pytest
from fake_runs import MEANS, fake_runs
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from spcl_lib.reproduce import pages

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def needs_nothing_else(page):
    assert not re.search(r"<(script|link|iframe)\b|@import|url\(", page)
    assert not re.search(r"\bsrc=[\"'](?!data:)", page)


@pytest.fixture
def notebook(tmp_path):
    """An executed notebook with a formula, code, a printed line and a figure."""
    printed = new_output("stream", name="stdout", text="37 mAP")
    figure = new_output("display_data", {"image/png": PIXEL})
    cells = [
        new_markdown_cell("# A title\n\nInline $p = \\sigma(s)$, and `cost $5` in `code $x$`.\n"),
        new_markdown_cell("## Curves\n\n$$L = \\frac{1}{B} \\sum_b d_b$$"),
        new_code_cell("print('37 mAP')", outputs=[printed, figure], execution_count=1),
    ]
    file = tmp_path / "shown.ipynb"
    nbformat.write(new_notebook(cells=cells), file)
    return file


def test_a_notebook_becomes_a_page_with_code_formulas_and_figures(notebook):
    page = pages.write_notebook_page(notebook).read_text()
    needs_nothing_else(page)
    assert "<title>spcl: shown</title>" in page and "37 mAP" in page
    assert page.count("<math") == 2 and "<mfrac>" in page
    assert "cost $5" in page and "code $x$" in page  # code is no formula
    assert 'alt="Figure: Curves"' in page and 'href="../index.html"' in page
    assert "print" in page


def test_the_code_can_be_left_out(notebook):
    page = pages.write_notebook_page(notebook, show_code=False).read_text()
    assert "37 mAP" in page and "print" not in page


ENTRY = {"profile": "cpu", "facts": {"commit": "abc1234", "data": "drawn"}}
DONE = {"title": "Results: do the claims hold?", "finished": True, "seconds": 12.0}


def index(results, **experiments):
    notebooks = {
        "02_results": DONE,
        "03_crop_recovery": {"skipped": "these data do not tell where objects are"},
        "04_heatmaps": DONE | {"finished": False},
    }
    runs = {name: fake_runs("scenes", entry["profile"]) for name, entry in experiments.items()}
    manifest = {"experiments": experiments, "notebooks": notebooks}
    return pages.write_index(manifest, runs).read_text()


def test_the_index_links_the_notebooks_and_shows_the_table_and_where_it_comes_from(results):
    page = index(results, **{"scenes-cpu": ENTRY})
    needs_nothing_else(page)
    assert '<a href="notebooks/02_results.html">Results: do the claims hold?</a>' in page
    assert "03_crop_recovery: these data do not tell" in page
    assert page.count("stopped with an error") == 1
    assert f"<td>{MEANS['an'] + 0.2:.1f}</td>" in page and "<td>EN + SCL</td>" in page
    assert "<td>+14.7 (+14.2 to +15.3)</td>" in page and "2,000 to report on" in page
    assert "commit: abc1234" in page and "mean nothing" not in page


def test_the_index_links_the_explorer_of_every_experiment_that_has_one(results):
    results.mkdir()
    (results / "explorer-scenes-smoke.html").write_text("")
    smoke = ENTRY | {"profile": "smoke"}
    page = index(results, **{"scenes-cpu": ENTRY, "scenes-smoke": smoke})
    assert '<a href="explorer-scenes-smoke.html">The explorer</a>' in page
    assert page.count("The explorer</a>") == 1
    (results / "explorer.html").write_text("")
    assert '<a href="explorer.html">The explorer</a>' in index(results, **{"scenes-cpu": ENTRY})


def test_the_index_says_of_a_smoke_test_that_its_numbers_mean_nothing(results):
    page = index(results, **{"scenes-cpu": ENTRY, "scenes-smoke": ENTRY | {"profile": "smoke"}})
    assert page.count("these numbers mean nothing") == 1 and "<h2>scenes-smoke</h2>" in page
