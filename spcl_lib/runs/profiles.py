"""The profiles: the settings for every data set, and the cost of one run.

All values are ours, unless a comment says otherwise. We chose them on validation data, in runs with
`report=val`. These runs never use the data of the final results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MOBILENET = {
    "backbone": "mobilenet_v2", "image_side": 192, "crop_side": 160, "eval_side": 160,
    "epochs": 8, "batch": 32, "lr": 2e-4, "head_lr_factor": 10.0, "warmup": 0.3, "eval_every": 4,
    "frozen": 7,  # of 19 blocks
    "bank_size": 14, "start": 3, "ramp": 1.0, "distance": "l1",
}  # fmt: skip
# Only the head is trained, on features that are computed once: an epoch takes less than a second.
# The last stage is dilated. It gives 12 x 12 cells, which can show the places of small objects.
_FROZEN = {
    "backbone": "mobilenet_v2", "image_side": 192, "crop_side": 160, "eval_side": 192,
    "trained": "head", "dilation": 2, "epochs": 15, "batch": 64, "lr": 2e-3, "warmup": 0.2,
    "eval_every": 5, "bank_size": 12, "start": 4, "ramp": 2.0, "distance": "l1",
}  # fmt: skip
_SCENES = {
    # Crops have 48 px, images 64 px. So objects in crops have, on average, the same size as in the
    # whole images of the evaluation, and a step costs half.
    "image_side": 64, "crop_side": 48, "eval_side": 64, "epochs": 24, "batch": 32, "lr": 2e-3,
    "head_lr_factor": 5.0, "warmup": 0.2, "eval_every": 4, "bank_size": 16, "start": 6,
    "distance": "l1", "weight": 1.0, "expected_positives": 2.0,
}  # fmt: skip
_SMOKE = {"train_images": 64, "eval_images": 64, "epochs": 2, "start": 1, "ramp": 1.0, "batch": 16}
# The usual settings for ResNet-50 (Cole et al., 2021, and later papers): whole images at 448 px,
# Adam at 1e-5 with a faster head, 10 epochs. We add the crops for this method.
_RESNET = {
    "backbone": "resnet50", "image_side": 512, "crop_side": 448, "eval_side": 448, "epochs": 10,
    "batch": 16, "lr": 1e-5, "head_lr_factor": 10.0, "warmup": 0.1, "eval_every": 5,
    "bank_size": 14, "start": 3, "ramp": 1.0, "distance": "l1",
}  # fmt: skip
_PHOTOGRAPHS = {
    "frozen": _FROZEN,
    "cpu": _MOBILENET,
    # Twice the epochs, which harm AN most. On voc2007's held-out part of train (seed 0), 8 and 16
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


def _own_photographs() -> dict[str, dict[str, object]]:
    """The profiles of a user's photographs; the expected positives are ours."""
    usual = _photographs(1.5)
    # A network that was trained on crops finds more in larger whole images: on voc2007's held-out
    # part of train (EN + SCL, seed 0), the same weights of profile cpu give mAP 70.9 at 160 px and
    # 75.6 at 224 px. The data sets with kept results stay at 160 px.
    return usual | {name: {**usual[name], "eval_side": 224} for name in ("cpu", "long")}


# data set -> profile -> settings that differ from RunConfig's defaults
PROFILES: dict[str, dict[str, dict[str, object]]] = {
    "scenes": {
        "cpu": _SCENES,
        # It takes half a minute. This is enough to see that Full is better than AN (mAP of one
        # seed: AN 37, Full 50; chance gives 20), but not enough for SCL.
        "smoke": {
            **_SCENES, **_SMOKE, "train_images": 500, "eval_images": 500, "epochs": 8, "start": 3,
            "ramp": 2.0, "eval_every": 2,
        },
        # For 00_tour: whole crops, so that the heatmaps of a minute's training can be looked at.
        "tour": {
            **_SCENES, "train_images": 1000, "eval_images": 500, "epochs": 8, "eval_every": 100,
            "crop_side": 64, "batch": 16, "head_lr_factor": 1.0, "start": 4, "ramp": 4.0,
            "distance": "bce",
        },
    },
    # Expected positives are the published values (Cole et al., 2021), not counts of the labels.
    "voc2007": _photographs(1.5),
    "voc2012": _photographs(1.5),
    "coco2014": _photographs(2.9),
    "coco2017": _photographs(2.9),
    "imagenet": _photographs(1.2),  # our prior: ReaL has 1.2 valid labels per image
    "folder": _own_photographs(),
    "table": _own_photographs(),
    "coco18": _own_photographs(),  # a table with this name below the data root
}  # fmt: skip


# What the league of COCO chose for its best methods, see 06_benchmark; photographs of one's own are
# most like COCO's. With REN's usual values, a model calls nearly every image "person".
_ROBUST = {"robustness": 0.7, "prior_weight": 0.5}
_CHOSEN: dict[str, dict[str, object]] = {
    "en_scl": {"weight": 0.1}, "ren": _ROBUST, "ren_scl": _ROBUST,
    "gpr": {"count_weight": 0.001}, "gpr_scl": {"count_weight": 0.001, "weight": 0.1},
}  # fmt: skip
_OWN = ("folder", "table", "coco18")
METHODS_IN_SHORT = ("an", "scl", "en_scl", "ren_scl", "full")  # the help names these


def chosen_settings(dataset: str, profile: str, method: str) -> dict[str, object]:
    """The settings of a profile that are for one method."""
    return dict(_CHOSEN.get(method, {})) if dataset in _OWN and profile == "frozen" else {}


def usual_dataset(data_root: str | Path | None) -> str:
    """The default data set: scenes, or the images in a folder that is named."""
    if not data_root:
        return "scenes"
    return "table" if (Path(data_root).expanduser() / "train.csv").is_file() else "folder"


def usual_profile(dataset: str | None) -> str:
    """The default profile: the fast one for a user's own images."""
    return "frozen" if dataset in _OWN else "cpu"


def usual_method(profile: str) -> str:
    """The default method: the one that came first in the profile's league."""
    return "ren_scl" if profile == "frozen" else "en_scl"


@dataclass(frozen=True)
class Cost:
    """Expected cost of one run: the time, and a text with the memory and the source."""

    seconds: float
    rest: str

    def __str__(self) -> str:
        return f"{duration(self.seconds)} and {self.rest}"


def duration(seconds: float) -> str:
    """A time as a short text: "30 s", "6 min", "4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


# (data set, profile) -> cost, measured with one core for each of two runs at the same time, with
# bfloat16. For other data sets that of VOC 2007 is said.
COSTS: dict[tuple[str, str], Cost] = {
    ("scenes", "cpu"): Cost(30, "0.8 GB"),
    ("scenes", "tour"): Cost(20, "0.8 GB"),
    ("voc2007", "cpu"): Cost(360, "2.1 GB"),
    ("voc2007", "long"): Cost(720, "2.1 GB"),
    ("voc2007", "frozen"): Cost(15, "2 GB, once 1 min and 1.8 GB of cache"),
    ("coco18", "cpu"): Cost(720, "2.1 GB"),
    ("coco18", "frozen"): Cost(35, "4 GB, once 2 min and 3.3 GB of cache"),
}
_SMOKE_COST, _PAPER_COST = Cost(10, "1 GB"), Cost(600, "8 GB of GPU memory (never run by us)")


def cost(dataset: str, profile: str) -> Cost:
    """Expected time and memory of one run."""
    if profile == "smoke":
        return _SMOKE_COST
    if profile == "paper":
        return _PAPER_COST
    if found := COSTS.get((dataset, profile)):
        return found
    usual = COSTS["voc2007", profile]
    return Cost(usual.seconds, f"{usual.rest} (of VOC 2007 with 2,500 images; yours may differ)")
