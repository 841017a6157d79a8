"""The README's commands from a folder of images to predictions work on a small folder."""

import csv
import re
import shlex
import subprocess

from small_folder import QUICK, make_folder

from spcl_lib.__main__ import main
from spcl_lib.system import paths


def commands():
    """The lines of the first block of the README's section, as words."""
    text = (paths.project() / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## Your own images\n")[2]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


def test_three_commands_lead_from_a_folder_to_predictions(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # there, `results` is where results go
    make_folder(tmp_path / "photos")
    make_folder(tmp_path / "new", any=3)
    train, predict, look = commands()
    for words in (train, predict):
        assert words[:3] == ["python", "-m", "spcl_lib"]
    quick = [text for k, v in QUICK.items() for text in ("--set", f"{k}={v}")]
    assert main([*train[3:], "--profile", "smoke", *quick]) == 0
    assert main(predict[3:]) == 0, capsys.readouterr().err
    shown = subprocess.run(look, check=True, capture_output=True, text=True).stdout
    header, *rows = csv.reader(shown.splitlines())
    assert header == ["path", "cat", "dog", "labels"]
    assert [row[0] for row in rows] == [f"any/any {i}.png" for i in range(3)]
    assert len(list((tmp_path / "overlays").rglob("*.png"))) == 3
