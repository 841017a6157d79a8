"""Data sets: each gives whole images with full labels; a draw keeps one label per image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spcl_lib import paths
from spcl_lib.data import scenes
from spcl_lib.data.cache import once
from spcl_lib.data.common import Boxes, ImageSet, hold_out
from spcl_lib.data.draws import draw_labels, single_label_draw
from spcl_lib.data.imagenet import load_imagenet
from spcl_lib.data.voc import load_voc

if TYPE_CHECKING:  # config takes the names of the draws from here
    from spcl_lib.config import RunConfig

__all__ = [
    "SINGLE_LABEL", "Boxes", "ImageSet", "draw_labels", "load_splits", "single_label_draw",
]  # fmt: skip

SCENES_SPLITS = {"train": 1000, "val": 1000, "test": 2000}
SINGLE_LABEL = frozenset({"imagenet"})  # training images have no full labels: no upper bound


def load_splits(config: RunConfig, data_root: str | Path | None) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and the images to report on, with full labels.

    With `report="val"` neither touches the data of the final report: scenes are evaluated on
    `val`; a real `train` is split into 60 % for training and 40 % for evaluation.

    Raises:
        UserError: the data are missing or damaged.
    """
    if config.dataset == "scenes":
        train, evaluation = _scenes("train", config), _scenes(config.report, config)
    else:
        root = paths.data_root(data_root, f"the data set '{config.dataset}'")
        if config.dataset == "imagenet":
            return load_imagenet(root, config)
        train = load_voc(root, "train", config.image_side, damaged=config.damaged)
        if config.report == "val":
            train, evaluation = _hold_out(train)
        else:
            evaluation = load_voc(root, "val", config.image_side, damaged=config.damaged)
    labelled = train.labels.any(1)  # VOC: a few images have nothing but difficult objects
    if not bool(labelled.all()):
        train = train.subset(labelled.nonzero().flatten())
    return _first(train, config.train_images), _first(evaluation, config.eval_images)


def _scenes(split: str, config: RunConfig) -> ImageSet:
    count, side = SCENES_SPLITS[split], config.image_side

    def make() -> dict[str, torch.Tensor]:
        made = scenes.make_scenes(count, split, side)
        return {"images": made.images, "labels": made.labels, "class_map": made.class_map}

    parts = once(f"scenes-{split}", make, scenes, count, side)
    ids = tuple(f"{split}-{i:05d}" for i in range(count))
    return ImageSet(classes=scenes.CLASSES, ids=ids, **parts)


def _hold_out(train: ImageSet) -> tuple[ImageSet, ImageSet]:
    stay, held = hold_out(len(train))
    return train.subset(stay), train.subset(held)


def _first(data: ImageSet, count: int) -> ImageSet:
    return data if count == 0 else data.subset(torch.arange(min(count, len(data))))
