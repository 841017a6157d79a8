"""MethodSettings: the settings of all methods. Values without a named paper are ours."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

from spcl_lib.system.errors import UserError, unknown_name

DISTANCES = ("bce", "l1", "l2")


def setting(default: Any, text: str, low: float = 0, high: float = 1e6, choices: Any = ()) -> Any:
    """A field with what a person may set: its default, a help text, and limits or choices."""
    metadata = {"help": text, "low": low, "high": high, "choices": tuple(choices)}
    return field(default=default, metadata=metadata)


def checked(of: Field[Any], given: object) -> Any:
    """A value in the type of its field, within its limits or choices; else a UserError."""
    kind, about = type(of.default), of.metadata
    try:
        value = kind(given)
    except (TypeError, ValueError, OverflowError):
        value = None
    if value is None or (value != given and not isinstance(given, str)):
        raise UserError(f"setting '{of.name}' must be of type {kind.__name__}; got '{given}'")
    if kind is str and about.get("choices") and value not in about["choices"]:
        raise unknown_name(f"value of '{of.name}'", value, about["choices"])
    if kind is not str and not about["low"] <= value <= about["high"]:
        limits = f"{about['low']:g}..{about['high']:g}"
        raise UserError(f"setting '{of.name}' must be in {limits}; got {given}")
    return value


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods, as `spcl run --help` has them; a UserError names a wrong value."""

    weight: float = setting(1.0, "lambda, weight of the consistency term after the ramp")
    start: int = setting(2, "epochs before consistency, EN, REN, APL, Crisp and GPR's labels begin")
    ramp: float = setting(2.0, "epochs in which lambda grows linearly from 0")
    distance: str = setting("bce", "d of the consistency terms", choices=DISTANCES)
    momentum: float = setting(0.8, "mu of the running averages", high=0.9999)
    bank_size: int = setting(16, "W, cells along each side of a heatmap", 1, 1024)
    bank_dtype: str = setting(
        "uint8", "type of a heatmap's values; float32 for a momentum of 0.95 or more, and where "
        "many classes compete, see HeatmapBank", choices=("uint8", "float16", "float32"),
    )  # fmt: skip
    bank_classes: int = setting(0, "K, classes per image whose heatmaps are kept; 0 = all")
    expected_positives: float = setting(2.0, "k, positives per image, with the annotated one", 1)
    expected_count: str = setting(
        "given", "EN and what builds on it choose by k (given), or by the sum of the class priors "
        "(estimated)", choices=("given", "estimated"),
    )  # fmt: skip
    smoothing: float = setting(0.1, "of AN-LS (0.1 in the published code) and softmax_ls", high=0.5)
    entropy_weight: float = setting(0.2, "alpha of EM; the paper: 0.2 on VOC, 0.1 on COCO and NUS")
    pseudo_weight: float = setting(0.02, "beta of APL; the paper: 0.02 on VOC, 0.9 on COCO")
    rejected: float = setting(0.2, "delta of LL in percent; the paper: 0.1 to 0.4", high=100)
    robustness: float = setting(0.7, "r of REN; 1 forgives wrong negatives most", 1e-3, 1)
    prior_weight: float = setting(0.5, "weight of the class priors (Crisp's loss) in REN")
    hidden_share: float = setting(0.0, "of REN: h = this (k - 1) / (C - 1), at most 0.5", high=100)
    robust_slope: float = setting(2.0, "of GR and GPR at the end, from 0; 10 on COCO and NUS")
    robust_offset: float = setting(-2.0, "the same, from -2; -8 on COCO and NUS", -100)
    pseudo_least: float = setting(0.4, "least weight of GPR's positives; COCO: 0.5", high=0.7)
    count_weight: float = setting(0.05, "of GPR's penalty for a wrong count; COCO: 0.001")
    asset_weight: float = setting(1.0, "alpha of Asset; we do not know the published value")
    asset_step: float = setting(0.001, "eps of Asset; published, for many steps an epoch", high=1)

    def __post_init__(self) -> None:
        for each in fields(MethodSettings):
            object.__setattr__(self, each.name, checked(each, getattr(self, each.name)))
