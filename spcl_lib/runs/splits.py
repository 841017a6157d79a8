"""The splits of a run: its configuration says which images it trains on and reports on."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import PIL
import torch

from spcl_lib.config import RunConfig
from spcl_lib.data import scenes
from spcl_lib.data.cache import decode_image_set, make_once
from spcl_lib.data.coco import list_coco
from spcl_lib.data.draws import NEED_BOXES
from spcl_lib.data.folders import list_folder_splits, list_table
from spcl_lib.data.image_set import ImageSet, hold_out
from spcl_lib.data.imagenet import list_imagenet
from spcl_lib.data.voc import list_voc
from spcl_lib.methods import bytes_of_averages
from spcl_lib.runs.settings import SINGLE_LABEL, TABLES
from spcl_lib.system import paths
from spcl_lib.system.checksums import fingerprint
from spcl_lib.system.errors import UserError
from spcl_lib.system.randomness import keyed_generator

# Names of both parts in the cache, by the setting `report`.
_PARTS = {"test": ("train", "val"), "val": ("remaining", "held-out"), "train": ("all", "all")}
_SCENES = {"train": 1000, "val": 1000, "test": 2000}  # images of each split

Splits = tuple[ImageSet, ImageSet]  # to train on, to report on


def load_splits(config: RunConfig, data_root: str | Path | None, objects: bool = False) -> Splits:
    """The images to train on, and the images to report on, with full labels.

    With `report="val"`, no image of the final report is used. Scenes are then evaluated on `val`;
    the `train` of a real data set is split into 60 % for training and 40 % for evaluation (one's
    own folder: another share).

    With `objects`, the objects are read too for data sets where this takes time (VOC). Running
    averages that do not fit into memory are refused before the decoding, which can take hours.
    """
    train, evaluation = _list_splits(config, data_root, objects)
    for note in (*train.notes, *evaluation.notes):
        print(f"{config.dataset}: {note}", flush=True)
    if train.classes != evaluation.classes:
        raise UserError(f"{config.dataset}: the classes of its two splits are not the same")
    train = _some(_keep_labelled(train, config.dataset), config.train_images, config)
    evaluation = _some(evaluation, config.eval_images, config)
    images, classes = train.labels.shape
    needed = bytes_of_averages(config.method, images, classes, config.settings)
    try:
        torch.empty(needed, dtype=torch.uint8)  # only reserved; else it would fail hours later
    except RuntimeError as error:
        raise UserError(
            f"running averages of {images:,} images x {classes:,} classes need {needed / 1e9:,.1f} "
            "GB of memory, more than there is; take fewer images (train_images), cells (bank_size) "
            "or classes per image (bank_classes)"
        ) from error
    first, second = _PARTS[config.report]
    return _decode(train, first, config), _decode(evaluation, second, config)


def identify_data(config: RunConfig, data_root: str | Path | None) -> RunConfig:
    """The configuration with `content`, the fingerprint of the run's data.

    Without it, a run on more images would count as finished. Scenes need none: code draws them. If
    it belongs to other data, it is refused.
    """
    if config.dataset == "scenes":
        return config
    content = fingerprint([part.content() for part in _list_splits(config, data_root)])[:8]
    if config.content not in ("", content):
        raise UserError(
            f"the data at '{_root(config, data_root)}' are not those of this run (fingerprint "
            f"{content}, expected {config.content}); give their folder with --data-root DIR"
        )
    return replace(config, content=content)


def identify_all(configs: Sequence[RunConfig], data_root: str | Path | None) -> list[RunConfig]:
    """Configurations on the same data, all with `content`; see `identify_data`."""
    content = identify_data(configs[0], data_root).content
    return [replace(config, content=content) for config in configs]


def list_report(config: RunConfig, data_root: str | Path | None) -> ImageSet:
    """The images that a run reports on, with their labels, before they are decoded."""
    _, evaluation = _list_splits(identify_data(config, data_root), data_root)
    return _some(evaluation, config.eval_images, config)


def _some(data: ImageSet, count: int, config: RunConfig) -> ImageSet:
    """The first images, or all for 0; of a table, which may be sorted, as many by lot."""
    if config.dataset not in TABLES or not 0 < count < len(data):
        return data.first(count or len(data))
    order = torch.randperm(len(data), generator=keyed_generator("some", len(data)))
    return data.subset(order[:count].sort().values)


def report_labels(config: RunConfig) -> str:
    """The labels for the evaluation of a run: "full", or "single" if no others are known."""
    if config.dataset not in SINGLE_LABEL:
        return "full"
    are_known = config.dataset == "imagenet" or config.full_labels
    return "full" if are_known and config.report == "test" else "single"


def _list_splits(config: RunConfig, data_root: str | Path | None, objects: bool = False) -> Splits:
    """Both splits, before photographs are decoded."""
    name, year = config.dataset, config.dataset[-4:]
    if name == "scenes":
        return _scenes("train", config), _scenes(config.report, config)
    root = _root(config, data_root)
    if name == "folder":
        return list_folder_splits(root, config.labels, config.full_labels, config.report)
    if name == "imagenet":
        return list_imagenet(root, config.report, config.train_images, config.eval_images)
    if name in TABLES:
        splits = list_table(root if name == "table" else root / name)
        return splits if config.report == "test" else _hold_out(splits[0], config)
    if name.startswith("voc"):
        objects = objects or config.draw in NEED_BOXES
        read = partial(list_voc, root, year=int(year), difficult=config.difficult, objects=objects)
    else:
        read = partial(list_coco, root, year=int(year), unannotated=config.unannotated)
    train = read("train")
    return (train, read("val")) if config.report == "test" else _hold_out(train, config)


def _hold_out(train: ImageSet, config: RunConfig) -> Splits:
    stay, held = hold_out(len(train), config.held_out)
    return train.subset(stay), replace(train.subset(held), notes=())


def _root(config: RunConfig, data_root: str | Path | None) -> Path:
    if config.dataset in ("folder", "table") and not data_root:  # the default root holds others
        raise UserError(f"'{config.dataset}' needs --data-root DIR: the folder of your images")
    return paths.data_root(data_root)


def _scenes(split: str, config: RunConfig) -> ImageSet:
    count, side = _SCENES[split], config.image_side

    def make() -> dict[str, torch.Tensor]:
        made = scenes.make_scenes(count, split, side)
        return {"images": made.images, "labels": made.labels, "class_map": made.class_map}

    drawn_by = scenes.VERSION, PIL.__version__, version("matplotlib")  # which has the font
    parts = make_once(f"scenes-{split}", make, *drawn_by, count, side)
    ids = tuple(f"{split}-{i:05d}" for i in range(count))
    return ImageSet(classes=scenes.CLASSES, ids=ids, **parts)


def _keep_labelled(train: ImageSet, dataset: str) -> ImageSet:
    """Leaves out images without a label to train on (VOC: all difficult), and prints how many."""
    labelled = train.labels.any(1)
    if labelled.all():
        return train
    print(f"{dataset}: training images without a positive label: {int((~labelled).sum()):,} of "
          f"{len(train):,}, left out", flush=True)  # fmt: skip
    return train.subset(labelled.nonzero().flatten())


def _decode(data: ImageSet, part: str, config: RunConfig) -> ImageSet:
    if data.files is None:
        return data
    # Every selection has its own cache.
    part += f"-{config.held_out}" if config.held_out else ""
    name = f"{config.dataset}-{part}-{len(data)}"
    return decode_image_set(data, config.image_side, name, config.damaged)
