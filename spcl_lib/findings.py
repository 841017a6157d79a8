"""The findings of a data set about crop recovery and localisation: measured once, kept in one file.

Small enough for version control (notebooks/reference/crop-recovery-<dataset>-<profile>.json), so
that they can be read and drawn without training. recovery_tables.py and recovery_claims.py
make tables and sentences of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spcl_lib import binary, localisation, measuring, paths, recovery, visibility
from spcl_lib.ablation import RECOVERY_SCALE, command, crop_scale_configs, crop_scale_rows
from spcl_lib.config import RunConfig, make_config
from spcl_lib.data.cache import fingerprint, replacing
from spcl_lib.errors import UserError, unknown
from spcl_lib.experiment import finished, run_folder

Findings = dict[str, Any]  # "about", and tables: lists of rows

SOURCES = ("auto", "reference", "results")
_VARIED = ("method", "seed", "scale_min", "snapshots")  # what is no setting of the whole


def load_findings(
    source: str,
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scale: float | None = None,
    overrides: dict[str, object] | None = None,
    data_root: str | Path | None = None,
) -> Findings:
    """The findings, from the reference file or from this machine's runs.

    Args:
        source: "reference": the file kept under version control; "results": this machine's
            finished runs, measured now unless they have been; "auto": the file if it is there and
            about the crops asked for, and no setting is overridden, else the runs.
        dataset: a key of config.PROFILES.
        profile: a key of config.PROFILES[dataset].
        seeds: of the runs.
        scale: least area of the crops that the runs were trained with; None: what there is,
            the reference file's, else RECOVERY_SCALE's runs, else those of the main job.
        overrides: of the runs' other settings.
        data_root: see `paths.data_root`.

    Raises:
        UserError: there are no such findings and no runs to measure; the message says how to make
            them.
    """
    if source not in SOURCES:
        raise unknown("source", source, SOURCES)
    make_config(dataset, "scl", 0, profile)  # checks the names
    file = reference_file(dataset, profile)
    if source == "reference" or (source == "auto" and not overrides and file.is_file()):
        kept = _read(file)
        if source == "reference" or scale in (None, kept["about"]["scale_min"]):
            return kept
    return _measured(dataset, profile, seeds, scale, overrides, data_root)


def reference_file(dataset: str, profile: str) -> Path:
    """Where the findings of a data set are kept under version control."""
    return paths.reference() / f"crop-recovery-{dataset}-{profile}.json"


def _read(file: Path) -> Findings:
    try:
        found = json.loads(file.read_text())
        found["about"]["scale_min"]
        return found
    except FileNotFoundError:
        raise UserError(
            f"there are no reference findings '{file.name}'; measure this machine's runs with "
            "source=results, or keep them with: python -m spcl_lib recovery --keep"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"file '{file}' is damaged ({error}); make it anew") from error


def _measured(
    dataset: str,
    profile: str,
    seeds: Sequence[int],
    scale: float | None,
    overrides: dict[str, object] | None,
    data_root: str | Path | None,
) -> Findings:
    """Findings of this machine's runs; kept in results/ until a run or the code changes."""
    usual = make_config(dataset, "scl", 0, profile).scale_min
    scales = (RECOVERY_SCALE, usual) if scale is None else (scale,)
    plans = [crop_scale_configs(dataset, profile, seeds, [s], overrides=overrides) for s in scales]
    wanted = next(filter(_has_averages, plans), None)
    if wanted is None:
        raise UserError(
            f"no finished run of {dataset} (profile {profile}, crops from {scales[0]:g} of the "
            f"image) with running averages in '{paths.results()}'; make them with: "
            f"{command(plans[0])}"
        )
    done = [c for c in wanted if finished(c) is not None]
    every = crop_scale_configs(dataset, profile, seeds, overrides=overrides)
    scores = crop_scale_rows(list(dict.fromkeys([*every, *wanted])))
    about = _about(wanted, done)
    code = (measuring, recovery, visibility, localisation, binary)
    files = [(run_folder(c) / "metrics.json").read_bytes() for c in done]
    key = fingerprint((*code, *files))
    file = paths.results() / f"crop-recovery-{dataset}-{profile}-{key}.json"
    tables = _read(file) if file.is_file() else measuring.measure(done, data_root)
    found = tables | {"about": about, "crop_scale": scores}
    _write(file, found)
    return _read(file)


def _has_averages(configs: Sequence[RunConfig]) -> bool:
    """Whether one of the runs is finished and keeps averages."""
    return any(finished(c) and (run_folder(c) / "bank.safetensors").is_file() for c in configs)


def keep(found: Findings) -> Path:
    """Writes findings as the reference of their data set; returns the file."""
    file = reference_file(found["about"]["dataset"], found["about"]["profile"])
    _write(file, found)
    return file


def _about(wanted: Sequence[RunConfig], done: Sequence[RunConfig]) -> dict[str, Any]:
    """What the findings are of, for people."""
    first, runs = done[0], [finished(c) for c in done]
    base = dataclasses.asdict(make_config(first.dataset, first.method, 0, first.profile))
    changed = {k: v for k, v in dataclasses.asdict(first).items() if v != base[k]}
    machine = runs[0]["machine"]
    return {
        "dataset": first.dataset, "profile": first.profile, "scale_min": first.scale_min,
        "settings": {k: v for k, v in changed.items() if k not in _VARIED},
        "methods": list(dict.fromkeys(c.method for c in done)),
        "seeds": sorted({c.seed for c in done}),
        "missing": [f"{c.method} seed {c.seed}" for c in wanted if c not in done],
        "command": command(wanted), "epochs": first.epochs, "followed": first.snapshots,
        "train_images": runs[0]["train_images"], "report_images": runs[0]["report_images"],
        "views": measuring.VIEWS, "least": visibility.LEAST, "fall": recovery.FALL,
        "device": machine["device"], "torch": machine["torch"],
        "commits": sorted({str(r["machine"]["commit"]) for r in runs}),
        "finished": sorted({r["finished"] for r in runs}),
    }  # fmt: skip


def _write(file: Path, found: Findings) -> None:
    """One row a line, numbers rounded, NaN as null: JSON knows none."""
    parts = []
    for name, value in found.items():
        if isinstance(value, list):
            lines = ",\n".join(_json(row) for row in value)
            parts.append(f'"{name}": [\n{lines}\n]')
        else:
            parts.append(f'"{name}": {_json(value)}')
    with replacing(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _json(value: object) -> str:
    return json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value
