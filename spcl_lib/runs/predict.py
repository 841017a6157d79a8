"""Predictions of a finished run for image files, into a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.folders import find_images
from spcl_lib.data.images import map_in_threads, silence_pillow, try_image
from spcl_lib.runs.prediction_files import FORMATS, check_place, open_predictions
from spcl_lib.runs.predictor import BATCH, Predictor
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError


class Overlays(Protocol):
    """An object that draws heatmaps over images, such as `viewer.overlays.OverlayFolder`."""

    folder: Path

    def draw(
        self,
        image: Path,
        name: str,
        classes: Sequence[str],
        maps: Tensor,
        scores: Tensor,
        chosen: Tensor,
        rule: str,
    ) -> None:
        """Writes the picture of one image, whose path in the predictions is `name`.

        `maps` (C, G, G) and `scores` (C,) are in [0, 1]. `chosen` (C,) bool has the labels, which
        `rule` explains.
        """


def predict_files(
    predictor: Predictor,
    images: Path | Sequence[Path],
    out: Path,
    overlays: Overlays | None = None,
    force: bool = False,
    form: str | None = None,
) -> tuple[int, dict[str, str]]:
    """Writes a file with a row for every image: its path, a score per class, its labels.

    In a CSV file, labels have "|" between them; the field is empty if there is no label.
    Spreadsheets must not take a name for a formula: a path such as "=1.png" becomes "./=1.png", and
    other names get a "'" in front.

    Args:
        predictor: its `rule` says which scores are labels.
        images: image files and folders; in a folder, images are taken at any depth. Paths in the
            file are below the folder, or below the deepest folder that holds all that is given.
        out: the file; earlier predictions are replaced when all rows are written.
        overlays: draws a picture of every image's heatmaps; none by default.
        force: replace also a file that holds no predictions.
        form: "csv" or "json"; by default as the name of `out` ends, else "csv".

    Returns:
        The number of images with a row; and the images that could not be read, with the reason.

    Raises:
        UserError: there is no image, no image can be read, a file cannot be written, `out` is
            another file than earlier predictions, or the predictor has no rule.
    """
    rule = predictor.require_rule()
    ending = out.suffix.lower().removeprefix(".")
    form = form or (ending if ending in FORMATS else "csv")
    check_place(out, force)
    root, names = _find_images([images] if isinstance(images, Path) else images, overlays)
    skipped: dict[str, str] = {}
    with silence_pillow(), open_predictions(out, form, predictor.classes) as write_row:
        for batch in read_batches(root, names, predictor.square_side, skipped):
            maps = predictor.score_maps(torch.stack(list(batch.values())))  # (B, C, G, G)
            scores = predictor.pooling(maps).sigmoid()  # (B, C)
            labels = rule.names(scores, predictor.classes)
            for name, own_scores, own_labels in zip(batch, scores, labels, strict=True):
                write_row(name, own_scores, own_labels)
            if overlays is not None:
                seen = zip(predictor.pooling.heat(maps), scores, rule.choose(scores), strict=True)
                for name, what in zip(batch, seen, strict=True):
                    overlays.draw(root / name, name, predictor.classes, *what, str(rule))
        if len(skipped) == len(names):
            name = names[0]
            raise UserError(f"none of the {len(names)} images can be read: {name} {skipped[name]}")
    return len(names) - len(skipped), skipped


def _find_images(places: Sequence[Path], overlays: Overlays | None) -> tuple[Path, list[str]]:
    """A folder, and the paths of the images below it."""
    folders = [place if place.is_dir() else place.parent for place in places]
    root = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    names = []
    for place in places:
        if place.is_file():
            names.append(_below(place, root))
        elif place.is_dir():
            names += _images_of(place, root, overlays)
        else:
            what = "is no regular file" if place.exists() else "does not exist"
            raise UserError(f"'{place}' {what}; give images and folders of images")
    return root, list(dict.fromkeys(names))


def _images_of(folder: Path, root: Path, overlays: Overlays | None) -> list[str]:
    if overlays and paths.real_path(overlays.folder).is_relative_to(paths.real_path(folder)):
        raise UserError(
            f"the heatmaps' folder '{overlays.folder}' is inside '{folder}', where the next "
            "prediction would take them for images; give a folder outside"
        )
    names, others = find_images(folder)
    if not names:
        left = f" ({others})" if others else ""
        raise UserError(f"'{folder}' holds no image that can be read{left}")
    if others:
        print(f"'{folder}': {others}", flush=True)
    return [_below(folder / name, root) for name in names]


def _below(file: Path, root: Path) -> str:
    return Path(os.path.abspath(file)).relative_to(root).as_posix()


def read_batches(
    root: Path, names: Sequence[str], side: int, skipped: dict[str, str]
) -> Iterator[dict[str, Tensor]]:
    """Gives batches of files: squares (3, side, side) uint8 by their names below `root`.

    Names of files that cannot be read are added to `skipped`, with the reason.
    """
    batch: dict[str, Tensor] = {}
    images = map_in_threads(lambda name: try_image(root / name, side), names)
    bar = tqdm(images, total=len(names), desc="predicting", unit="image", mininterval=1)
    for name, image in zip(names, bar, strict=True):
        if isinstance(image, str):
            skipped[name] = image
        else:
            batch[name] = torch.from_numpy(image)
        if len(batch) == BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch
