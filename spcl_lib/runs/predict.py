"""Predictions of a finished run for image files, into a CSV or JSON file with a row per image."""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm import tqdm

from spcl_lib.data.folders import find_images
from spcl_lib.data.images import map_in_threads, try_image
from spcl_lib.runs.predictor import BATCH, Predictor
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these a spreadsheet starts a formula
_OPEN = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # names as they are
_START = re.compile(r'\[\n\{"path": "|path,.*,labels\n.*,[01]\.\d{4},', re.DOTALL)

Row = tuple[str, Tensor, list[str]]  # path of an image, its scores (C,), its labels


def predict_files(
    predictor: Predictor,
    images: Path | Sequence[Path],
    out: Path,
    overlays: Any = None,
    force: bool = False,
) -> tuple[int, dict[str, str]]:
    """Writes a file with a row for every image: its path, a score per class, its labels.

    In folders, images are taken at any depth. Paths in the file are below the folder, or below the
    deepest folder that holds all that is given. The file is JSON if its name ends so, else CSV.
    Earlier predictions are replaced, and with `force` anything else. `overlays`, a
    `viewer.overlays.OverlayFolder`, draws every image's heatmaps.

    Returns:
        The number of images with a row; and the images that could not be read, with the reason.
    """
    _check_place(out, force)
    root, names = _find_images([images] if isinstance(images, Path) else images, overlays)
    skipped: dict[str, str] = {}
    rows = _predict(predictor, root, names, skipped, overlays)
    write = _write_json if out.suffix.lower() == ".json" else _write_csv
    place = paths.real_path(out)  # a link stays a link
    with atomic_write(place) as temporary, open(temporary, "w", **_OPEN) as file:
        write(file, predictor.classes, rows)
    return len(names) - len(skipped), skipped


def _predict(
    predictor: Predictor,
    root: Path,
    names: Sequence[str],
    skipped: dict[str, str],
    overlays: Any,
) -> Iterator[Row]:
    classes, rule = predictor.classes, predictor.require_rule()
    for batch in read_batches(root, names, predictor.square_side, skipped):
        maps = predictor.score_maps(torch.stack(list(batch.values())))  # (B, C, G, G)
        scores = predictor.pooling(maps).sigmoid()  # (B, C)
        yield from zip(batch, scores, rule.names(scores, classes), strict=True)
        if overlays is not None:
            seen = zip(predictor.pooling.heat(maps), scores, rule.choose(scores), strict=True)
            for name, what in zip(batch, seen, strict=True):
                overlays.draw(root / name, name, classes, *what, str(rule))


def _find_images(places: Sequence[Path], overlays: Any) -> tuple[Path, list[str]]:
    """A folder, and the paths of the images below it, each once."""
    folders, files = [], []
    for place in (Path(os.path.abspath(place)) for place in places):
        if not place.exists():
            raise UserError(f"'{place}' does not exist; give images and folders of images")
        folders.append(place if place.is_dir() else place.parent)
        files += _images_of(place, overlays) if place.is_dir() else [place]
    root = Path(os.path.commonpath(folders))
    return root, list(dict.fromkeys(file.relative_to(root).as_posix() for file in files))


def _images_of(folder: Path, overlays: Any) -> list[Path]:
    if overlays and paths.real_path(overlays.folder).is_relative_to(paths.real_path(folder)):
        raise UserError(
            f"'{overlays.folder}' is inside '{folder}', whose images are predicted; give another"
        )
    names, others = find_images(folder)
    if not names:
        left = f" ({others})" if others else ""
        raise UserError(f"'{folder}' holds no image that can be read{left}")
    if others:
        print(f"'{folder}': {others}", flush=True)
    return [folder / name for name in names]


def read_batches(
    root: Path, names: Sequence[str], side: int, skipped: dict[str, str]
) -> Iterator[dict[str, Tensor]]:
    """Gives batches of files: squares (3, side, side) uint8 by their names below `root`.

    Files that cannot be read are added to `skipped`, with the reason; one at least must be read.
    """
    batch: dict[str, Tensor] = {}
    images = map_in_threads(lambda name: try_image(root / name, side), names)
    bar = tqdm(images, total=len(names), desc="predicting", unit="image", mininterval=1)
    for name, image in zip(names, bar, strict=True):
        if isinstance(image, str):
            skipped[name] = image
        else:
            batch[name] = torch.from_numpy(image[0])
        if len(batch) == BATCH:
            yield batch
            batch = {}
    if batch:
        yield batch
    if len(skipped) == len(names):
        name = names[0]
        raise UserError(f"none of the {len(names)} images can be read: {name} {skipped[name]}")


def _check_place(out: Path, force: bool) -> None:
    """Refuses a place where something else than predictions would be lost."""
    if out.exists() and not out.is_file():
        raise UserError(f"'{out}' is no regular file; give the name of a CSV or JSON file")
    if force or not out.exists():
        return
    with open(out, **_OPEN) as file:
        start = file.read(2**20)  # enough for the names of all classes
    if start and not _START.match(start):
        raise UserError(f"'{out}' exists and holds no predictions; --force replaces it")


def _write_csv(file: IO[str], classes: Sequence[str], rows: Iterable[Row]) -> None:
    """Labels have "|" between them."""
    writer = csv.writer(file, lineterminator="\n")
    names = (f"{c} (class)" if c in ("path", "labels") else plain(c) for c in classes)
    writer.writerow(["path", *names, "labels"])
    for name, scores, labels in rows:
        values = (f"{value:.4f}" for value in scores.tolist())
        writer.writerow([plain(name, "./"), *values, plain("|".join(labels))])


def _write_json(file: IO[str], classes: Sequence[str], rows: Iterable[Row]) -> None:
    """A list with an object on each line, so that the rows need not fit into memory."""
    before = "[\n"
    for name, scores, labels in rows:
        values = (round(value, 4) for value in scores.tolist())
        row = {"path": name, "scores": dict(zip(classes, values, strict=True)), "labels": labels}
        file.write(before + json.dumps(row))
        before = ",\n"
    file.write("\n]\n")


def plain(text: str, before: str = "'") -> str:
    """A text that a spreadsheet does not take for a formula; "./" keeps a path the same file."""
    return before + text if text.startswith(_FORMULA) else text
