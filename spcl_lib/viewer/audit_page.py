"""What `audit` writes: a page of pictures that needs no other file, and a CSV file for other tools.

audit.csv has a row per suggestion: path (of your own images, below their folder; of other data
sets, the whole path; of drawn images, their name), class, kind ("missing" or "wrong"), score (how
sure, in 0..1), and the box x0, y0, x1, y1 as fractions of the image.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from spcl_lib.analysis.audit import ReadMaps, Suggestions, maps_of_pairs
from spcl_lib.data.image_set import ImageSet
from spcl_lib.runs.predict import plain
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.explorer_page import template
from spcl_lib.viewer.heat import draw_smooth_heat, picture_of
from spcl_lib.viewer.overlays import shrink

SHOWN = 100  # most suggestions of each kind on the page
_SIDE = 240  # pixels, longer side of a picture
_COLUMNS = ("path", "class", "kind", "score", "x0", "y0", "x1", "y1")


def write_suggestions(file: Path, found: Sequence[Suggestions], data: ImageSet) -> None:
    """Writes audit.csv, see above; what is there is replaced.

    Args:
        file: the CSV file.
        found: suggestions of every kind.
        data: the images.
    """
    # File names that are not valid text are written unchanged, as in files of predictions.
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_write(file) as temporary, open(temporary, "w", **text) as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for part in found:
            for m, (image, label) in enumerate(part.pairs()):
                numbers = (f"{v:.4f}" for v in (part.score[m], *part.box[m]))
                path, name = plain(_path(data, image), "./"), plain(data.classes[label])
                writer.writerow([path, name, part.kind, *numbers])


def _path(data: ImageSet, image: int) -> str:
    name = data.ids[image]
    if data.files is None or data.files[image].as_posix().endswith(f"/{name}"):
        return name
    return str(data.files[image])


def write_page(
    file: Path, facts: Sequence[str], found: Sequence[Suggestions], read: ReadMaps, data: ImageSet,
    given: Tensor,
) -> None:  # fmt: skip
    """Writes the page with the first suggestions of every kind.

    Args:
        file: the HTML file; it is replaced.
        facts: sentences about the run.
        found: suggestions of every kind.
        read: gives the heatmaps of the images.
        data: the images.
        given: (N, C) bool, the labels that the run was trained on.
    """
    parts = [(p.kind, list(_cards(p.first(SHOWN), read, data, given))) for p in found if len(p)]
    with atomic_write(file) as temporary:
        content = template("audit.html", facts=list(map(printable, facts)), parts=parts)
        temporary.write_text(content, encoding="utf-8")


def _cards(
    part: Suggestions, read: ReadMaps, data: ImageSet, given: Tensor
) -> Iterator[dict[str, Any]]:
    maps = torch.empty(0)
    for which, heat in maps_of_pairs(read, part.image, part.label):
        maps = maps if len(maps) else heat.new_empty((len(part), *heat.shape[1:]))
        maps[which] = heat
    for m, (image, label) in enumerate(part.pairs()):
        if data.files is None:
            picture = picture_of(data.images[torch.tensor([image])][0], _SIDE)
        else:
            picture = shrink(data.files[image], _SIDE)
        heat = _embed(draw_smooth_heat(picture, maps[m]))
        if part.kind == "missing":
            _draw_box(picture, part.box[m].tolist())
        names = [printable(data.classes[c]) for c in given[image].nonzero().flatten().tolist()]
        yield {
            "picture": _embed(picture), "heat": heat, "has": names, "score": float(part.score[m]),
            "label": printable(data.classes[label]), "name": printable(data.ids[image]),
        }  # fmt: skip


def _draw_box(picture: Image.Image, box: Sequence[float]) -> None:
    """Draws a white line between black ones, which is seen on any image."""
    x0, y0, x1, y1 = (round(v * side) for v, side in zip(box, picture.size * 2, strict=True))
    pen = ImageDraw.Draw(picture)
    for inset, colour in enumerate(("black", "white", "white", "black")):
        corners = (x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            pen.rectangle(corners, outline=colour)


def _embed(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
