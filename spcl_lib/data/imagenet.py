"""`imagenet`: ImageNet-1K with its own single labels, evaluated against ReaL's sets of labels.

ReaL (Beyer et al., 2020, "Are we done with ImageNet?", arXiv 2006.07159) gives each of the 50,000
validation images the set of its valid classes. If the set is empty, the image is left out, as its
authors do.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from spcl_lib.data.image_set import ImageSet, hold_out, list_image_files
from spcl_lib.data.images import ENDINGS
from spcl_lib.system.errors import UserError

_VALIDATION = "ILSVRC2012_val_"
Picture = tuple[str, Path, list[int]]  # name for people, file, class numbers


def list_imagenet(
    root: Path, report: str = "test", train_images: int = 0, eval_images: int = 0
) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and validation images with ReaL's labels; none is read yet.

    With `report="val"` both are training images, with their single labels. Of more than
    `train_images` or `eval_images` it takes a fixed random choice; 0 = all.
    """
    folder = root / "imagenet"
    if not folder.is_dir():
        raise UserError(
            f"ImageNet is not at '{folder}'; put train/<wnid>/*.JPEG, val/*.JPEG, real.json and "
            "imagenet_class_index.json there"
        )
    wnids, classes = read_class_index(folder / "imagenet_class_index.json")
    train = list_training(folder / "train", wnids)
    if report == "val":
        stay, held = hold_out(len(train))
        train, evaluation = [train[i] for i in stay], [train[i] for i in held]
    else:
        real = _read_json(folder / "real.json", "github.com/google-research/reassessed-imagenet")
        evaluation = list_validation(folder / "val", real)
    return _image_set(train, classes, train_images), _image_set(evaluation, classes, eval_images)


def _image_set(found: list[Picture], classes: tuple[str, ...], count: int) -> ImageSet:
    if 0 < count < len(found):  # chosen at random, because the first images share one class
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1200))
        found = [found[i] for i in order[:count].sort().values]
    ids, files, own = zip(*found, strict=True)
    labels = torch.zeros((len(files), len(classes)), dtype=torch.bool)
    rows = [row for row, numbers in enumerate(own) for _ in numbers]
    labels[rows, [c for numbers in own for c in numbers]] = True
    return list_image_files(files, labels=labels, classes=classes, ids=ids)


def read_class_index(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The 1,000 wnids and names, by class number; the two cranes have their wnids in the name."""
    table = _read_json(path, "Keras")
    wnids, names = zip(*(table[str(c)] for c in range(1000)), strict=True)
    counts = Counter(names)
    pairs = zip(wnids, names, strict=True)
    return wnids, tuple(f"{name} ({i})" if counts[name] > 1 else name for i, name in pairs)


def _read_json(path: Path, publisher: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); {publisher} publishes it") from error


def list_training(folder: Path, wnids: tuple[str, ...]) -> list[Picture]:
    """All training images, by class and name. Classes may be missing."""
    from torchvision.datasets.folder import make_dataset  # here: torchvision takes a second

    number = {wnid: c for c, wnid in enumerate(wnids) if (folder / wnid).is_dir()}
    found = number and make_dataset(str(folder), number, ENDINGS, allow_empty=True)
    if not found:
        raise UserError(f"'{folder}' holds no training image; expected <wnid>/*.JPEG in it")
    return [(f"{wnids[c]}/{Path(file).stem}", Path(file), [c]) for file, c in found]


def list_validation(folder: Path, real: list[list[int]]) -> list[Picture]:
    """The validation images with ReaL's labels, matched by the number in the file's name."""
    numbers = slice(len(_VALIDATION), len(_VALIDATION) + 8)  # of mirrors, the wnid may follow
    files = {int(file.name[numbers]): file for file in folder.rglob(f"{_VALIDATION}*.*")}
    kept = [(f"{_VALIDATION}{number:08d}", files[number], real[number - 1])
            for number in sorted(files) if real[number - 1]]  # fmt: skip
    if not kept:
        raise UserError(
            f"no {_VALIDATION}00000001.JPEG ... are in '{folder}' or folders below. To evaluate on "
            "held-out training images: --set report=val"
        )
    return kept
