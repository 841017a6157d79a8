"""The exercises: the answers in the notebook are right, empty cells are not, mistakes are named."""

import contextlib
import io
import re

import nbformat

from spcl_lib.system import paths

CELLS = nbformat.read(paths.notebooks() / "09_exercises.ipynb", as_version=4).cells
NAMES = [cell.id.partition("-")[2] for cell in CELLS if "exercise" in cell.metadata.get("tags", [])]


def said_by_checks(answers):
    """What every check prints when the notebook is run with these answers (code by exercise)."""
    known, said = {}, {}
    for cell in (cell for cell in CELLS if cell.cell_type == "code"):
        kind, _, name = cell.id.partition("-")
        code = answers.get(name, cell.source) if kind == "exercise" else cell.source
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, cell.id, "exec"), known)
        if kind == "check":
            said[name] = printed.getvalue().strip()
    return said


def test_the_answers_are_right():
    answers = {}
    for name in NAMES:
        (cell,) = (cell for cell in CELLS if cell.id == f"answer-{name}")
        (answers[name],) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    assert said_by_checks(answers) == dict.fromkeys(NAMES, "Right.")


def test_usual_mistakes_are_named():
    said = said_by_checks({
        "hidden": "hidden = ~z", "box": "box = [0.0, 0.0, 1.0, 1.0]", "target": "t = H[:2, 2:]",
        "return": "back = torch.zeros(4, 4)\nback[:2, 2:] = m", "average": "average = 0.567",
        "possible": "left_out = (P >= 0.3) & (one == 0)", "loss": "loss = each.mean()",
        "pooling": "pooled = [f.mean(), f.flatten().logsumexp(0)]",
        "interval": "d = scores['scl'] - scores['cl']\n"
        "interval = [d.mean() - 2 * d.std() / 3**0.5, d.mean() + 2 * d.std() / 3**0.5]",
    })  # fmt: skip
    words = {
        "hidden": "all unknown labels", "box": "still shows a part of its label",
        "target": "left and right", "return": "on the way back", "average": "this is the mean",
        "possible": "highest averages", "loss": "this is AN", "pooling": "log of the mean",
        "interval": "two standard errors",
    }  # fmt: skip
    for name, text in said.items():
        assert text.startswith("Not right: ") and words[name] in text, (name, text)
