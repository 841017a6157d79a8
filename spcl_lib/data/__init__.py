"""Data sets: each gives whole images with full labels; a draw keeps one label per image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spcl_lib import paths
from spcl_lib.data import scenes
from spcl_lib.data.cache import once
from spcl_lib.data.coco import list_coco
from spcl_lib.data.common import Boxes, ImageSet, Masks, hold_out, with_images
from spcl_lib.data.draws import NEED_BOXES, draw_labels, single_label_draw
from spcl_lib.data.folder import content, load_folder
from spcl_lib.data.imagenet import load_imagenet
from spcl_lib.data.voc import list_voc
from spcl_lib.errors import UserError

if TYPE_CHECKING:  # config takes the names of the draws from here
    from spcl_lib.config import RunConfig

__all__ = [
    "SINGLE_LABEL", "Boxes", "ImageSet", "Masks", "draw_labels", "identified", "load_splits",
    "report_labels", "single_label_draw",
]  # fmt: skip

SCENES_SPLITS = {"train": 1000, "val": 1000, "test": 2000}
# Training images have no full labels: no upper bound.
SINGLE_LABEL = frozenset({"imagenet", "folder"})


def load_splits(
    config: RunConfig, data_root: str | Path | None, objects: bool = False
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and the images to report on, with full labels.

    With `report="val"` neither touches the data of the final report: scenes are evaluated on
    `val`; a real data set's `train` is split into 60 % for training and 40 % for evaluation; for a
    folder, see `folder.load_folder`.

    Args:
        config: the run's configuration.
        data_root: see `paths.data_root`.
        objects: also read where the objects are, for data sets where that costs time (VOC).

    Raises:
        UserError: the data are missing or damaged.
    """
    if config.dataset == "scenes":
        train, evaluation = _scenes("train", config), _scenes(config.report, config)
    else:
        root = _root(config, data_root)
        if config.dataset == "folder":
            return load_folder(config, root)
        if config.dataset == "imagenet":
            return load_imagenet(root, config)
        objects = objects or config.draw in NEED_BOXES
        load = partial(_LISTS[config.dataset], config, root, objects=objects)
        train = load("train")
        train, evaluation = _hold_out(train) if config.report == "val" else (train, load("val"))
    if train.classes != evaluation.classes:
        raise UserError(f"{config.dataset}: the classes of its two splits are not the same")
    train = _first(_with_positive(train, config.dataset), config.train_images)
    evaluation = _first(evaluation, config.eval_images)
    names = ("train", "val") if config.report == "test" else ("remaining", "held-out")
    return _decoded(train, names[0], config), _decoded(evaluation, names[1], config)


def _voc(config: RunConfig, root: Path, split: str, objects: bool) -> ImageSet:
    return list_voc(root, split, int(config.dataset[-4:]), config.difficult, objects)


def _coco(config: RunConfig, root: Path, split: str, objects: bool) -> ImageSet:
    return list_coco(root, split, int(config.dataset[-4:]), config.unannotated)


# Each lists a split, "train" or "val"; images are decoded when it is known which ones are used.
_LISTS = {"voc2007": _voc, "voc2012": _voc, "coco2014": _coco, "coco2017": _coco}


def _with_positive(train: ImageSet, dataset: str) -> ImageSet:
    """Without the images that have no label to train on; says how many (VOC: all difficult)."""
    labelled = train.labels.any(1)
    count = len(train) - int(labelled.sum())
    if not count:
        return train
    print(f"{dataset}: training images without a positive label: {count:,} of {len(train):,}, "
          "left out", flush=True)  # fmt: skip
    return train.subset(labelled.nonzero().flatten())


def _decoded(data: ImageSet, part: str, config: RunConfig) -> ImageSet:
    if data.files is None:
        return data
    name = f"{config.dataset}-{part}-{len(data)}"  # selections are cached side by side
    return with_images(data, config.image_side, name, config.damaged)


def identified(config: RunConfig, data_root: str | Path | None) -> RunConfig:
    """The configuration of a run on a user's folder with what identifies the folder's content.

    Runs on other data sets, which do not change, and those identified already stay as they are.

    Raises:
        UserError: the folder cannot be used.
    """
    if config.dataset != "folder" or config.content:
        return config
    return replace(config, content=content(config, _root(config, data_root)))


def report_labels(config: RunConfig) -> str:
    """What a run is evaluated against: "full" labels, or "single" ones where no more is known."""
    if config.dataset == "folder" and not config.full_labels:
        return "single"
    return "single" if config.dataset in SINGLE_LABEL and config.report == "val" else "full"


def _root(config: RunConfig, data_root: str | Path | None) -> Path:
    if config.dataset == "folder" and not data_root:  # the common place holds other data sets
        raise UserError("the data set 'folder' needs --data-root DIR: the folder of your images")
    return paths.data_root(data_root, f"the data set '{config.dataset}'")


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
