"""What `evaluate` says: lines of text, a file of numbers, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spcl_lib.analysis.statistics import Row, Rows
from spcl_lib.runs.evaluation import Evaluation
from spcl_lib.runs.predictor import Predictor
from spcl_lib.runs.thresholds import LabelRule
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, write_json
from spcl_lib.viewer.style import OTHER_METHOD, house_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 30  # characters of a class's name
_MOST = 100  # most classes in the figure


def evaluation_lines(found: Evaluation, rule: LabelRule, expected_positives: float) -> list[str]:
    """All numbers as lines of text: mAP, what thresholds give, and a table of the classes.

    Args:
        found: the evaluation.
        rule: which scores are labels.
        expected_positives: see `Evaluation.rule_rows`.
    """
    metrics = found.metrics()
    count, without = len(found.scores), metrics["classes_without_positive"]
    each = f"{float(found.labels.sum(1).double().mean()):.2f} labels each"
    known = "one known label each" if found.single else f"all labels known, {each}"
    lines = [
        f"{count:,} images, {known}",
        f"mAP {metrics['mAP']:.2f} %"
        + (f", without {without} classes that no image shows" if without else ""),
    ]
    if found.single:
        lines.append("A label that nobody gave counts as wrong here, so the true mAP is higher.")
    numbers = ("per image",) if found.single else ("per image", "OF1", "CF1")
    rows = found.rule_rows(rule, expected_positives)
    lines += ["", *_table(rows, "labels", numbers)]
    if found.single:
        lines.append(f"(chosen here: so that an image has {expected_positives:g} labels)")
    elif len(rows) > 1:
        lines.append("(chosen here: on one half of these images, and measured on the other half)")
    numbers = ("AP",) if found.single else ("AP", "precision", "recall", "F1")
    return [*lines, "", *_table(found.class_rows(rule), "class", ("images", *numbers))]


def _table(rows: Rows, first: str, numbers: Sequence[str]) -> list[str]:
    lines = [f"{first:{_WIDTH}}" + "".join(f"{name:>11}" for name in numbers)]
    for row in rows:
        name = row[first] if len(row[first]) <= _WIDTH else f"{row[first][: _WIDTH - 1]}…"
        lines.append(f"{name:{_WIDTH}}" + "".join(f"{_number(row, n):>11}" for n in numbers))
    return lines


def _number(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return "-"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.{2 if name == 'per image' else 1}f}"
    )


def write_evaluation(
    found: Evaluation, predictor: Predictor, expected_positives: float, folder: Path
) -> list[Path]:
    """Writes evaluation.json (all numbers) and evaluation.png (the classes).

    Returns:
        Both files.

    Raises:
        UserError: they cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file; --out needs a folder")
    rows, metrics = found.class_rows(predictor.rule), found.metrics()
    numbers, picture = folder / "evaluation.json", folder / "evaluation.png"
    write_json(
        numbers,
        {
            "scores": predictor.scores_of(), "rule": str(predictor.rule),
            "images": len(found.scores), "left_out": list(found.skipped),
            "known_labels": "single" if found.single else "full", **metrics,
            "rules": found.rule_rows(predictor.rule, expected_positives), "classes": rows,
        },
    )  # fmt: skip
    title = f"mAP {metrics['mAP']:.1f} %, {len(found.scores):,} images of {predictor.size} px"
    if not found.single:
        f1 = found.rule_rows(predictor.rule, expected_positives)[0]
        title += f"; OF1 {f1['OF1']:.1f} %, CF1 {f1['CF1']:.1f} %\nlabels are {predictor.rule}"
    with atomic_write(picture, ".png") as temporary:
        class_figure(rows, title, found.single).savefig(temporary, dpi=120)
    return [numbers, picture]


@house_style
def class_figure(rows: Rows, title: str, single: bool = False) -> Figure:
    """Shows AP (bar) and F1 (dot) of every class, the highest AP on top.

    Args:
        rows: of `Evaluation.class_rows`. Classes that no image shows are left out, and of more than
            100 classes, those with the fewest images.
        title: text above.
        single: whether the labels are single; then F1 means nothing.
    """
    import matplotlib.pyplot as plt

    known = sorted((row for row in rows if row["images"]), key=lambda row: row["images"])
    known = sorted(known[-_MOST:], key=lambda row: row["AP"])
    figure, axes = plt.subplots(figsize=(7.2, 1.4 + 0.26 * len(known)), layout="constrained")
    places = range(len(known))
    axes.barh(places, [row["AP"] for row in known], color="#9ecae1", height=0.72, label="AP")
    if not single:
        dots = [row["F1"] for row in known]
        axes.plot(
            dots, places, "o", color=OTHER_METHOD, markersize=5, label="F1", clip_on=False, zorder=3
        )
    names = [f"{row['class']} ({row['images']:,})" for row in known]
    axes.set(yticks=places, yticklabels=names, xlim=(0, 100), ylim=(-0.6, len(known) - 0.4))
    axes.set_xlabel("% (in brackets: images that show the class)")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(False, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
