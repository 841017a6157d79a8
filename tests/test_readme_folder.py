"""The README's commands from a folder of images to predictions work on a small folder."""

import csv
import json
import re
import shlex
import subprocess

from small_folder import QUICK, make_folder, write_csv

from spcl_lib.__main__ import main
from spcl_lib.system import paths


def blocks(language):
    """The code blocks of the README's section."""
    text = (paths.project() / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Your own images\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def commands():
    """The lines of all blocks of commands, as words."""
    lines = "".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def test_commands_lead_from_a_folder_to_predictions_and_their_evaluation(
    results, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # there, `results` is where results go
    make_folder(tmp_path / "photos")
    make_folder(tmp_path / "new", any=3)
    train, predict, look, judge, again, audit = commands()
    for words in (train, predict, judge, again, audit):
        assert words[:3] == ["python", "-m", "spcl_lib"]
    quick = [text for k, v in QUICK.items() for text in ("--set", f"{k}={v}")]
    assert main([*train[3:], "--profile", "smoke", *quick]) == 0
    assert main(predict[3:]) == 0, capsys.readouterr().err
    shown = subprocess.run(look, check=True, capture_output=True, text=True).stdout
    header, *rows = csv.reader(shown.splitlines())
    assert header == ["path", "cat", "dog", "labels"]
    assert [row[0] for row in rows] == [f"any/any {i}.png" for i in range(3)]
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 3

    write_csv(tmp_path / "full.csv", "path,labels", *(f"new/any/any {i}.png,cat" for i in range(3)))
    assert main(judge[3:]) == 0, capsys.readouterr().err
    assert main(again[3:]) == 0, capsys.readouterr().err
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert ["cat" in row["labels"] for row in predicted] == [True] * 3

    assert main(audit[3:]) == 0, capsys.readouterr().err
    assert (tmp_path / "audit" / "audit.html").is_file()
    with open(tmp_path / "audit" / "audit.csv", encoding="utf-8") as file:
        kinds = [row["kind"] for row in csv.DictReader(file)]
    assert kinds == ["missing"] * 12 + ["wrong"] * 12  # of 15 images, 3 are held out

    found = {"images": sorted((tmp_path / "new/any").iterdir())}
    exec("".join(blocks("python")), found)
    assert found["scores"].shape == (3, 2) and len(found["labels"]) == 3
    assert found["heatmaps"].shape[:2] == (3, 2)
