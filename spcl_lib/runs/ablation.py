"""Ablations: the same methods with one setting varied.

`crop_scale` varies the least area of the random crops. With small crops, the one label is more
often wrong for the crop; the paper claims that SCL then recovers the right supervision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spcl_lib.config import RunConfig
from spcl_lib.runs.settings import changes, make_config
from spcl_lib.runs.store import load_metrics
from spcl_lib.system.errors import UserError

CROP_SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)
CROP_METHODS = ("an", "cl", "scl", "en_scl", "full")
RECOVERY_SCALE = 0.1  # crop recovery is measured on the runs with this scale
FOLLOWED = 64  # number of images that these runs follow over the epochs


def crop_scale_configs(
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scales: Sequence[float] = CROP_SCALES,
    methods: Sequence[str] = CROP_METHODS,
    overrides: Mapping[str, object] | None = None,
) -> list[RunConfig]:
    """All runs of the ablation: every method, scale and seed.

    At the profile's own scale, the runs are those of the profile, which may be finished already.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        seeds: seeds of the training.
        scales: least areas of the crops, as shares of the image.
        methods: keys of METHODS.
        overrides: other settings.

    Raises:
        UserError: a name is unknown, a value is wrong, or `overrides` sets the scale.
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


def command_of(configs: Sequence[RunConfig]) -> str:
    """The command line that makes these runs, with all methods, scales and seeds of `configs`."""
    first = configs[0]
    scales = dict.fromkeys(f"{c.scale_min:g}" for c in configs)
    seeds = dict.fromkeys(str(c.seed) for c in configs)
    words = ["python -m spcl_lib ablation crop_scale", f"--dataset {first.dataset}",
             f"--profile {first.profile}", f"--scales {' '.join(scales)}",
             f"--seeds {' '.join(seeds)}"]  # fmt: skip
    usual = FOLLOWED if first.scale_min == RECOVERY_SCALE else 0
    given = ("scale_min", *(["snapshots"] if first.snapshots == usual else []))
    settings = {k: v for k, v in changes(first).items() if k not in given}
    return " ".join([*words, *(f"--set {k}={v}" for k, v in settings.items())])


def crop_scale_rows(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Method, scale_min, seed and mAP of every finished run."""
    done = ((c, load_metrics(c)) for c in configs)
    return [
        {"method": c.method, "scale_min": c.scale_min, "seed": c.seed, "mAP": run["mAP"]}
        for c, run in done
        if run is not None
    ]
