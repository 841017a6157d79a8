"""Keeps the measurements of crop recovery and localisation in one file per data set.

The files are small enough for version control
(notebooks/reference/crop-recovery-<dataset>-<profile>.json), so they can be read and drawn without
training. `measurement_tables` makes tables of them, and `measurement_sentences` makes sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spcl_lib.analysis import measurements, recovery, visibility
from spcl_lib.analysis.runs import keep, read_kept
from spcl_lib.config import RunConfig
from spcl_lib.runs.ablation import RECOVERY_SCALE, command_of, crop_scale_configs, crop_scale_rows
from spcl_lib.runs.settings import changes, make_config
from spcl_lib.runs.splits import identify_all
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import lock_file
from spcl_lib.system.fingerprints import fingerprint

Measurements = dict[str, Any]  # "about", and tables, which are lists of rows

MEASUREMENT_SOURCES = ("auto", "reference", "results")
_VARIED = ("method", "seed", "scale_min", "snapshots")  # the measured runs differ in these


def load_measurements(
    source: str,
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scale: float | None = None,
    overrides: Mapping[str, object] | None = None,
    data_root: str | Path | None = None,
) -> Measurements:
    """Loads measurements from the reference file or from this machine's runs.

    Args:
        source: "reference" reads the file under version control. "results" measures this machine's
            finished runs, unless they are measured already. "auto" takes the file if it exists, has
            the same `scale` and no setting is overridden; else it takes the runs.
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        seeds: seeds of the runs.
        scale: least area of the training crops of the runs. None: that of the reference file, else
            RECOVERY_SCALE if such runs are finished, else that of the profile.
        overrides: other settings of the runs.
        data_root: see `paths.data_root`.

    Raises:
        UserError: there is no such file and no run to measure; the message says how to make them.
    """
    if source not in MEASUREMENT_SOURCES:
        raise unknown_name("source", source, MEASUREMENT_SOURCES)
    make_config(dataset, "scl", 0, profile)  # checks the names
    file = reference_file(dataset, profile)
    if source == "reference" or (source == "auto" and not overrides and file.is_file()):
        kept = _read(file)
        if source == "reference" or scale in (None, kept["about"]["scale_min"]):
            return kept
    return _measure_runs(dataset, profile, seeds, scale, overrides, data_root)


def reference_file(dataset: str, profile: str) -> Path:
    """File with the measurements of a data set, under version control."""
    return paths.reference() / f"crop-recovery-{dataset}-{profile}.json"


def _read(file: Path) -> Measurements:
    return read_kept(str(file.with_suffix("")))


def _measure_runs(
    dataset: str,
    profile: str,
    seeds: Sequence[int],
    scale: float | None,
    overrides: Mapping[str, object] | None,
    data_root: str | Path | None,
) -> Measurements:
    """Measures this machine's runs once; again only if a run, the data or the code changes."""
    usual = make_config(dataset, "scl", 0, profile).scale_min
    scales = (RECOVERY_SCALE, usual) if scale is None else (scale,)
    plans = [
        identify_all(
            crop_scale_configs(dataset, profile, seeds, [s], overrides=overrides), data_root
        )
        for s in scales
    ]
    wanted = next(filter(_has_averages, plans), None)
    if wanted is None:
        raise UserError(
            f"no finished run of {dataset} (profile {profile}, crops from {scales[0]:g} of the "
            f"image) with running averages in '{paths.results()}'; make them with: "
            f"{command_of(plans[0])}"
        )
    done = [c for c in wanted if Run.of(c).metrics is not None]
    every = crop_scale_configs(dataset, profile, seeds, overrides=overrides)
    every = list(dict.fromkeys([*identify_all(every, data_root), *wanted]))
    files = [(run_folder(c) / "metrics.json").read_bytes() for c in done]
    key = fingerprint((measurements, *files))
    file = paths.results() / f"crop-recovery-{dataset}-{profile}-{key}.json"
    with lock_file(file):
        tables = _read(file) if file.is_file() else measurements.measure(done, data_root)
        about = _about(wanted, done)
        tables |= {"about": about} | _effect_of_scale(every, dataset, profile)
        keep(str(file.with_suffix("")), tables)
        return _read(file)


def _effect_of_scale(every: Sequence[RunConfig], dataset: str, profile: str) -> Measurements:
    """Scores by crop scale from this machine's runs; the reference's if it has more scales."""
    own, file = crop_scale_rows(every), reference_file(dataset, profile)
    kept = _read(file)["crop_scale"] if file.is_file() else []
    scales_own, scales_kept = ({row["scale_min"] for row in rows} for rows in (own, kept))
    if len(scales_own) >= len(scales_kept):
        return {"crop_scale": own, "crop_scale_source": "results"}
    return {"crop_scale": kept, "crop_scale_source": "reference"}


def _has_averages(configs: Sequence[RunConfig]) -> bool:
    """Whether one of the runs is finished and kept its running averages."""
    runs = map(Run.of, configs)
    return any(run.metrics and (run.folder / "bank.safetensors").is_file() for run in runs)


def keep_as_reference(found: Measurements) -> Path:
    """Writes measurements as the reference file of their data set, and gives the file."""
    file = reference_file(found["about"]["dataset"], found["about"]["profile"])
    keep(str(file.with_suffix("")), found)
    return file


def _about(wanted: Sequence[RunConfig], done: Sequence[RunConfig]) -> dict[str, Any]:
    """Describes for people which runs were measured."""
    first, runs = done[0], [Run.of(c).metrics for c in done]
    machine = runs[0]["machine"]
    return {
        "dataset": first.dataset, "profile": first.profile, "scale_min": first.scale_min,
        "settings": {k: v for k, v in changes(first).items() if k not in _VARIED},
        "methods": list(dict.fromkeys(c.method for c in done)),
        "seeds": sorted({c.seed for c in done}),
        "missing": [f"{c.method} seed {c.seed}" for c in wanted if c not in done],
        "command": command_of(wanted), "epochs": first.epochs, "followed": first.snapshots,
        "train_images": runs[0]["train_images"], "report_images": runs[0]["report_images"],
        "views": measurements.VIEWS, "least": visibility.LEAST, "fall": recovery.FALL,
        "device": machine["device"], "torch": machine["torch"],
        "commits": sorted({str(r["machine"]["commit"]) for r in runs}),
        "finished": sorted({r["finished"] for r in runs}),
    }  # fmt: skip
