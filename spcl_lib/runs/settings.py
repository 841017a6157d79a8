"""Makes a checked RunConfig from names and `--set key=value`, and lists the changed settings."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS, PAPER_METHODS, MethodSettings
from spcl_lib.pooling import Pooling
from spcl_lib.runs.profiles import PROFILES, chosen_settings
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.timm_backbone import PREFIX, require_timm_model

# The training images of these data sets have no full labels, so there is no upper bound.
SINGLE_LABEL = frozenset({"imagenet", "folder"})
TABLES = frozenset({"table", "coco18"})  # train.csv and val.csv list the images
WITHOUT_OBJECTS = SINGLE_LABEL | TABLES  # these do not tell where objects are
_OWN_VALIDATION = SINGLE_LABEL | {"scenes"}  # these hold out images in their own ways

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
    """A checked configuration: defaults, then profile, then the method's choices, then overrides.

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
    values = PROFILES[dataset][profile] | chosen_settings(dataset, profile, method)
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
    for key, kind in _TYPES.items():
        if type(values[key]) is not kind and (kind, type(values[key])) != (float, int):
            raise _wrong_type(key, kind, values[key])
    _check_names(config.dataset, config.method, config.profile)
    for key in _TYPES:
        _check_alone(key, values[key])
    _check_together(values)
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


# --set does not take these: they have their own options, or the code sets them.
_NOT_SET = ("dataset", "method", "seed", "profile", "content")
_FIELDS = {
    f.name: f
    for f in (*dataclasses.fields(RunConfig), *dataclasses.fields(MethodSettings))
    if f.name != "settings"  # the group of the method's settings
}
_TYPES = {
    name: kind
    for owner in (RunConfig, MethodSettings)
    for name, kind in typing.get_type_hints(owner).items()
    if name != "settings"
}
_SETTABLE = [name for name in _FIELDS if name not in _NOT_SET]


def describe_settings() -> list[str]:
    """Lines about every setting of `--set`: its default, its help text and its choices."""
    lines = []
    for name in _SETTABLE:
        value, about = _FIELDS[name].default, _FIELDS[name].metadata
        start = f"  {name}={value:g}" if isinstance(value, float) else f"  {name}={value}"
        one_of = f" ({', '.join(about['choices'])})" if about["choices"] else ""
        first, *rest = textwrap.wrap(about["help"] + one_of, 64)
        lines += [f"{start:32}{first}".rstrip(), *(" " * 32 + more for more in rest)]
    return lines


def _parse_value(key: str, value: object) -> object:
    if key not in _SETTABLE:
        raise unknown_name("setting", key, _SETTABLE)
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


def _check_alone(name: str, value: Any) -> None:
    """Checks a value against the limits or the choices of its field."""
    about = _FIELDS[name].metadata
    if not about:
        return
    if isinstance(value, str):
        if name == "backbone" and value.startswith(PREFIX):
            require_timm_model(value)
        elif about["choices"] and value not in about["choices"]:
            raise unknown_name(f"value of '{name}'", value, about["choices"])
    elif not about["low"] <= value <= about["high"]:
        raise UserError(
            f"setting '{name}' must be in {about['low']:g}..{about['high']:g}; got {value}"
        )


def _check_together(values: Mapping[str, Any]) -> None:
    """Checks values that depend on each other."""
    backbone, is_head = values["backbone"], values["trained"] == "head"
    if backbone.startswith(PREFIX) and values["frozen"] and not is_head:
        raise UserError(
            f"'frozen' counts blocks, and {backbone} is one block; train all of it with "
            "--set frozen=0, or only the last layer with --set trained=head"
        )
    if values["scale_min"] > values["scale_max"]:
        raise UserError(
            "settings must satisfy scale_min <= scale_max; "
            f"got {values['scale_min']} and {values['scale_max']}"
        )
    if is_head and not values["crop_side"] <= values["image_side"] == values["eval_side"]:
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
    Pooling(values["pooling"], values["pooling_strength"])  # checks itself
