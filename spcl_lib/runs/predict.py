"""Predictions of a finished run, for tensors in Python and for image files into a CSV file."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.data.folder import SUFFIXES, images_below
from spcl_lib.data.images import map_in_threads, silence_pillow, try_image
from spcl_lib.evaluate import predict_maps
from spcl_lib.pooling import pooling_of
from spcl_lib.runs.network import load_network
from spcl_lib.runs.store import find_run, read_metrics
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write, remove_stale
from spcl_lib.system.machine import choose_device
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.shapes import require_tensor

_BATCH = 64
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these a spreadsheet starts a formula
_LONGEST_NAME = 200  # bytes; the ending of a picture and of its temporary file must fit, too
_THRESHOLD_IMAGES = 2000  # enough images to choose one number


class Predictor:
    """A trained classifier, ready for images.

    Attributes:
        classes: C names.
        threshold: lowest score of a label that counts as present, see `choose_threshold`; None for
            an old run that has no threshold.

    Example:
        >>> predictor = Predictor.load("results/folder-cpu-1a2b3c4d/en_scl-seed0")
        >>> scores = predictor(images)  # (B, 3, H, W) uint8 -> (B, C) in [0, 1]
        >>> labels = scores >= predictor.threshold
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        classes: Sequence[str],
        threshold: float | None = None,
    ) -> None:
        self.model, self.config = model, config
        self.classes, self.threshold = tuple(classes), threshold

    @classmethod
    def load(cls, run: str | Path) -> Predictor:
        """The network of a finished run, on the GPU if there is one.

        Args:
            run: folder of the run; only its metrics.json and weights.safetensors are needed.

        Raises:
            UserError: the run has not finished, or one of its files is missing or damaged.
        """
        run = find_run(Path(run))
        config, metrics = read_metrics(run)
        model = load_network(run, config, len(metrics["classes"]))
        model.to(choose_device(), memory_format=torch.channels_last)
        return cls(model, config, metrics["classes"], metrics.get("threshold"))

    def __call__(self, images: Tensor) -> Tensor:
        """Gives scores (B, C) in [0, 1], on the CPU, for whole images (B, 3, H, W) uint8."""
        return pooling_of(self.model)(self.score_maps(images)).sigmoid()

    def score_maps(self, images: Tensor) -> Tensor:
        """Gives score-map logits f (B, C, G, G), on the CPU, for whole images (B, 3, H, W) uint8.

        Raises:
            ValueError: the images have another shape or type.
            UserError: the network gives values that are not finite.
        """
        require_tensor("images", images, ("B", 3, "H", "W"), "uint8")
        maps = predict_maps(self.model, images, self.config.eval_side, self.config.amp)
        if not bool(maps.isfinite().all()):
            raise UserError("the network gives scores that are no numbers; train the run again")
        return maps


def choose_threshold(model: nn.Module, images: Tensor, config: RunConfig) -> float:
    """The score that `expected_positives` labels of a training image reach, on average (ours).

    A network that was trained on one label per image gives low probabilities, so few labels reach
    0.5. On the README's runs (seed 0), this threshold raises OF1 of EN + SCL from 49 to 76 (scenes)
    and 68 to 70 (VOC 2007). OF1 of AN rises from 17 to 67 and 61 to 68. It uses no labels.

    Args:
        model: trained network.
        images: (N, 3, S, S) uint8 training images, or their features; if there are many, a
            part of them is used.
        config: configuration of the run.
    """
    order = torch.randperm(len(images), generator=keyed_generator("threshold", config.seed))
    parts = order[:_THRESHOLD_IMAGES].sort().values.split(_BATCH)
    maps = [predict_maps(model, images[part], config.eval_side, config.amp) for part in parts]
    scores = pooling_of(model)(torch.cat(maps)).sigmoid()  # (M, C)
    count = min(round(len(scores) * config.settings.expected_positives), scores.numel())
    return float(scores.flatten().topk(count).values[-1])


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
        threshold: float,
    ) -> None:
        """Writes the picture `file` of one image, from maps (C, G, G) and scores (C,) in [0, 1]."""


def predict_files(
    predictor: Predictor,
    images: Path,
    out: Path,
    threshold: float,
    overlays: Overlays | None = None,
    force: bool = False,
) -> tuple[int, list[str]]:
    """Writes a CSV file with a row for every image: its path, a score per class, its labels.

    `columns` gives the columns. Labels have "|" between them; the field is empty if there is no
    label. Images are prepared as in the evaluation. Spreadsheets must not take a name for a
    formula: a path such as "=1.png" becomes "./=1.png", and other names get a "'" in front.

    Args:
        predictor: predictor of a finished run.
        images: one image file, or a folder; images are taken at any depth, sorted by path.
        out: the CSV file; earlier predictions are replaced when all rows are written.
        threshold: lowest score of a label that counts as present.
        overlays: draws a picture of every image's heatmaps; none by default. The picture of the
            image "a/b.jpg" is "a/b.jpg.png"; very long names are shortened.
        force: replace also a file that holds no predictions.

    Returns:
        The number of images with a row, and the paths of images that could not be read.

    Raises:
        UserError: there is no image, no image can be read, a file cannot be written, or `out`
            is another file than earlier predictions.
    """
    _check_place(out, force)
    root, names = _find_images(images, overlays)
    skipped: list[str] = []
    if overlays is not None:
        remove_stale(overlays.folder, "**/.*.png")
    with silence_pillow(), _table(out, predictor.classes) as writer:
        for batch in _batches(root, names, predictor.config.image_side, skipped):
            maps = predictor.score_maps(torch.stack(list(batch.values())))  # (B, C, G, G)
            scores = pooling_of(predictor.model)(maps).sigmoid()  # (B, C)
            for name, own_maps, own_scores in zip(batch, torch.sigmoid(maps), scores, strict=True):
                writer.writerow(_row(name, own_scores, predictor.classes, threshold))
                if overlays is not None:
                    file = overlays.folder / _picture_name(name)
                    overlays.draw(
                        root / name, file, predictor.classes, own_maps, own_scores, threshold
                    )
        if len(skipped) == len(names):
            raise UserError(f"none of the {len(names)} images of '{images}' can be read")
    return len(names) - len(skipped), skipped


def columns(classes: Sequence[str]) -> list[str]:
    """Header of the predictions: path, the classes, labels.

    If a class has the name of another column, it gets a number, such as "path (2)".
    """
    names = ["path"]
    for name in map(_plain, classes):
        column, number = name, 2
        while column in (*names, "labels"):
            column, number = f"{name} ({number})", number + 1
        names.append(column)
    return [*names, "labels"]


def _check_place(out: Path, force: bool) -> None:
    """Refuses a place where something else than predictions would be lost."""
    if out.is_dir():
        raise UserError(f"'{out}' is a folder; give the name of a CSV file")
    if not os.path.lexists(out):
        return
    if not out.is_file():
        raise UserError(f"'{out}' is no regular file; give the name of a CSV file")
    if not (force or _holds_predictions(out)):
        raise UserError(
            f"'{out}' exists and holds no predictions; give another name, or --force to replace it"
        )


def _holds_predictions(file: Path) -> bool:
    """Whether the first two lines look like those of `predict_files`, or the file is empty."""
    with open(file, encoding="utf-8", errors="surrogateescape", newline="") as handle:
        start = handle.read(2**22)  # a file without a line end must not fill the memory
    try:
        rows = list(islice(csv.reader(io.StringIO(start, newline="")), 2))
    except csv.Error:
        return False
    if len(rows) < 2:
        return not start
    header, row = rows
    are_scores = all(re.fullmatch(r"[01]\.\d{4}", text) for text in row[1:-1])
    ends = header[:1] + header[-1:]
    return len(header) == len(row) > 2 and ends == ["path", "labels"] and are_scores


def _find_images(images: Path, overlays: Overlays | None) -> tuple[Path, list[str]]:
    """A folder, and the paths of the images below it."""
    if images.is_file():
        return images.parent, [images.name]
    if not images.is_dir():
        what = "is no regular file" if images.exists() else "does not exist"
        raise UserError(f"'{images}' {what}; give a folder of images or an image")
    if overlays is not None and overlays.folder.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"the heatmaps' folder '{overlays.folder}' is inside '{images}', where the next "
            "prediction would take them for images; give a folder outside"
        )
    names = images_below(images)
    if not names:
        raise UserError(f"'{images}' holds no image ({', '.join(SUFFIXES)})")
    return images, names


@contextlib.contextmanager
def _table(out: Path, classes: Sequence[str]) -> Iterator[Any]:
    """Gives a CSV writer; the file appears when all rows are written."""
    out = out.resolve()  # a link stays a link
    remove_stale(out.parent, f".{glob.escape(out.name)}")
    # File names that are not valid text are written unchanged.
    how = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_write(out) as temporary, open(temporary, "w", **how) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(classes))
        yield writer


def _batches(
    root: Path, names: Sequence[str], side: int, skipped: list[str]
) -> Iterator[dict[str, Tensor]]:
    """Images (3, side, side) by their names; names of unreadable ones are added to `skipped`."""
    batch: dict[str, Tensor] = {}
    images = map_in_threads(lambda name: try_image(root / name, side), names)
    bar = tqdm(images, total=len(names), desc="predicting", unit="image", mininterval=1)
    for name, image in zip(names, bar, strict=True):
        if isinstance(image, str):  # it could not be read
            skipped.append(name)
        else:
            batch[name] = torch.from_numpy(image)
        if len(batch) == _BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch


def _row(name: str, scores: Tensor, classes: Sequence[str], threshold: float) -> list[str]:
    values = scores.tolist()
    labels = [c for c, value in zip(classes, values, strict=True) if value >= threshold]
    path = f"./{name}" if name.startswith(_FORMULA) else name
    return [path, *(f"{value:.4f}" for value in values), _plain("|".join(labels))]


def _plain(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _picture_name(name: str) -> str:
    """The path of an image's picture below the folder of pictures."""
    folder, slash, leaf = name.rpartition("/")
    encoded = os.fsencode(leaf)
    if len(encoded) > _LONGEST_NAME:
        start = encoded[:_LONGEST_NAME].decode("utf-8", "ignore")
        leaf = f"{start}-{hashlib.sha256(encoded).hexdigest()[:8]}"
    return f"{folder}{slash}{leaf}.png"
