"""RunConfig: the frozen configuration of one run.

All values are our choice, unless a comment says otherwise: the paper does not publish its settings.
`runs/profiles.py` has the values for every data set. `runs/settings.py` checks the user's settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spcl_lib.system.errors import UserError
from spcl_lib.terms import MethodSettings

# Settings of earlier versions, with the values of their defaults and profiles.
RETIRED = {"pretrain_images": (10000, 4000), "pretrain_epochs": (12, 4)}


@dataclass(frozen=True)
class RunConfig:
    """Everything that the metrics of a run depend on, apart from the machine."""

    # what
    dataset: str = "scenes"
    method: str = "an"
    seed: int = 0  # of the network, the order of images and the views
    profile: str = "cpu"
    draw: str = "uniform"  # rule that selects the kept label of an image, see data.draws.DRAWS
    label_seed: int = 0  # all methods and seeds see the same labels; cole adds 1200
    # "test": final; "val": for choices, never touches the final data; "train": all images of a
    # folder are trained on, and reported on again
    report: str = "test"
    held_out: int = 0  # with report=val: number of the held-out part, see image_set.hold_out
    # data
    content: str = ""  # fingerprint of the data set's files and labels; "" for drawn scenes
    train_images: int = 0  # 0 = all
    eval_images: int = 0  # 0 = all
    difficult: str = "negative"  # VOC's difficult objects: "negative", "positive" or "ignored"
    unannotated: str = "drop"  # COCO's images without any object: "drop" or "keep"
    damaged: str = "stop"  # images that cannot be read: "stop", or "skip" and count them
    labels: str = ""  # folder: CSV of path,label below the data root; "" = class/image.jpg
    full_labels: str = ""  # folder: CSV of path,labels (a|b) for the evaluation; "" = none
    image_side: int = 64  # side of the squares that store whole images
    crop_side: int = 64  # side of the crops that the network trains on
    eval_side: int = 64  # side of the whole images in the evaluation
    scale_min: float = 0.25  # smallest area of a crop, as a share of the image
    scale_max: float = 1.0  # largest area of a crop
    ratio_max: float = 4 / 3  # widest crop, width / height; the narrowest is its inverse
    flip: float = 0.5  # share of the crops that are mirrored
    # network
    backbone: str = "small_resnet"
    weights: str = "auto"  # "auto", "none", "torchvision" or a file
    pooling: str = "mean"  # from score maps to logits, see pooling.KINDS
    pooling_strength: float = 0.0  # 0 = the usual strength of the kind, see Pooling
    frozen: int = 0  # leading blocks of the backbone that are not trained
    trained: str = "network"  # or "head": only the 1x1 convolution, on features computed once
    dilation: int = 1  # of the backbone's last stage; 2 makes the score maps twice as fine
    # optimisation: AdamW, one-cycle
    epochs: int = 16  # passes over the training images
    batch: int = 32  # images of one step
    lr: float = 2e-3  # highest learning rate
    head_lr_factor: float = 1.0  # above 1, the new layer learns faster than the backbone
    weight_decay: float = 1e-2  # of AdamW
    warmup: float = 0.2  # share of the steps over which the learning rate rises
    amp: str = "auto"  # "auto", "bfloat16" or "off"
    eval_every: int = 4  # epochs between evaluations for the learning curve
    # method
    settings: MethodSettings = MethodSettings()
    # records
    snapshots: int = 0  # training images followed over the epochs, see runs/snapshots.py; 0 = none

    def flat(self) -> dict[str, Any]:
        """All values by name, with the method's settings at the same level; for files."""
        values = dataclasses.asdict(self)
        return values | values.pop("settings")

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration from the values of `flat`; a missing value gets its default.

        Raises:
            TypeError: a name is not a setting.
            UserError: a setting of an earlier version had another value than its usual ones.
        """
        for name in RETIRED.keys() & values.keys():
            if values[name] not in RETIRED[name]:
                raise UserError(
                    f"the setting '{name}' is gone, and this configuration changed it to "
                    f"{values[name]}; only the version of spcl that made it can read it"
                )
        values = {k: v for k, v in values.items() if k not in RETIRED}
        names = {field.name for field in dataclasses.fields(MethodSettings)}
        own = {k: v for k, v in values.items() if k not in names}
        settings = MethodSettings(**{k: v for k, v in values.items() if k in names})
        return cls(**own, settings=settings)

    def replace(self, **values: Any) -> RunConfig:
        """A copy with other values; the method's settings are allowed, too."""
        return self.from_flat(self.flat() | values)

    def grid_of_crop(self, grid: int) -> int:
        """Cells along a side of a crop's maps, if the whole image has `grid` cells."""
        return max(1, round(grid * self.crop_side / self.image_side))

    def digest(self) -> str:
        """Eight characters that change with any value; a new setting does not change them."""
        defaults = type(self)().flat()
        values = {k: v for k, v in self.flat().items() if v != defaults[k]}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
