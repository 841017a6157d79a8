"""Ablations: the same methods with one setting varied.

`crop_scale_configs` varies the least area of the random crops. With small crops, the one label is
more often wrong for the crop; the paper claims that SCL then recovers the right supervision. Each
of `ablations` varies one choice that the paper leaves open or that a user must make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from spcl_lib.config import RunConfig
from spcl_lib.runs.settings import make_config

CROP_SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)
CROP_METHODS = ("an", "cl", "scl", "en_scl", "full")
RECOVERY_SCALE = 0.1  # crop recovery is measured on the runs with this scale
RECOVERY_METHODS = (*CROP_METHODS[:-1], "gr_scl", "ren_scl", "full")  # the league's best, too
FOLLOWED = 64  # number of images that these runs follow over the epochs

Settings = Mapping[str, object]
# What the league chose for them on validation data (see League.chosen_settings), with the mean.
# Rates are left out: they were chosen for the league, and all methods here have the profile's.
CHOSEN: dict[str, dict[str, Settings]] = {
    "scenes": {
        "gr_scl": {"weight": 0.3},
        "ren_scl": {"prior_weight": 0.0, "hidden_share": 1.0, "robustness": 1.0, "weight": 1.0},
    },
    "voc2007": {
        "gr_scl": {"weight": 0.3, "distance": "l2"},
        "ren_scl": {"prior_weight": 0.5, "hidden_share": 0.0, "robustness": 0.7, "weight": 0.3},
    },
}
_SPATIAL, _ALL = ("scl", "en_scl"), ("an", "scl", "en_scl", "full")


class Ablation(NamedTuple):
    """One choice: the quantity that varies, for these methods, and settings by its values."""

    axis: str
    methods: tuple[str, ...]
    values: Mapping[str, Settings]


def _vary(setting: str, *values: object) -> dict[str, Settings]:
    return {f"{v:g}" if isinstance(v, float) else str(v): {setting: v} for v in values}


def ablations(dataset: str, profile: str, train_images: int) -> dict[str, Ablation]:
    """The ablations of a profile by name; the values depend on its own settings.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        train_images: number of training images without this ablation.
    """
    usual = make_config(dataset, "en_scl", 0, profile)
    k, start = usual.settings.expected_positives, usual.settings.start
    counts = _vary("expected_positives", *map(float, (max(1, k / 2), k, 2 * k)))
    parts = _vary("train_images", *(train_images // n for n in (8, 4, 2)))
    classes = _vary("bank_classes", 1, 2, 3, 5, 10) | {"all": {"bank_classes": 0}}
    found = {
        "momentum": ("momentum", _SPATIAL, _vary("momentum", 0.5, 0.8, 0.9, 0.95)),
        "bank_size": ("W, cells along a side of a heatmap", _SPATIAL,
                      _vary("bank_size", 3, 6, 12, 16, 24)),
        "weight": ("lambda, weight of the consistency", _SPATIAL,
                   _vary("weight", 0.1, 0.3, 1.0, 3.0)),
        "distance": ("distance d", _SPATIAL, _vary("distance", "bce", "l1", "l2")),
        "start": ("start, in epochs", _SPATIAL, _vary("start", 1, start // 2, start, 2 * start)),
        "expected_positives": ("k, expected positives per image", ("en", "en_scl"),
                               counts | {"estimated": {"expected_count": "estimated"}}),
        "bank_dtype": ("type of the running averages", _SPATIAL,
                       _vary("bank_dtype", "uint8", "float16", "float32")),
        "bank_classes": ("K, classes per image with a heatmap", _SPATIAL, classes),
        "train_images": ("number of training images", _ALL, parts | {f"{train_images}": {}}),
        "draw": ("rule that draws the label", _ALL, _vary("draw", "uniform", "size", "location")),
    }  # fmt: skip
    if usual.trained == "head":
        axis = "cells along a side of an image (its pixels / pixels between cells)"
        found["grid"] = (axis, _ALL, {
            f"{cells} ({side} / {32 // dilation})":
            {"image_side": side, "eval_side": side, "crop_side": crop, "dilation": dilation}
            for side, crop, dilation, cells in
            ((192, 160, 1, 6), (128, 107, 2, 8), (160, 133, 2, 10), (192, 160, 2, 12),
             (224, 187, 2, 14))
        })  # fmt: skip
    return {name: Ablation(*row) for name, row in found.items()}


def ablation_configs(
    ablation: Ablation, dataset: str, profile: str, seeds: Sequence[int] = (0, 1, 2)
) -> dict[tuple[str, str], list[RunConfig]]:
    """The runs of an ablation by (value, method), one for each seed of the training."""
    return {
        (value, method): [make_config(dataset, method, seed, profile, settings) for seed in seeds]
        for value, settings in ablation.values.items()
        for method in ablation.methods
    }


def crop_scale_configs(
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scales: Sequence[float] = CROP_SCALES,
    methods: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> list[RunConfig]:
    """All runs of the crop-scale ablation, each once: every method, scale and seed.

    The league's best have the settings of CHOSEN. At the profile's own scale, the runs are those of
    the profile, which may be finished already.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        seeds: seeds of the training.
        scales: least areas of the crops, as shares of the image.
        methods: by default CROP_METHODS, and RECOVERY_METHODS at RECOVERY_SCALE.
        overrides: other settings.
    """
    configs, chosen = [], CHOSEN.get(dataset, {})
    for scale in scales:
        varied, usual = {"scale_min": scale}, CROP_METHODS
        if scale == RECOVERY_SCALE:
            usual = RECOVERY_METHODS
            varied["snapshots"] = FOLLOWED
        for m in methods or usual:
            settings = varied | chosen.get(m, {}) | dict(overrides or {})
            configs += [make_config(dataset, m, seed, profile, settings) for seed in seeds]
    return list(dict.fromkeys(configs))  # a value may be given twice
