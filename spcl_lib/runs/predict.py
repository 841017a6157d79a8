"""Predictions of a finished run for image files, into a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.folders import find_images
from spcl_lib.data.images import map_in_threads, silence_pillow, try_image
from spcl_lib.runs.prediction_files import check_place, format_of, open_predictions
from spcl_lib.runs.predictor import BATCH, Predictor
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import remove_stale

_LONGEST_NAME = 200  # bytes; the ending of a picture and of its temporary file must fit, too


class Overlays(Protocol):
    """An object that draws heatmaps over images, such as `viewer.overlays.OverlayFolder`."""

    folder: Path

    def draw(
        self,
        image: Path,
        file: Path,
        classes: Sequence[str],
        maps: Tensor,
        scores: Tensor,
        chosen: Tensor,
        rule: str,
    ) -> None:
        """Writes the picture `file` of one image.

        `maps` (C, G, G) and `scores` (C,) are in [0, 1]. `chosen` (C,) bool has the labels, which
        `rule` explains.
        """


def predict_files(
    predictor: Predictor,
    images: Path,
    out: Path,
    overlays: Overlays | None = None,
    force: bool = False,
    form: str | None = None,
) -> tuple[int, list[str]]:
    """Writes a file with a row for every image: its path, a score per class, its labels.

    In a CSV file, `columns` gives the columns. Labels have "|" between them; the field is empty if
    there is no label. Spreadsheets must not take a name for a formula: a path such as "=1.png"
    becomes "./=1.png", and other names get a "'" in front.

    Args:
        predictor: predictor of a finished run; its `rule` says which scores are labels.
        images: one image file, or a folder; images are taken at any depth, sorted by path.
        out: the file; earlier predictions are replaced when all rows are written.
        overlays: draws a picture of every image's heatmaps; none by default. The picture of the
            image "a/b.jpg" is "a/b.jpg.png"; very long names are shortened.
        force: replace also a file that holds no predictions.
        form: "csv", "json" or "parquet"; by default as the name of `out` ends, else "csv".

    Returns:
        The number of images with a row, and the paths of images that could not be read.

    Raises:
        UserError: there is no image, no image can be read, a file cannot be written, `out` is
            another file than earlier predictions, or the predictor has no rule.
    """
    if predictor.rule is None:
        raise UserError("this run has no threshold of its own; give one, such as --threshold 0.5")
    form = format_of(out, form)
    check_place(out, form, force)
    root, names = _find_images(images, overlays)
    skipped: list[str] = []
    if overlays is not None:
        remove_stale(overlays.folder, "**/.*.png")
    with silence_pillow(), open_predictions(out, form, predictor.classes) as write_row:
        for batch in read_batches(root, names, predictor.square_side, skipped):
            maps = predictor.score_maps(torch.stack(list(batch.values())))  # (B, C, G, G)
            scores = predictor.pooling(maps).sigmoid()  # (B, C)
            labels = predictor.rule.names(scores, predictor.classes)
            for name, own_scores, own_labels in zip(batch, scores, labels, strict=True):
                write_row(name, own_scores, own_labels)
            if overlays is not None:
                heat, chosen = predictor.pooling.heat(maps), predictor.rule.choose(scores)
                seen = zip(heat, scores, chosen, strict=True)
                for name, what in zip(batch, seen, strict=True):
                    file = overlays.folder / _picture_name(name)
                    overlays.draw(root / name, file, predictor.classes, *what, str(predictor.rule))
        if len(skipped) == len(names):
            raise UserError(f"none of the {len(names)} images of '{images}' can be read")
    return len(names) - len(skipped), skipped


def _find_images(images: Path, overlays: Overlays | None) -> tuple[Path, list[str]]:
    """A folder, and the paths of the images below it."""
    if images.is_file():
        return images.parent, [images.name]
    if not images.is_dir():
        what = "is no regular file" if images.exists() else "does not exist"
        raise UserError(f"'{images}' {what}; give a folder of images or an image")
    real = paths.real_path
    if overlays is not None and real(overlays.folder).is_relative_to(real(images)):
        raise UserError(
            f"the heatmaps' folder '{overlays.folder}' is inside '{images}', where the next "
            "prediction would take them for images; give a folder outside"
        )
    names, others = find_images(images)
    if not names:
        left = f" ({others})" if others else ""
        raise UserError(f"'{images}' holds no image that can be read{left}")
    if others:
        print(f"'{images}': {others}", flush=True)
    return images, names


def read_batches(
    root: Path, names: Sequence[str], side: int, skipped: list[str]
) -> Iterator[dict[str, Tensor]]:
    """Gives batches of files: squares (3, side, side) uint8 by their names below `root`.

    Names of files that cannot be read are added to `skipped`.
    """
    batch: dict[str, Tensor] = {}
    images = map_in_threads(lambda name: try_image(root / name, side), names)
    bar = tqdm(images, total=len(names), desc="predicting", unit="image", mininterval=1)
    for name, image in zip(names, bar, strict=True):
        if isinstance(image, str):  # it could not be read
            skipped.append(name)
        else:
            batch[name] = torch.from_numpy(image)
        if len(batch) == BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch


def _picture_name(name: str) -> str:
    """The path of an image's picture below the folder of pictures."""
    folder, slash, leaf = name.rpartition("/")
    encoded = os.fsencode(leaf)
    if len(encoded) > _LONGEST_NAME:
        start = encoded[:_LONGEST_NAME].decode("utf-8", "ignore")
        leaf = f"{start}-{hashlib.sha256(encoded).hexdigest()[:8]}"
    return f"{folder}{slash}{leaf}.png"
