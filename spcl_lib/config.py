"""The frozen configuration of one run, its profiles, and how the command line overrides it.

Every value here is ours unless a comment says otherwise. "Chosen on validation data" means:
trained with `report=val`, which never touches the data that final results are reported on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass

from spcl_lib.data import SINGLE_LABEL
from spcl_lib.data.draws import DRAWS
from spcl_lib.errors import UserError, unknown
from spcl_lib.losses import DISTANCES, METHODS, Settings
from spcl_lib.model import BACKBONES


@dataclass(frozen=True)
class RunConfig:
    """One run: everything that its metrics depend on, apart from the machine."""

    # what
    dataset: str = "scenes"
    method: str = "an"
    seed: int = 0  # network, order and views
    profile: str = "cpu"
    draw: str = "uniform"  # which label of an image is kept, see data.draws.DRAWS
    label_seed: int = 0  # of the draw: all methods and seeds see the same labels; cole: 1200 + this
    report: str = "test"  # "test": final; "val": for choices, never touches the final data
    # data
    train_images: int = 0  # 0 = all
    eval_images: int = 0  # 0 = all
    difficult: str = "negative"  # VOC's difficult objects: "negative", "positive" or "ignored"
    unannotated: str = "drop"  # COCO's images without any object: "drop" or "keep"
    damaged: str = "stop"  # images that cannot be read: "stop", or "skip" and count them
    labels: str = ""  # folder: CSV of path,label below the data root; "" = class/image.jpg
    full_labels: str = ""  # folder: CSV of path,labels (a|b) for the evaluation; "" = none
    content: str = ""  # folder: fingerprint of its files and labels, see data.identified
    image_side: int = 64  # whole images are kept as squares of this side
    crop_side: int = 64  # side of the crops that the network trains on
    eval_side: int = 64  # side of the whole images that it is evaluated on
    scale_min: float = 0.25  # least area of a crop
    scale_max: float = 1.0
    ratio_max: float = 4 / 3  # widest crop, width / height; the narrowest is its inverse
    flip: float = 0.5
    # network
    backbone: str = "small_resnet"
    weights: str = "auto"  # "auto", "none", "torchvision" or a file
    frozen: int = 0  # leading blocks of the backbone that are not trained
    pretrain_images: int = 10000  # scenes: glyph images that small_resnet is pretrained on
    pretrain_epochs: int = 12
    # optimisation: AdamW, one-cycle
    epochs: int = 16
    batch: int = 32
    lr: float = 2e-3
    head_lr_factor: float = 1.0  # the new layer learns faster than a pretrained backbone
    weight_decay: float = 1e-2
    warmup: float = 0.2  # share of the steps over which the learning rate rises
    amp: str = "auto"  # "auto", "bfloat16" or "off"
    eval_every: int = 4  # epochs between evaluations for the learning curve
    # methods, see losses.Settings
    weight: float = Settings.weight
    start: int = Settings.start
    ramp: float = Settings.ramp
    distance: str = Settings.distance
    momentum: float = Settings.momentum
    bank_size: int = Settings.bank_size
    bank_dtype: str = Settings.bank_dtype  # with a momentum of 0.95 or more: not uint8, its noise
    expected_positives: float = Settings.expected_positives
    # records
    snapshots: int = 0  # training images to follow over the epochs, see snapshots.py; 0 = none

    def method_settings(self) -> Settings:
        """The part that the methods read."""
        names = [f.name for f in dataclasses.fields(Settings)]
        return Settings(**{name: getattr(self, name) for name in names})

    def digest(self) -> str:
        """Eight characters that change with any value, but not when a setting is added later."""
        defaults = dataclasses.asdict(type(self)())
        values = {k: v for k, v in dataclasses.asdict(self).items() if v != defaults[k]}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


_MOBILENET = {
    "backbone": "mobilenet_v2", "image_side": 192, "crop_side": 160, "eval_side": 160,
    "epochs": 8, "batch": 32, "lr": 2e-4, "head_lr_factor": 10.0, "warmup": 0.3, "eval_every": 4,
    "frozen": 7,  # of 19 blocks
    "bank_size": 14, "start": 3, "ramp": 1.0, "distance": "l1",
}  # fmt: skip
_SCENES = {
    # Crops of 48 px from images of 64: objects in a crop are, on average, as large as in the whole
    # images of the evaluation, and a step costs half.
    "image_side": 64, "crop_side": 48, "eval_side": 64, "epochs": 24, "batch": 32, "lr": 2e-3,
    "head_lr_factor": 5.0, "warmup": 0.2, "eval_every": 4, "bank_size": 16, "start": 6,
    "distance": "l1", "weight": 1.0, "expected_positives": 2.0,
}  # fmt: skip
_SMOKE = {"train_images": 64, "eval_images": 64, "epochs": 2, "start": 1, "ramp": 1.0, "batch": 16}

# The field's settings for ResNet-50 (Cole et al., 2021, and those who followed): whole images at
# 448 px, Adam at 1e-5 with a faster head, 10 epochs. The crops are this method's.
_RESNET = {
    "backbone": "resnet50", "image_side": 512, "crop_side": 448, "eval_side": 448, "epochs": 10,
    "batch": 16, "lr": 1e-5, "head_lr_factor": 10.0, "warmup": 0.1, "eval_every": 5,
    "bank_size": 14, "start": 3, "ramp": 1.0, "distance": "l1",
}  # fmt: skip
_PHOTOGRAPHS = {
    "cpu": _MOBILENET,
    # Twice the passes, which cost AN most: on voc2007's held-out part of train (seed 0), 8 and 16
    # epochs give AN 69.7 and 66.9, EN + SCL 71.2 and 71.6, Full 73.5 and 73.0.
    "long": {**_MOBILENET, "epochs": 16, "start": 4},
    "smoke": {**_MOBILENET, **_SMOKE, "crop_side": 96, "eval_side": 96, "eval_every": 1},
    "paper": _RESNET,
}


def _photographs(expected_positives: float) -> dict[str, dict[str, object]]:
    """The profiles of a data set of photographs with this many positives per image."""
    return {
        name: {**values, "expected_positives": expected_positives}
        for name, values in _PHOTOGRAPHS.items()
    }


# data set -> profile -> what differs from RunConfig's defaults
PROFILES: dict[str, dict[str, dict[str, object]]] = {
    "scenes": {
        "cpu": _SCENES,
        # Half a minute: enough for an order that means something (mAP of one seed: AN 37, Full 50;
        # 20 is chance), not enough for SCL.
        "smoke": {
            **_SCENES, **_SMOKE, "train_images": 500, "eval_images": 500, "epochs": 8, "start": 3,
            "ramp": 2.0, "eval_every": 2, "pretrain_images": 4000, "pretrain_epochs": 4,
        },
    },
    # Expected positives as published for the data sets (Cole et al., 2021), not read from labels.
    "voc2007": _photographs(1.5),
    "voc2012": _photographs(1.5),
    "coco2014": _photographs(2.9),
    "coco2017": _photographs(2.9),
    "imagenet": _photographs(1.2),  # ours, a prior: ReaL counts 1.2 valid labels an image
    "folder": _photographs(1.5),  # ours
}  # fmt: skip
# data set -> method -> what differs from the profile; each chosen on validation data
METHOD_DEFAULTS: dict[str, dict[str, dict[str, object]]] = {}

_CHOICES: dict[str, tuple[str, ...]] = {
    "report": ("test", "val"),
    "draw": DRAWS,
    "difficult": ("negative", "positive", "ignored"),
    "unannotated": ("drop", "keep"),
    "damaged": ("stop", "skip"),
    "backbone": BACKBONES,
    "amp": ("auto", "bfloat16", "off"),
    "distance": DISTANCES,
    "bank_dtype": ("uint8", "float16", "float32"),
}
_POSITIVE = (
    "pretrain_images", "pretrain_epochs", "image_side", "crop_side", "eval_side", "epochs",
    "batch", "lr", "eval_every",
)  # fmt: skip


def methods_of(dataset: str) -> list[str]:
    """The methods that a data set allows: "full" needs the full labels of its training images."""
    full = dataset not in SINGLE_LABEL
    return [name for name, spec in METHODS.items() if full or spec.supervised != "full"]


def make_config(
    dataset: str,
    method: str,
    seed: int = 0,
    profile: str = "cpu",
    overrides: dict[str, object] | None = None,
) -> RunConfig:
    """A checked configuration: defaults, then profile, then method, then overrides.

    Args:
        dataset: a key of PROFILES.
        method: a key of losses.METHODS.
        seed: seed of the training.
        profile: a key of PROFILES[dataset].
        overrides: names and values; texts are parsed by the type of the default.

    Raises:
        UserError: an unknown name, a method that the data set does not allow, or a value of the
            wrong type or outside its range.
    """
    if dataset not in PROFILES:
        raise unknown("data set", dataset, PROFILES)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if method not in methods_of(dataset):
        raise UserError(
            f"method '{method}' needs all labels of the training images; those of {dataset} have "
            f"one known label each. Valid: {', '.join(methods_of(dataset))}"
        )
    if profile not in PROFILES[dataset]:
        raise unknown(f"profile of {dataset}", profile, PROFILES[dataset])
    values = dict(PROFILES[dataset][profile])
    if profile != "smoke":
        values.update(METHOD_DEFAULTS.get(dataset, {}).get(method, {}))
    for key, value in (overrides or {}).items():
        values[key] = _parsed(key, value)
    values.update(dataset=dataset, method=method, seed=int(seed), profile=profile)
    config = RunConfig(**values)
    _check(config)
    return config


def parse_overrides(pairs: typing.Iterable[str]) -> dict[str, object]:
    """`key=value` texts of the command line as a dictionary, checked.

    Raises:
        UserError: a text without "=", an unknown key, or a value of the wrong type.
    """
    overrides = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"'--set {pair}' has no value; write --set key=value")
        overrides[key] = _parsed(key, value)
    return overrides


# These have options of their own, or fill themselves in.
_FIXED = ("dataset", "method", "seed", "profile", "content")
_TYPES = typing.get_type_hints(RunConfig)


def _parsed(key: str, value: object) -> object:
    valid = [name for name in _TYPES if name not in _FIXED]
    if key not in valid:
        raise unknown("setting", key, valid)
    kind = _TYPES[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    try:
        if isinstance(value, str):
            return kind(value)
    except ValueError:
        pass
    raise UserError(f"setting '{key}' must be of type {kind.__name__}; got '{value}'")


def _check(config: RunConfig) -> None:
    for name, valid in _CHOICES.items():
        if getattr(config, name) not in valid:
            raise unknown(f"value of '{name}'", getattr(config, name), valid)
    for name in _POSITIVE:
        if not 0 < getattr(config, name) < float("inf"):
            raise UserError(f"setting '{name}' must be above 0; got {getattr(config, name)}")
    if not 0 < config.scale_min <= config.scale_max <= 1:
        raise UserError(
            "settings must satisfy 0 < scale_min <= scale_max <= 1; "
            f"got {config.scale_min} and {config.scale_max}"
        )
    limits = {
        "ratio_max": (1, 10), "flip": (0, 1), "warmup": (0, 1), "momentum": (0, 0.9999),
        "weight": (0, 1e6), "start": (0, 10**6), "ramp": (0, 1e6),
        "bank_size": (1, 1024), "frozen": (0, 1000),
        "expected_positives": (1, 1e6), "train_images": (0, 10**9), "eval_images": (0, 10**9),
        "weight_decay": (0, 1e6), "head_lr_factor": (1e-6, 1e6), "seed": (0, 2**31),
        "label_seed": (0, 2**31), "snapshots": (0, 10**9),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        if not low <= getattr(config, name) <= high:
            raise UserError(
                f"setting '{name}' must be in {low}..{high}; got {getattr(config, name)}"
            )
