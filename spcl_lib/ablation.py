"""Ablations: the same methods with one setting varied, run side by side, and their table.

`crop_scale`: how much the least size of the random crops costs every method. With small crops the
one label is more often wrong for what the network is shown; the paper claims that SCL recovers.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from spcl_lib.config import RunConfig, make_config
from spcl_lib.errors import UserError
from spcl_lib.experiment import finished, run_folder
from spcl_lib.losses import METHODS
from spcl_lib.reproduce import run_all

CROP_SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)
CROP_METHODS = ("an", "cl", "scl", "en_scl", "full")
RECOVERY_SCALE = 0.1  # crop recovery is measured on the runs with this scale,
FOLLOWED = 64  # which therefore follow this many images over the epochs

Row = dict[str, object]


def crop_scale_configs(
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scales: Sequence[float] = CROP_SCALES,
    methods: Sequence[str] = CROP_METHODS,
    overrides: dict[str, object] | None = None,
) -> list[RunConfig]:
    """All runs of the ablation: every method, scale and seed.

    A scale that is the profile's own gives the profile's own runs, which may be finished already.

    Args:
        dataset: a key of config.PROFILES.
        profile: a key of config.PROFILES[dataset].
        seeds: of the training.
        scales: least area of the crops, as a share of the image.
        methods: keys of losses.METHODS.
        overrides: of other settings.

    Raises:
        UserError: an unknown name or wrong value, or an override of what is varied.
    """
    overrides = dict(overrides or {})
    if "scale_min" in overrides:
        raise UserError("scale_min is what this ablation varies; give its values with --scales")
    configs = []
    for scale in scales:
        varied = {"scale_min": scale}
        if scale == RECOVERY_SCALE:
            varied["snapshots"] = FOLLOWED
        configs += [
            make_config(dataset, method, seed, profile, varied | overrides)
            for method in methods
            for seed in seeds
        ]
    return configs


def command(configs: Sequence[RunConfig]) -> str:
    """The command line that makes these runs: all methods, scales and seeds of `configs`."""
    first = configs[0]
    base = dataclasses.asdict(make_config(first.dataset, first.method, first.seed, first.profile))
    base["content"] = first.content  # a run on a folder finds it itself
    changed = {k: v for k, v in dataclasses.asdict(first).items() if v != base[k]}
    scales = dict.fromkeys(f"{c.scale_min:g}" for c in configs)
    seeds = dict.fromkeys(str(c.seed) for c in configs)
    words = ["python -m spcl_lib ablation crop_scale", f"--dataset {first.dataset}",
             f"--profile {first.profile}", f"--scales {' '.join(scales)}",
             f"--seeds {' '.join(seeds)}"]  # fmt: skip
    usual = FOLLOWED if first.scale_min == RECOVERY_SCALE else 0
    given = ("scale_min", *(["snapshots"] if first.snapshots == usual else []))
    settings = {k: v for k, v in changed.items() if k not in given}
    return " ".join([*words, *(f"--set {k}={v}" for k, v in settings.items())])


def crop_scale_rows(configs: Sequence[RunConfig]) -> list[Row]:
    """Method, scale_min, seed and mAP of every run that is finished."""
    done = ((c, finished(c)) for c in configs)
    return [
        {"method": c.method, "scale_min": c.scale_min, "seed": c.seed, "mAP": run["mAP"]}
        for c, run in done
        if run is not None
    ]


def crop_scale_table(rows: Sequence[Row]) -> list[list[str]]:
    """The table as texts: a row per method (largest crops first), mean ± deviation over seeds."""
    scales = sorted({r["scale_min"] for r in rows}, reverse=True)
    names = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = [["method", *(f"{scale:g}" for scale in scales)]]
    for name in names:
        cells = [
            [r["mAP"] for r in rows if r["method"] == name and r["scale_min"] == scale]
            for scale in scales
        ]
        lines.append([name, *map(_mean_and_spread, cells)])
    return lines


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _print_plan(configs: Sequence[RunConfig]) -> int:
    runs = [finished(c) for c in configs]
    for config, done in zip(configs, runs, strict=True):
        state = "to run" if done is None else f"finished, mAP {done['mAP']:.2f} %"
        print(f"{config.method:7} scale_min {config.scale_min:<5g} seed {config.seed}  {state}")
    print(f"{runs.count(None)} of {len(configs)} runs to do")
    return 0


def run_crop_scale(
    configs: Sequence[RunConfig],
    data_root: str | Path | None,
    jobs: int,
    force: bool,
    only_list: bool,
) -> int:
    """Runs what is not finished, and prints the table; arguments as in `reproduce.reproduce`.

    Returns:
        0 if every run has finished, else 1.

    Raises:
        UserError: the data are missing or damaged: found before any run starts.
    """
    if only_list:
        return _print_plan(configs)
    began = time.monotonic()
    failed = run_all(list(configs), data_root, jobs, force)
    print("\nmAP in % by the least area of the crops (mean ± standard deviation over seeds)")
    for line in crop_scale_table(crop_scale_rows(configs)):
        print(f"{line[0]:8}" + "".join(f"{cell:>13}" for cell in line[1:]))
    print(f"\n{len(configs) - len(failed)} of {len(configs)} runs finished, "
          f"{(time.monotonic() - began) / 60:.1f} min", flush=True)  # fmt: skip
    for job in failed:
        print(f"failed: {run_folder(job.config).name}, log: {job.log}")
    return 1 if failed else 0
