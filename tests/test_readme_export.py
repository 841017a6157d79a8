"""The README's commands and lines for another program give the labels of a photograph."""

import os
import re
import shlex

import numpy as np
import pytest
from small_folder import QUICK, make_folder

from spcl_lib import Predictor
from spcl_lib.__main__ import main
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
SECTION = re.search(r"^## In another program$(.*?)^## ", README, re.M | re.S)[1]
COMMANDS = re.search(r"^```bash\n(.*?)^```$", SECTION, re.M | re.S)[1].splitlines()
LINES = re.search(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)[1]


def test_an_exported_run_labels_a_photograph(results, tmp_path, monkeypatch, capsys):
    install, export = COMMANDS
    for package in install.removeprefix("pip install ").split():
        pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    photos = make_folder(tmp_path / "photos")
    quick = [text for k, v in QUICK.items() for text in ("--set", f"{k}={v}")]
    folder = ["--dataset", "folder", "--data-root", str(photos), "--profile", "smoke"]
    assert main(["run", *folder, "--method", "an", *quick]) == 0
    words = shlex.split(export)
    assert words[:3] == ["python", "-m", "spcl_lib"]
    assert main(words[3:]) == 0
    os.rename(photos / "cat" / "cat 0.png", "photo.jpg")
    capsys.readouterr()
    names = {}
    exec(LINES, names)
    printed = capsys.readouterr().out

    predictor = Predictor.load("results")
    expected = predictor("photo.jpg").numpy()
    np.testing.assert_allclose(names["probabilities"], expected, atol=0.02)  # Pillow rounds
    labels = [c for c, p in zip(predictor.classes, names["probabilities"][0], strict=True)
              if p >= predictor.threshold]  # fmt: skip
    assert printed.strip() == str(labels)
    assert names["heatmaps"].shape[:2] == (1, 2)
