"""Makes a checked RunConfig from names and `--set key=value`, and lists the changed settings."""

import dataclasses
import os
import textwrap
from collections.abc import Iterable, Mapping

from spcl_lib.config import RunConfig
from spcl_lib.losses.settings import checked
from spcl_lib.methods import METHODS, PAPER_METHODS, MethodSettings
from spcl_lib.pooling import Pooling
from spcl_lib.runs.profiles import PROFILES, chosen_settings
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.paths import expand_home
from spcl_lib.system.timm_backbone import PREFIX, require_timm_model

# The training images of these data sets have no full labels, so there is no upper bound.
SINGLE_LABEL = frozenset({"imagenet", "folder"})
TABLES = frozenset({"table", "coco18"})  # train.csv and val.csv list the images
_OWN_VALIDATION = SINGLE_LABEL | {"scenes"}  # these hold out images in their own ways
# Fields without a help text (data set, method, profile) have options, or the code sets them.
_OF_RUN = {field.name: field for field in dataclasses.fields(RunConfig) if field.metadata}
_OF_METHOD = {field.name: field for field in dataclasses.fields(MethodSettings)}
_SETTABLE = {name: f for name, f in (_OF_RUN | _OF_METHOD).items() if name != "seed"}


def methods_of(dataset: str, among: Iterable[str] = PAPER_METHODS) -> list[str]:
    """The methods that a data set allows; some need full labels of the training images."""
    full = dataset not in SINGLE_LABEL
    return [name for name in among if full or not METHODS[name].row.sees]


def make_config(
    dataset: str,
    method: str,
    seed: int = 0,
    profile: str = "cpu",
    overrides: Mapping[str, object] | None = None,
) -> RunConfig:
    """A checked configuration: defaults, then profile, then the method's choices, then overrides.

    A UserError names what is unknown, not allowed for the data set, or outside its range.
    """
    _check_names(dataset, method, profile)
    for key in overrides or {}:
        if key not in _SETTABLE:
            raise unknown_name("setting", key, _SETTABLE)
    values = PROFILES[dataset][profile] | chosen_settings(dataset, profile, method)
    values |= overrides or {}
    values |= {"dataset": dataset, "method": method, "seed": seed, "profile": profile}
    return check_config(RunConfig.from_flat(values))


def check_config(config: RunConfig) -> RunConfig:
    """The same configuration with values of the right types; a UserError names a wrong value."""
    _check_names(config.dataset, config.method, config.profile)
    fields = _OF_RUN
    if str(config.backbone).startswith(PREFIX):  # its models are not listed among the choices
        require_timm_model(config.backbone)
        fields = {name: field for name, field in fields.items() if name != "backbone"}
    values = {name: checked(field, getattr(config, name)) for name, field in fields.items()}
    config = dataclasses.replace(config, **values)
    _check_together(config)
    return config


def changes(config: RunConfig) -> dict[str, object]:
    """The settings that differ from the profile, by name, and that the results depend on."""
    profile = make_config(config.dataset, config.method, config.seed, config.profile).flat()
    own = config.flat().items()
    return {k: v for k, v in own if v != profile[k] and k not in ("content", "snapshots")}


def parse_overrides(pairs: Iterable[str]) -> dict[str, str]:
    """The `key=value` texts of the command line as a dictionary, for `make_config`.

    A file of weights gets its absolute path, so that it is found from other folders, too.
    """
    found = {}
    for pair in pairs:
        key, separator, found[key] = pair.partition("=")
        if not separator:
            raise UserError(f"'--set {pair}' has no value; write --set key=value")
    if found.get("weights", "auto") not in ("auto", "none", "torchvision"):
        found["weights"] = os.path.abspath(expand_home(found["weights"]))
    return found


def describe_settings() -> list[str]:
    """Lines about every setting of `--set`: its default, its help text and its choices."""
    lines = []
    for name, field in _SETTABLE.items():
        value, about = field.default, field.metadata
        start = f"  {name}={value:g}" if isinstance(value, float) else f"  {name}={value}"
        one_of = f" ({', '.join(about['choices'])})" if about["choices"] else ""
        first, *rest = textwrap.wrap(about["help"] + one_of, 64)
        lines += [f"{start:32}{first}", *(" " * 32 + more for more in rest)]
    return lines


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


def _check_together(config: RunConfig) -> None:
    """Checks values that depend on each other."""
    is_head, report = config.trained == "head", f"report={config.report}"
    if config.backbone.startswith(PREFIX) and config.frozen and not is_head:
        raise UserError(f"{config.backbone} is one block: --set frozen=0, or --set trained=head")
    if config.scale_min > config.scale_max:
        raise UserError(f"scale_min={config.scale_min} is above scale_max={config.scale_max}")
    if is_head and not config.crop_side <= config.image_side == config.eval_side:
        raise UserError("trained=head needs image_side = eval_side, and no larger crop_side")
    if (config.labels or config.full_labels) and config.dataset != "folder":
        raise UserError(f"labels and full_labels go with the data set folder, not {config.dataset}")
    if config.report == "train" and config.dataset != "folder":
        raise UserError(f"{report}, which trains on all images, goes with the data set folder")
    if config.held_out and (config.report != "val" or config.dataset in _OWN_VALIDATION):
        raise UserError(f"held_out={config.held_out} does not go with {report} of {config.dataset}")
    METHODS[config.method].pooling(Pooling(config.pooling, config.pooling_strength))  # both check
