"""RunConfig: the frozen configuration of one run.

All values are our choice, unless a text says otherwise: the paper does not publish its settings.
`runs/profiles.py` has the values for every data set. `runs/settings.py` checks the user's settings.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from spcl_lib.losses.settings import MethodSettings, setting
from spcl_lib.model import AMP, BACKBONES
from spcl_lib.pooling import KINDS
from spcl_lib.system.errors import UserError

# Settings of earlier versions, with the values of their defaults and profiles.
RETIRED = {"pretrain_images": (10000, 4000), "pretrain_epochs": (12, 4), "visibility": (0,)}

_MOST_IMAGES, _MOST_PIXELS, _MOST_SEEDS = 10**9, 2**14, 2**31
_ABOVE_0 = 1e-12
_DRAWS = ("uniform", "cole", "size", "location")


@dataclass(frozen=True)
class RunConfig:
    """Everything that the metrics of a run depend on, apart from the machine.

    metrics.json has the checksum of the first weights that `weights` stands for.
    """

    # what; these have options of their own
    dataset: str = "scenes"
    method: str = "an"
    seed: int = setting(0, "of the network, the order of images and the views", 0, _MOST_SEEDS)
    profile: str = "cpu"
    # data
    draw: str = setting("uniform", "rule that selects the kept label of an image", choices=_DRAWS)
    label_seed: int = setting(0, "all methods and seeds see the same labels", 0, _MOST_SEEDS)
    report: str = setting(
        "test", "test: final; val: for choices, never the final data; train: all images of a "
        "folder are trained on, and reported on again", choices=("test", "val", "train"),
    )  # fmt: skip
    held_out: int = setting(0, "with report=val: number of the held-out part", 0, 2)
    content: str = ""  # fingerprint of the data set's files and labels; "" for drawn scenes
    train_images: int = setting(0, "0 = all", 0, _MOST_IMAGES)
    eval_images: int = setting(0, "0 = all", 0, _MOST_IMAGES)
    difficult: str = setting(
        "negative", "how VOC's difficult objects count", choices=("negative", "positive", "ignored")
    )
    unannotated: str = setting("drop", "COCO's images without any object", choices=("drop", "keep"))
    damaged: str = setting("stop", "images that cannot be read", choices=("stop", "skip"))
    labels: str = setting("", "folder: CSV of path,label; without it, class/image.jpg")
    full_labels: str = setting("", "folder: CSV of path,labels (a|b) for the evaluation")
    image_side: int = setting(64, "side of the squares that store whole images", 1, _MOST_PIXELS)
    crop_side: int = setting(64, "side of the crops that the network trains on", 1, _MOST_PIXELS)
    eval_side: int = setting(64, "side of the whole images in the evaluation", 1, _MOST_PIXELS)
    scale_min: float = setting(0.25, "smallest area of a crop, share of the image", _ABOVE_0, 1)
    scale_max: float = setting(1.0, "largest area of a crop", _ABOVE_0, 1)
    ratio_max: float = setting(4 / 3, "widest crop; the narrowest is its inverse", 1, 10)
    flip: float = setting(0.5, "share of the crops that are mirrored", 0, 1)
    # network
    backbone: str = setting(
        "small_resnet", "the network without its last layer", choices=(*BACKBONES, "timm:NAME")
    )
    weights: str = setting("auto", "auto, none, torchvision or a file")
    pooling: str = setting("mean", "from score maps to logits", choices=KINDS)
    pooling_strength: float = setting(0.0, "0 = the usual strength of the pooling's kind")
    frozen: int = setting(0, "leading blocks of the backbone that are not trained", 0, 1000)
    trained: str = setting(
        "network", "head: only the 1x1 layer, on kept features", choices=("network", "head")
    )
    dilation: int = setting(1, "of the last stage; 2 makes score maps twice as fine", 1, 2)
    # optimisation: AdamW, one-cycle
    epochs: int = setting(16, "passes over the training images", 1, 10**6)
    batch: int = setting(32, "images of one step", 1, 10**6)
    lr: float = setting(2e-3, "highest learning rate", _ABOVE_0, 1e38)
    head_lr_factor: float = setting(1.0, "above 1, the new layer learns faster", 1e-6)
    weight_decay: float = setting(1e-2, "of AdamW")
    warmup: float = setting(0.2, "share of the steps over which the learning rate rises", 0, 1)
    amp: str = setting("auto", "mixed precision", choices=AMP)
    eval_every: int = setting(4, "epochs between evaluations for the learning curve", 1, 10**6)
    # method
    settings: MethodSettings = MethodSettings()
    # records
    snapshots: int = setting(0, "training images followed, for explore; 0 = none", 0, _MOST_IMAGES)

    def flat(self) -> dict[str, Any]:
        """All values by name, with the method's settings at the same level; for files."""
        values = dataclasses.asdict(self)
        return values | values.pop("settings")

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The configuration from the values of `flat`; a missing value gets its default."""
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

    def replace(self, **values: Any) -> Self:
        """A copy with other values; the method's settings are allowed, too."""
        return self.from_flat(self.flat() | values)

    def grid_of_crop(self, grid: int) -> int:
        """Cells along a side of a crop's maps, if the whole image has `grid` cells."""
        return max(1, round(grid * self.crop_side / self.image_side))

    def digest(self) -> str:
        """Eight characters that change with any value; a new setting does not change them.

        What a run records besides its results does not count.
        """
        defaults = type(self)().flat()
        values = {k: v for k, v in self.replace(snapshots=0).flat().items() if v != defaults[k]}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
