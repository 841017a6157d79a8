"""results/summary.csv: one row per finished run."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from spcl_lib import paths
from spcl_lib.data.cache import locked, replacing

SUMMARY_COLUMNS = (
    "dataset", "profile", "method", "seed", "mAP", "epochs", "train_seconds", "CF1", "OF1",
    "report", "folder",
)  # fmt: skip


def write_summary() -> Path:
    """Writes results/summary.csv anew: one row per finished run."""
    path = paths.results() / "summary.csv"
    with locked(path):  # runs that end together must not undo each other's row
        rows = []
        for file in sorted(paths.results().glob("*/*/metrics.json")):
            try:
                rows.append(_row(file))
            except (ValueError, KeyError, TypeError):
                print(f"spcl: '{file}' is damaged and left out; run it again", file=sys.stderr)
        with replacing(path) as temporary, open(temporary, "w", newline="") as handle:
            writer = csv.DictWriter(handle, SUMMARY_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    return path


def _row(path: Path) -> dict[str, object]:
    metrics = json.loads(path.read_text())
    row = {name: metrics[name] for name in SUMMARY_COLUMNS[:7]}
    row |= {name: metrics["at_0.5"][name] for name in ("CF1", "OF1")}
    return row | {"report": metrics["config"]["report"], "folder": path.parent.name}
