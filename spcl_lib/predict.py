"""Predictions of a finished run: of tensors in Python, of image files into a CSV file."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spcl_lib.config import RunConfig
from spcl_lib.data.cache import replacing
from spcl_lib.data.folder import SUFFIXES, images_below
from spcl_lib.data.images import in_order, try_image, without_warnings
from spcl_lib.errors import UserError
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import SpatialClassifier, build_backbone, load_weights, pooled
from spcl_lib.overlays import draw_overlays
from spcl_lib.train import chance

_BATCH = 64
_THRESHOLD_IMAGES = 2000  # enough for one number


class Predictor:
    """A trained classifier, ready for images.

    Attributes:
        classes: C names.
        threshold: score from which a label is taken as present, see `choose_threshold`; None for
            a run that was trained before there were thresholds.

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
            run: its folder; metrics.json and weights.safetensors are what is needed of it.

        Raises:
            UserError: the run has not finished, or a file of it is missing or damaged.
        """
        run = find_run(Path(run))
        try:
            metrics = json.loads((run / "metrics.json").read_text())
            config, classes = RunConfig(**metrics["config"]), metrics["classes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{run / 'metrics.json'}' is damaged or of another version of spcl "
                f"({type(error).__name__}: {error}); train again, with --force"
            ) from error
        features, num_features = build_backbone(config.backbone, None)
        model = SpatialClassifier(features, num_features, len(classes))
        load_weights(model, run / "weights.safetensors", f"the run's {config.backbone}")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device, memory_format=torch.channels_last)
        return cls(model.eval(), config, classes, metrics.get("threshold"))

    def __call__(self, images: Tensor) -> Tensor:
        """Scores (B, C) in [0, 1], on the CPU, of whole images (B, 3, H, W) uint8."""
        return torch.sigmoid(pooled(self.score_maps(images)))

    def score_maps(self, images: Tensor) -> Tensor:
        """Score-map logits f (B, C, G, G), on the CPU, of whole images (B, 3, H, W) uint8.

        Raises:
            ValueError: the images have another shape or type.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be (B, 3, H, W) uint8; got {tuple(images.shape)} {images.dtype}"
            )
        return predict_maps(self.model, images, self.config.eval_side, self.config.amp)


def find_run(place: Path) -> Path:
    """Folder of a finished run: `place` itself, or of those below it the one that finished last.

    Raises:
        UserError: there is none.
    """
    place = place.expanduser()
    place = place.parent if place.name == "metrics.json" else place
    if (place / "metrics.json").is_file():
        return place
    runs = sorted(place.rglob("metrics.json"), key=lambda file: file.stat().st_mtime_ns)
    if not runs:
        state = "has not finished" if (place / "config.json").is_file() else "is no run"
        raise UserError(
            f"'{place}' {state}: it has no metrics.json. Give the folder that "
            "`python -m spcl_lib run` names when it ends"
        )
    return runs[-1].parent


def choose_threshold(model: nn.Module, images: Tensor, config: RunConfig) -> float:
    """The score that `expected_positives` labels of a training image reach, on average (ours).

    A network that was told one label per image gives low probabilities, so that few labels reach
    0.5. On the README's runs (seed 0) this threshold raises OF1 of EN + SCL from 49 to 76 on scenes
    and from 68 to 70 on VOC 2007, and that of AN from 17 to 67 and from 61 to 68. No label is used.

    Args:
        model: trained.
        images: (N, 3, S, S) uint8 training images; a part of them, if they are many.
        config: of the run.
    """
    order = torch.randperm(len(images), generator=chance("threshold", config.seed))
    parts = order[:_THRESHOLD_IMAGES].sort().values.split(_BATCH)
    predictor = Predictor(model, config, ())
    scores = torch.cat([predictor(images[part]) for part in parts])  # (M, C)
    count = min(round(len(scores) * config.expected_positives), scores.numel())
    return float(scores.flatten().topk(count).values[-1])


def predict_files(
    predictor: Predictor,
    images: Path,
    out: Path,
    threshold: float,
    heatmaps: Path | None = None,
) -> tuple[int, list[str]]:
    """Writes a CSV file with a row for every image: its path, a score per class, its labels.

    The columns are those of `columns`; labels have "|" between them, and an image without any has
    an empty field. Images are prepared as those of the evaluation were.

    Args:
        predictor: of a finished run.
        images: a folder, whose images are taken at any depth, sorted by path; or one file.
        out: the CSV file; one that is there is replaced when all is done.
        threshold: score from which a label is taken as present.
        heatmaps: folder for a picture of every image's heatmaps; none by default.

    Returns:
        How many images have a row, and the paths of those that could not be read and have none.

    Raises:
        UserError: there is no image, none can be read, or a file cannot be written.
    """
    root, names = _find_images(images, heatmaps)
    skipped: list[str] = []
    with without_warnings(), _table(out, predictor.classes) as writer:
        for batch in _batches(root, names, predictor.config.image_side, skipped):
            maps = predictor.score_maps(torch.stack(list(batch.values())))  # (B, C, G, G)
            scores = torch.sigmoid(pooled(maps))  # (B, C)
            for name, own_maps, own_scores in zip(batch, torch.sigmoid(maps), scores, strict=True):
                writer.writerow(_row(name, own_scores, predictor.classes, threshold))
                if heatmaps is not None:
                    file = heatmaps / f"{name}.png"
                    draw_overlays(
                        root / name, file, predictor.classes, own_maps, own_scores, threshold
                    )
        if len(skipped) == len(names):
            raise UserError(f"none of the {len(names)} images of '{images}' can be read")
    return len(names) - len(skipped), skipped


def columns(classes: Sequence[str]) -> list[str]:
    """Header of the predictions: path, the classes, labels.

    A name that is taken, by "path", by "labels" or by another class, gets a number: "path (2)".
    """
    names = ["path"]
    for name in classes:
        column, number = name, 2
        while column in (*names, "labels"):
            column, number = f"{name} ({number})", number + 1
        names.append(column)
    return [*names, "labels"]


def _find_images(images: Path, heatmaps: Path | None) -> tuple[Path, list[str]]:
    """A folder, and the paths of the images below it."""
    if images.is_file():
        return images.parent, [images.name]
    if not images.is_dir():
        raise UserError(f"'{images}' does not exist; give a folder of images or an image")
    if heatmaps is not None and heatmaps.resolve().is_relative_to(images.resolve()):
        raise UserError(
            f"the heatmaps' folder '{heatmaps}' is inside '{images}', where the next prediction "
            "would take them for images; give a folder outside"
        )
    names = images_below(images)
    if not names:
        raise UserError(f"'{images}' holds no image ({', '.join(SUFFIXES)})")
    return images, names


@contextlib.contextmanager
def _table(out: Path, classes: Sequence[str]) -> Iterator[Any]:
    """Gives a CSV writer; the file appears when all rows are written."""
    if out.is_dir():
        raise UserError(f"'{out}' is a folder; give the name of a CSV file")
    # Names of files that are no text go in as they are.
    how = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with replacing(out) as temporary, open(temporary, "w", **how) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns(classes))
        yield writer


def _batches(
    root: Path, names: Sequence[str], side: int, skipped: list[str]
) -> Iterator[dict[str, Tensor]]:
    """Images (3, side, side) by their names; names of unreadable ones are added to `skipped`."""
    batch: dict[str, Tensor] = {}
    images = in_order(lambda name: try_image(root / name, side), names)
    bar = tqdm(images, total=len(names), desc="predicting", unit="image", mininterval=1)
    for name, image in zip(names, bar, strict=True):
        if isinstance(image, str):  # what is wrong with it
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
    return [name, *(f"{value:.4f}" for value in values), "|".join(labels)]
