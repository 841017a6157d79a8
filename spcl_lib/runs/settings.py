"""Makes a checked RunConfig from names and `--set key=value`, and lists the changed settings."""

from __future__ import annotations

import contextlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping

from spcl_lib.config import RunConfig
from spcl_lib.data.draws import DRAWS
from spcl_lib.data.image_set import PARTS
from spcl_lib.losses import DISTANCES
from spcl_lib.methods import METHODS, PAPER_METHODS, MethodSettings
from spcl_lib.model import AMP, BACKBONES
from spcl_lib.pooling import KINDS, Pooling
from spcl_lib.runs.profiles import PROFILES
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.timm_backbone import PREFIX, require_timm_model

# The training images of these data sets have no full labels, so there is no upper bound.
SINGLE_LABEL = frozenset({"imagenet", "folder"})
TABLES = frozenset({"table", "coco18"})  # train.csv and val.csv list the images
WITHOUT_OBJECTS = SINGLE_LABEL | TABLES  # these do not tell where objects are
_OWN_VALIDATION = SINGLE_LABEL | {"scenes"}  # these hold out images in their own ways

_CHOICES: dict[str, tuple[str, ...]] = {
    "report": ("test", "val", "train"),
    "draw": DRAWS,
    "difficult": ("negative", "positive", "ignored"),
    "unannotated": ("drop", "keep"),
    "damaged": ("stop", "skip"),
    "backbone": (*BACKBONES, f"{PREFIX}NAME"),
    "pooling": KINDS,
    "trained": ("network", "head"),
    "amp": AMP,
    "distance": DISTANCES,
    "bank_dtype": ("uint8", "float16", "float32"),
    "expected_count": ("given", "estimated"),
}
_POSITIVE = (
    "image_side", "crop_side", "eval_side", "epochs",
    "batch", "lr", "eval_every",
)  # fmt: skip


def methods_of(dataset: str, among: Iterable[str] = PAPER_METHODS) -> list[str]:
    """The methods that a data set allows; some need full labels of the training images."""
    full = dataset not in SINGLE_LABEL
    return [name for name in among if full or not METHODS[name].sees_all_labels]


def make_config(
    dataset: str,
    method: str,
    seed: int = 0,
    profile: str = "cpu",
    overrides: Mapping[str, object] | None = None,
) -> RunConfig:
    """A checked configuration: defaults, then profile, then overrides.

    Args:
        dataset: a key of PROFILES.
        method: a key of METHODS.
        seed: seed of the training.
        profile: a key of PROFILES[dataset].
        overrides: names and values; a text is converted to the type of the default.

    Raises:
        UserError: a name is unknown, the data set does not allow the method, or a value has the
            wrong type or is outside its range.
    """
    _check_names(dataset, method, profile)
    values = dict(PROFILES[dataset][profile])
    for key, value in (overrides or {}).items():
        values[key] = _parse_value(key, value)
    values.update(dataset=dataset, method=method, seed=int(seed), profile=profile)
    return check_config(RunConfig.from_flat(values))


def check_config(config: RunConfig) -> RunConfig:
    """The same configuration, if all its values are valid.

    Raises:
        UserError: a value has the wrong type or is outside its range, or a name is unknown.
    """
    values = config.flat()
    for key, kind in _ALL_TYPES.items():
        if type(values[key]) is not kind and (kind, type(values[key])) != (float, int):
            raise _wrong_type(key, kind, values[key])
    _check_names(config.dataset, config.method, config.profile)
    _check(values)
    return config


def _check_names(dataset: str, method: str, profile: str) -> None:
    if dataset not in PROFILES:
        raise unknown_name("data set", dataset, PROFILES)
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method not in methods_of(dataset, METHODS):
        raise UserError(
            f"method '{method}' needs all labels of the training images; those of {dataset} have "
            f"one known label each. Valid: {', '.join(methods_of(dataset))}"
        )
    if profile not in PROFILES[dataset]:
        raise unknown_name(f"profile of {dataset}", profile, PROFILES[dataset])


def changes(config: RunConfig) -> dict[str, object]:
    """The settings that differ from the profile, by name."""
    profile = make_config(config.dataset, config.method, config.seed, config.profile).flat()
    return {k: v for k, v in config.flat().items() if v != profile[k] and k != "content"}


def parse_overrides(pairs: Iterable[str]) -> dict[str, object]:
    """Checks `key=value` texts of the command line, and returns them as a dictionary.

    Raises:
        UserError: a text has no "=", a key is unknown, or a value has the wrong type.
    """
    overrides = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"'--set {pair}' has no value; write --set key=value")
        overrides[key] = _parse_value(key, value)
    return overrides


_ALL_TYPES = {
    name: kind
    for owner in (RunConfig, MethodSettings)
    for name, kind in typing.get_type_hints(owner).items()
    if name != "settings"  # the group of the method's settings
}
# --set does not take these: they have their own options, or the code sets them.
_NOT_SET = ("dataset", "method", "seed", "profile", "content")
_TYPES = {name: kind for name, kind in _ALL_TYPES.items() if name not in _NOT_SET}


def describe_settings() -> list[str]:
    """Lines about every setting of `--set`: its default, and what the code says about it."""
    said, defaults = _comments(RunConfig) | _attributes(MethodSettings), RunConfig().flat()
    lines = []
    for name in _TYPES:
        value = defaults[name]
        start = f"  {name}={value:g}" if isinstance(value, float) else f"  {name}={value}"
        text = said.get(name) or " or ".join(_CHOICES.get(name, ()))
        first, *rest = textwrap.wrap(text.removesuffix("."), 64) or [""]
        lines += [f"{start:32}{first}".rstrip(), *(" " * 32 + more for more in rest)]
    return lines


def _comments(owner: type) -> dict[str, str]:
    """The comments behind the fields of a class."""
    with contextlib.suppress(OSError):  # the source may not be installed
        return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(owner), re.MULTILINE))
    return {}


def _attributes(owner: type) -> dict[str, str]:
    """What the docstring of a class says about its fields."""
    text = (inspect.getdoc(owner) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def _parse_value(key: str, value: object) -> object:
    if key not in _TYPES:
        raise unknown_name("setting", key, _TYPES)
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
    raise _wrong_type(key, kind, value)


def _wrong_type(key: str, kind: type, value: object) -> UserError:
    return UserError(f"setting '{key}' must be of type {kind.__name__}; got '{value}'")


def _check(values: Mapping[str, object]) -> None:
    is_timm = values["backbone"].startswith(PREFIX)
    for name, valid in _CHOICES.items():
        if name == "backbone" and is_timm:
            require_timm_model(values[name])
        elif values[name] not in valid:
            raise unknown_name(f"value of '{name}'", values[name], valid)
    if is_timm and values["frozen"] and values["trained"] == "network":
        raise UserError(
            f"'frozen' counts blocks, and {values['backbone']} is one block; train all of it with "
            "--set frozen=0, or only the last layer with --set trained=head"
        )
    for name in _POSITIVE:
        if not 0 < values[name] < float("inf"):
            raise UserError(f"setting '{name}' must be above 0; got {values[name]}")
    if not 0 < values["scale_min"] <= values["scale_max"] <= 1:
        raise UserError(
            "settings must satisfy 0 < scale_min <= scale_max <= 1; "
            f"got {values['scale_min']} and {values['scale_max']}"
        )
    if values["trained"] == "head" and not (
        values["crop_side"] <= values["image_side"] == values["eval_side"]
    ):
        raise UserError(
            "with trained=head the features of whole images are used for both: image_side and "
            f"eval_side must be equal, and crop_side not larger; got {values['image_side']}, "
            f"{values['eval_side']} and {values['crop_side']}"
        )
    if values["report"] == "train" and values["dataset"] != "folder":
        raise UserError("report=train, which trains on all images, goes with the data set folder")
    if values["held_out"] and (values["report"] != "val" or values["dataset"] in _OWN_VALIDATION):
        raise UserError(
            "held_out chooses a part of the training images with report=val; it does not go with "
            f"report={values['report']} of {values['dataset']}"
        )
    limits = {
        **dict.fromkeys(("image_side", "crop_side", "eval_side"), (1, 2**14)),
        "ratio_max": (1, 10), "flip": (0, 1), "warmup": (0, 1), "momentum": (0, 0.9999),
        "weight": (0, 1e6), "start": (0, 10**6), "ramp": (0, 1e6),
        "bank_size": (1, 1024), "bank_classes": (0, 10**6), "frozen": (0, 1000), "dilation": (1, 2),
        "expected_positives": (1, 1e6), "train_images": (0, 10**9), "eval_images": (0, 10**9),
        "weight_decay": (0, 1e6), "head_lr_factor": (1e-6, 1e6), "seed": (0, 2**31),
        "held_out": (0, PARTS - 1),
        "label_seed": (0, 2**31), "snapshots": (0, 10**9), "smoothing": (0, 0.5),
        "entropy_weight": (0, 1e6), "pseudo_weight": (0, 1e6), "rejected": (0, 100),
        "robustness": (1e-3, 1), "prior_weight": (0, 1e6), "hidden_share": (0, 100),
        "pseudo_least": (0, 0.7), "count_weight": (0, 1e6), "asset_weight": (0, 1e6),
        "asset_step": (0, 1),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        if not low <= values[name] <= high:
            raise UserError(f"setting '{name}' must be in {low}..{high}; got {values[name]}")
    Pooling(values["pooling"], values["pooling_strength"])  # checks itself
