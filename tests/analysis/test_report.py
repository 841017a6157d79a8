"""The table for people, as texts and in the README's blocks."""

import re

from fake_runs import fake_runs, runs_of, write_reference

from spcl_lib.analysis import report
from spcl_lib.analysis.results import references
from spcl_lib.system import paths


def test_readable_table():
    frame = report.readable_table(runs_of(an=[70.0, 72.0], en_scl=[75.0, 76.0], full=[90.0, 92.0]))
    assert list(frame.index) == ["AN", "EN + SCL", "Full"]
    assert frame.loc["AN", "mAP %"] == "71.0 ± 1.4"
    assert frame.loc["AN", "gain over AN"] == ""
    assert frame.loc["EN + SCL", "gain over AN"] == "+4.5 ± 0.7"
    assert frame.loc["EN + SCL", "gap closed"] == "22 %"  # 4.5 / 20
    assert frame.loc["EN + SCL", "training"] == "40 s"


def test_other_references(reference):
    write_reference(fake_runs())
    assert len(report.other_tables("scenes", "cpu")) == 0
    write_reference(fake_runs("voc2007", methods=("an", "full")))
    frame = report.other_tables("scenes", "cpu")
    assert list(frame.index) == [("voc2007, cpu", "AN"), ("voc2007, cpu", "Full")]


# --- README ---------------------------------------------------------------------------------------


def test_readme_blocks_are_filled_and_stay(reference, tmp_path):
    write_reference(fake_runs())
    readme = tmp_path / "README.md"
    block = "<!-- table scenes-cpu -->\nold\n<!-- end -->"
    other = "<!-- table voc2007-cpu -->\nas it was\n<!-- end -->"
    readme.write_text(f"before\n{block}\nbetween\n{other}\nafter\n")
    assert report.update_readme(readme) is True
    text = readme.read_text()
    assert "old" not in text and text.startswith("before\n<!-- table scenes-cpu -->\n\n| method |")
    assert text.endswith(f"\n<!-- end -->\nbetween\n{other}\nafter\n")
    assert "| EN + SCL | 82.9 ± 0.4 |" in text and "A processor, 2 cores" in text
    assert report.update_readme(readme) is False and readme.read_text() == text


def test_readme_equals_the_reference_results():
    text = (paths.project() / "README.md").read_text()
    for name in re.findall(r"<!-- table ([\w-]+) -->", text):
        assert name in [f"{d}-{p}" for d, p in references()], f"no reference for {name}"
    assert report.fill_tables(text) == text, "run: python -m spcl_lib reference"
