"""The exercises: the hidden answers are right, empty cells are not, and mistakes are named."""

import contextlib
import io
import re

import nbformat
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from spcl_lib import Views
from spcl_lib.analysis import exercises
from spcl_lib.data.draws import single_label_draw
from spcl_lib.data.scenes import make_scenes
from spcl_lib.system import paths

CELLS = nbformat.read(paths.notebooks() / "09_exercises.ipynb", as_version=4).cells
NAMES = [cell.id.partition("-")[2] for cell in CELLS if "exercise" in cell.metadata.get("tags", [])]
ANSWER = re.compile(r"<details><summary>Answer</summary>\n\n.*\n\n</details>", re.DOTALL)


def answer_of(name):
    """The code of an exercise's hidden answer."""
    (cell,) = (cell for cell in CELLS if cell.id == f"answer-{name}")
    assert cell.cell_type == "markdown" and ANSWER.fullmatch(cell.source)
    (code,) = re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)
    return code


def said_by_checks(solve):
    """What every check prints when the notebook is run from top to bottom."""
    known, said = {}, {}
    for cell in (cell for cell in CELLS if cell.cell_type == "code"):
        kind, _, name = cell.id.partition("-")
        code = answer_of(name) if solve and kind == "exercise" else cell.source
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, cell.id, "exec"), known)
        if kind == "check":
            said[name] = printed.getvalue().strip()
    return said


def test_the_hidden_answers_are_right():
    said = said_by_checks(solve=True)
    assert list(said) == NAMES and len(NAMES) == 9
    assert {name: text for name, text in said.items() if not text.startswith("Right. ")} == {}


def test_an_empty_cell_is_not_right():
    assert said_by_checks(solve=False) == dict.fromkeys(NAMES, exercises.NOT_YET)


def test_every_exercise_has_a_task_a_cell_a_check_and_an_answer_in_this_order():
    kinds = ("task", "exercise", "check", "answer")
    ids = [c.id for c in CELLS if c.id.partition("-")[0] in kinds and "-" in c.id]
    assert ids == [f"{kind}-{name}" for name in NAMES for kind in kinds]
    for cell in CELLS:
        if "exercise" in cell.metadata.get("tags", []):
            assert re.fullmatch(r"\w+ = None  # your turn: .+", cell.source)


# --- mistakes -------------------------------------------------------------------------------------

SCENES = make_scenes(12)
Y = SCENES.labels
Z = single_label_draw(Y, seed=0)
LOGITS = torch.linspace(-2, 2, 20).view(5, 4).requires_grad_()
LABELS = F.one_hot(torch.tensor([0, 1, 2, 3, 0]), 4).float()
EACH = F.binary_cross_entropy_with_logits(LOGITS, LABELS, reduction="none")
H = torch.arange(16).view(4, 4) / 20
V = Views(torch.tensor([[0.5, 0.0, 1.0, 0.5]]), torch.tensor([True]))
M = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
P = torch.tensor([[0.9, 0.3, 0.20, 0.1], [0.8, 0.4, 0.15, 0.2], [0.3, 0.1, 0.25, 0.6]])
ONE = torch.eye(3, 4)
MAP = torch.full((7, 7), -3.0)
MAP[2, 4] = 6.0
TABLE = pd.DataFrame(
    {"low": [1.0, -0.5, 0.2, -0.9], "high": [2.0, 0.5, 0.4, -0.1]}, index=["GR", "CL", "EN", "ASL"]
)


def in_the_full_image(maps):
    back = torch.zeros(4, 4)
    back[:2, 2:] = maps
    return back


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (exercises.check_hidden(Y, Y, Z), "all positives, also"),
        (exercises.check_hidden(~Z, Y, Z), "all unknown labels"),
        (exercises.check_hidden(Z, Y, Z), "the ones that AN gets right"),
        (exercises.check_hidden(torch.zeros(2, 2), Y, Z), "must have the shape (12, 12)"),
        (exercises.check_hidden("all", Y, Z), "must hold numbers; got str"),
        (exercises.check_box([0, 0, 2, 1], SCENES, 11, Z), "0 <= x0 < x1 <= 1"),
        (exercises.check_box([0, 0.5], SCENES, 11, Z), "boxes must"),
        (exercises.check_box(5, SCENES, 11, Z), "boxes must"),
        (exercises.check_box("left", SCENES, 11, Z), "Not right: "),
        (exercises.check_box([0, 0.5, 0.3, 1], SCENES, 11, Z), "less than 25% of the image's"),
        (exercises.check_box([0, 0, 1, 1], SCENES, 11, Z), "still shows 100% of its label"),
        (exercises.check_box([0.5, 0, 1, 1], SCENES, 11, Z), "a part of: umbrella."),
        (exercises.check_target(H[:2, 2:], H, V), "left and right change places"),
        (exercises.check_target(H[:2, :2], H, V), "4 of 4 values differ"),
        (exercises.check_return(in_the_full_image(M), M, V), "also on the way back"),
        (exercises.check_average(0.268, [0.2, 0.6, 0.9], 0.8), "Not right: 1 of 1"),
        (exercises.check_average(0.3016, [0.2, 0.6, 0.9], 0.8), "this begins with 0"),
        (exercises.check_average(0.5667, [0.2, 0.6, 0.9], 0.8), "this is the mean"),
        (exercises.check_average(float("nan"), [0.2, 0.6, 0.9], 0.8), "1 of 1 values differ"),
        (exercises.check_possible(P > 0, P, ONE, 2), "9 of 12 values differ"),
        (exercises.check_pooling([MAP.mean(), MAP.flatten().logsumexp(0)], MAP, 1.0), "not of"),
        (exercises.check_loss(EACH.mean(), LOGITS, LABELS), "this is AN"),
        (exercises.check_loss(0.5, LOGITS, LABELS), "values differ"),
        (exercises.check_loss(EACH.mean().detach(), LOGITS, LABELS), "no gradient"),
        (exercises.check_better("GR", TABLE), "must be a list"),
        (exercises.check_better(["GR", "GRR"], TABLE), "no names of the table: GRR"),
        (exercises.check_better(["GR", "CL", "EN"], TABLE), "of CL is -0.50 to 0.50; it holds 0"),
        (exercises.check_better(["GR", "ASL", "EN"], TABLE), "-0.10; the method is worse"),
        (exercises.check_better(["EN"], TABLE), "an interval above 0: GR"),
    ],
)
def test_a_mistake_is_named(said, words):
    assert said.startswith("Not right: ") and words in said


def test_what_en_leaves_out_has_hints_for_the_two_usual_mistakes():
    right = (P / torch.tensor([0.9, 0.4, 0.25, torch.inf]) >= 0.75) & (ONE == 0)
    assert exercises.check_possible(right, P, ONE, 2).startswith("Right. ")
    assert "observed labels are certain" in exercises.check_possible(right | (ONE == 1), P, ONE, 2)
    top = P.masked_fill(ONE == 1, 0).flatten().topk(3).values[-1]
    assert "divide each class" in exercises.check_possible((P >= top) & (ONE == 0), P, ONE, 2)


def test_an_answer_by_hand_may_be_rounded():
    assert exercises.check_average(0.404, [0.2, 0.6, 0.9], 0.8).startswith("Right. ")
    assert exercises.check_average("0.404", [0.2, 0.6, 0.9], 0.8).startswith("Not right: ")
