"""The profiles: the settings for every data set, and the cost of one run.

All values are ours, unless a comment says otherwise. We chose them on validation data, in runs with
`report=val`, which never use the data of the final results.
"""

import json
from pathlib import Path

from spcl_lib.system import paths

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
    # Twice the epochs, which harm AN most: on voc2007's held-out part, 66.9 in place of 69.7.
    "long": _MOBILENET | {"epochs": 16, "start": 4},
    "smoke": _MOBILENET | _SMOKE | {"crop_side": 96, "eval_side": 96, "eval_every": 1},
    "paper": _RESNET,
}


Profiles = dict[str, dict[str, object]]  # name -> settings that differ from RunConfig's defaults


def _photographs(expected_positives: float) -> Profiles:
    """The profiles of a data set of photographs with this many positives per image."""
    more = {"expected_positives": expected_positives}
    return {name: values | more for name, values in _PHOTOGRAPHS.items()}


# A network that was trained on crops finds more in larger whole images: on voc2007's held-out part
# of train (EN + SCL, seed 0), the same weights of profile cpu give mAP 70.9 at 160 px and 75.6 at
# 224 px. VOC 2007 with its kept results stays at 160 px. The expected positives are ours.
_OWN_PHOTOGRAPHS = _photographs(1.5)
for _name in ("cpu", "long"):
    _OWN_PHOTOGRAPHS[_name]["eval_side"] = 224

PROFILES: dict[str, Profiles] = {  # by data set
    "scenes": {
        "cpu": _SCENES,
        # Ten seconds show that Full is better than AN (mAP of seed 0: 82, 66). SCL needs more.
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
    "folder": _OWN_PHOTOGRAPHS,
    "table": _OWN_PHOTOGRAPHS,
    "coco18": _OWN_PHOTOGRAPHS,  # a table with this name below the data root
}  # fmt: skip


_OWN = ("folder", "table")
# They do not carry over to another number of images.
OF_TRAINING = ("lr", "weight_decay", "epochs", "start", "ramp", "rejected")


def chosen_settings(dataset: str, profile: str, method: str) -> dict[str, object]:
    """The settings of a profile that are for one method.

    One's own photographs are like COCO's, whose league chose settings, see 06_benchmark.
    """
    if dataset not in _OWN or profile != "frozen":
        return {}
    content = json.loads((paths.reference() / "league-coco18.json").read_bytes())
    # The first entry of a method is that with the mean.
    chosen = next((e["settings"] for e in content["final"] if e["method"] == method), {})
    return {name: value for name, value in chosen.items() if name not in OF_TRAINING}


def usual_dataset(data_root: str | Path | None) -> str:
    """The default data set: scenes, or the images in a folder that is named."""
    if not data_root:
        return "scenes"
    return "table" if (Path(data_root).expanduser() / "train.csv").is_file() else "folder"


def usual_profile(dataset: str | None) -> str:
    """The default profile: the fast one for a user's own images."""
    return "frozen" if dataset in (*_OWN, "coco18") else "cpu"


def usual_method(profile: str) -> str:
    """The default method.

    Of 1,200 and 3,600 photographs of COCO, REN + SCL learns 50.1 and 55.6 mAP on held-out ones (two
    seeds). Cells, behind none in the leagues of photographs, learns 48.7 and 52.3; 50.0 and 55.3 at
    a lower rate.
    """
    return "ren_scl" if profile == "frozen" else "en_scl"


def duration(seconds: float) -> str:
    """A time as a short text: "30 s", "6 min", "4 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


# Seconds of one run, measured with one core for each of two runs at the same time, with bfloat16.
# Those of large data sets are estimated from VOC 2007's; `paper` was never run.
_SECONDS = {
    "cpu": 360, "long": 720, "frozen": 15, "smoke": 10, "paper": 600, "tour": 20,
    "scenes-cpu": 30, "coco18-cpu": 720, "coco18-frozen": 35, "voc2012-cpu": 840,
    "coco2014-cpu": 14_400, "coco2017-cpu": 21_600, "imagenet-cpu": 3600,
}  # fmt: skip


def cost(dataset: str, profile: str) -> float:
    """Expected seconds of one run."""
    return _SECONDS.get(f"{dataset}-{profile}", _SECONDS[profile])
