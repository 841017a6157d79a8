"""What `evaluate` says: lines of text, and a file of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spcl_lib.runs.evaluation import Evaluation, Row
from spcl_lib.runs.predictor import LabelRule, Predictor, one_sided
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import write_json

_WIDTH = 30  # characters of a class's name


def evaluation_lines(found: Evaluation, rule: LabelRule, expected_positives: float) -> list[str]:
    """All numbers as lines of text: mAP, what thresholds give, and a table of the classes.

    Args:
        found: the evaluation.
        rule: which scores are labels.
        expected_positives: see `Evaluation.rule_rows`.
    """
    metrics, single = found.metrics(), found.single
    count, without = len(found.scores), metrics["classes_without_positive"]
    each = f"all labels known, {float(found.labels.sum(1).double().mean()):.2f} labels each"
    lines = [f"{count:,} images, {'one known label each' if single else each}",
             f"mAP {metrics['mAP']:.2f} %"]  # fmt: skip
    if without:
        lines[1] += f", without {without} classes that no image shows"
    if single:
        lines.append("A label that nobody gave counts as wrong here, so the true mAP is higher.")
    rows = found.rule_rows(rule, expected_positives)
    lines += ["", *_table(rows, ["labels", "per image"] + ([] if single else ["OF1", "CF1"]))]
    if single:
        lines.append(f"(chosen here: so that an image has {expected_positives:g} labels)")
    elif len(rows) > 1:
        lines.append("(chosen here: on one half of these images, and measured on the other half)")
    numbers = ["AP"] if single else ["AP", "precision", "recall", "F1"]
    lines += ["", *_table(found.class_rows(rule), ["class", "images", *numbers])]
    return lines + one_sided(rule.choose(found.scores), found.classes)


def _table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    first, *rest = columns
    lines = [f"{first:{_WIDTH}}" + "".join(f"{name:>11}" for name in rest)]
    for row in rows:
        name = row[first] if len(row[first]) <= _WIDTH else f"{row[first][: _WIDTH - 1]}…"
        lines.append(f"{name:{_WIDTH}}" + "".join(f"{_number(row[n], n):>11}" for n in rest))
    return lines


def _number(value: Any, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{1 + (name == 'per image')}f}"


def write_evaluation(
    found: Evaluation, predictor: Predictor, expected_positives: float, folder: Path
) -> Path:
    """Writes evaluation.json, with all numbers.

    Returns:
        The file.

    Raises:
        UserError: it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file; --out needs a folder")
    rule, file = predictor.rule, folder / "evaluation.json"
    write_json(file, {
        "size": predictor.size, "pooling": str(predictor.pooling), "rule": str(rule),
        "threshold": found.threshold(expected_positives), "images": len(found.scores),
        "left_out": list(found.skipped), "known_labels": "single" if found.single else "full",
        **found.metrics(), "rules": found.rule_rows(rule, expected_positives),
        "classes": found.class_rows(rule),
    })  # fmt: skip
    return file
