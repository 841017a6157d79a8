"""What `evaluate` says: lines of text, and a file of numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spcl_lib.runs.evaluation import Evaluation, Row
from spcl_lib.runs.predictor import LabelRule, Predictor, one_sided
from spcl_lib.system.files import write_json


def evaluation_lines(found: Evaluation, rule: LabelRule, expected_positives: float) -> list[str]:
    """All numbers as lines of text: mAP, what thresholds give, and a table of the classes."""
    metrics, single = found.metrics(), found.single
    each = f"all labels known, {float(found.labels.sum(1).double().mean()):.2f} labels each"
    lines = [f"{len(found.scores):,} images, {'one known label each' if single else each}"]
    without = metrics["classes_without_positive"]
    more = f", without {without} classes that no image shows" if without else ""
    lines.append(f"mAP {metrics['mAP']:.2f} %{more}")
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
    cells = [columns, *([_text(row[name]) for name in columns] for row in rows)]
    return [f"{first:30}" + "".join(f"{cell:>11}" for cell in rest) for first, *rest in cells]


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def write_evaluation(
    found: Evaluation, predictor: Predictor, expected_positives: float, folder: Path
) -> Path:
    """Writes evaluation.json, with all numbers; returns the file."""
    rule, file = predictor.rule, folder / "evaluation.json"
    write_json(file, {
        "size": predictor.size, "pooling": str(predictor.pooling), "rule": str(rule),
        "threshold": found.threshold(expected_positives), "images": len(found.scores),
        "left_out": list(found.skipped), "known_labels": "single" if found.single else "full",
        **found.metrics(), "rules": found.rule_rows(rule, expected_positives),
        "classes": found.class_rows(rule),
    })  # fmt: skip
    return file
