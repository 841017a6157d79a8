"""What `audit` writes: a page of pictures that needs no other file, and a CSV file for other tools.

audit.csv has a row per suggestion: path (of your own images, below their folder; of other data
sets, the image's name), class, kind ("missing" or "wrong"), score (how sure, in 0..1), and the box
x0, y0, x1, y1 as fractions of the image.
"""

import csv
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
from spcl_lib.viewer.heat import draw_smooth_heat
from spcl_lib.viewer.overlays import picture_in
from spcl_lib.viewer.pages import embedded, write_page

SHOWN = 100  # most suggestions of each kind on the page
_SIDE = 240  # pixels, longer side of a picture


def write_audit(
    folder: Path, facts: Sequence[str], found: Sequence[Suggestions], read: ReadMaps,
    data: ImageSet, given: Tensor,
) -> tuple[Path, Path]:  # fmt: skip
    """Writes the page with some facts about the run and the first suggestions of every kind.

    `read` gives the heatmaps; `given` (N, C) bool are the labels that the run was trained on.
    audit.csv, see above, has all suggestions.
    """
    page, table = folder / "audit.html", folder / "audit.csv"
    _write_table(table, found, data)
    parts = [(p.kind, list(_cards(p.first(SHOWN), read, data, given))) for p in found if len(p)]
    write_page(page, "audit.html", facts=list(map(printable, facts)), parts=parts)
    return page, table


def _write_table(file: Path, found: Sequence[Suggestions], data: ImageSet) -> None:
    # File names that are not valid text are written unchanged, as in files of predictions.
    text = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_write(file) as temporary, open(temporary, "w", **text) as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["path", "class", "kind", "score", "x0", "y0", "x1", "y1"])
        for part in found:
            for m, (image, label) in enumerate(part.pairs()):
                numbers = (f"{v:.4f}" for v in (part.score[m], *part.box[m]))
                path, name = plain(data.ids[image], "./"), plain(data.classes[label])
                writer.writerow([path, name, part.kind, *numbers])


def _cards(
    part: Suggestions, read: ReadMaps, data: ImageSet, given: Tensor
) -> Iterator[dict[str, Any]]:
    maps = {
        int(m): own
        for which, heat in maps_of_pairs(read, part.image, part.label)
        for m, own in zip(which, heat, strict=True)
    }
    for m, (image, label) in enumerate(part.pairs()):
        picture = picture_in(data, image, _SIDE)
        heat = embedded(draw_smooth_heat(picture, maps[m]))
        if part.kind == "missing":
            _draw_box(picture, part.box[m])
        names = [printable(data.classes[c]) for c in given[image].nonzero().flatten().tolist()]
        yield {
            "picture": embedded(picture), "heat": heat, "has": names, "score": float(part.score[m]),
            "label": printable(data.classes[label]), "name": printable(data.ids[image]),
        }  # fmt: skip


def _draw_box(picture: Image.Image, box: Tensor) -> None:
    """Draws a white line in a black one, which is seen on any image."""
    corners = (box * torch.tensor(picture.size * 2)).round().tolist()
    for width, colour in ((4, "black"), (2, "white")):
        ImageDraw.Draw(picture).rectangle(corners, outline=colour, width=width)
