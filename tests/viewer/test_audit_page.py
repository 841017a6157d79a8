"""`audit` writes a page that needs no other file, and a CSV file that other tools read."""

import csv
import re

from small_folder import FOLDER, QUICK, make_folder

from spcl_lib.data.scenes import CLASSES

COLUMNS = ["path", "class", "kind", "score", "x0", "y0", "x1", "y1"]


def read_rows(file):
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as handle:
        header, *rows = csv.reader(handle)
    assert header == COLUMNS
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_run_gives_a_page_and_a_file_wherever_its_folder_is(spcl, results, tiny, tmp_path):
    assert spcl("run", "--method", "scl", **tiny).status == 0
    (file,) = results.rglob("metrics.json")
    elsewhere, out = file.parent.rename(tmp_path / "moved"), tmp_path / "found"
    outcome = spcl("audit", "--run", elsewhere, "--out", out, "--most", 30)
    assert outcome.status == 0, outcome.err
    assert re.search(r"first 30 missing labels, \d+% are right \(a random pair: ", outcome.out)
    rows = read_rows(out / "audit.csv")
    assert [row["kind"] for row in rows] == ["missing"] * 30 + ["wrong"] * 30
    for part in (rows[:30], rows[30:]):
        scores = [float(row["score"]) for row in part]
        assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
    for row in rows:
        x0, y0, x1, y1 = (float(row[name]) for name in COLUMNS[4:])
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        assert row["class"] in CLASSES and re.fullmatch(r"train-\d{5}", row["path"])
    assert all([*row.values()][4:] == ["0.0000"] * 2 + ["1.0000"] * 2 for row in rows[30:])
    page = (out / "audit.html").read_text()
    assert page.count("<figure>") == 60 and outcome.out.splitlines()[1] in page
    assert set(re.findall(r'(?:src|href)="([^",]*)', page)) == {"data:image/jpeg;base64"}
    assert not list(out.glob(".*"))


def test_own_images_with_names_that_are_no_formula_and_no_html(spcl, results, tmp_path):
    photos = make_folder(tmp_path / "photos", **{"=cat": 6, "<b>dog": 6})
    done = spcl(*FOLDER, "--data-root", photos, **QUICK)
    assert done.status == 0, done.err
    outcome = spcl("audit", "--run", results, "--out", tmp_path / "found")
    assert outcome.status == 0, outcome.err
    assert "are right" not in outcome.out  # nobody knows all labels
    rows = read_rows(tmp_path / "found" / "audit.csv")
    assert len(rows) == 20 and {row["class"] for row in rows} == {"'=cat", "<b>dog"}
    assert all(row["path"].startswith(("./=cat/=cat ", "<b>dog/<b>dog ")) for row in rows)
    page = (tmp_path / "found" / "audit.html").read_text()
    assert "<b>dog" not in page and "has: &lt;b&gt;dog" in page and "not =cat?" in page
