"""Draws where in an image a trained network sees its labels.

It uses Pillow, because a matplotlib figure would take many times as long as the prediction.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from spcl_lib.data.images import upright
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import draw_smooth_heat
from spcl_lib.viewer.style import font

_MOST = 5  # most labels that are shown for an image
_SIDE = 280  # pixels, longer side of an image in the picture
_LONGEST_NAME = 200  # bytes
_COLUMNS = 3  # most images side by side
_GAP, _LINE, _TEXT = 10, 22, 13  # pixels: space between parts, height of a line, size of letters


@dataclass(frozen=True)
class OverlayFolder:
    """A folder for pictures of heatmaps; `runs.predict.predict_files` takes it."""

    folder: Path

    def draw(
        self, image: Path, name: str, classes: Sequence[str], maps: Tensor, scores: Tensor,
        chosen: Tensor, rule: str,
    ) -> None:  # fmt: skip
        """Writes a JPEG: the image, and under the map of up to five labels, or the highest score.

        Args:
            image: the image file.
            name: its path in the predictions; the picture of "a/b.png" is "a/b.png.jpg".
            classes: C names.
            maps: (C, G, G) probabilities.
            scores: (C,) scores of the whole image.
            chosen: (C,) bool, the labels.
            rule: which scores are labels, in words.
        """
        order = scores.argsort(descending=True)
        present = order[chosen[order]][:_MOST]
        shown = present if len(present) else order[:1]
        says = f"{image.name} ({'labels' if len(present) else 'no label'}: {rule})"
        titles = [f"{scores[c]:.2f}  {classes[c]}" for c in shown.tolist()]
        picture = overlays(shrink(image, _SIDE), maps[shown], [says, *titles])
        with atomic_write(self.folder / f"{_short(name)}.jpg") as temporary:
            picture.save(temporary, format="jpeg", quality=85)


def _short(name: str) -> str:
    """The path with an end that leaves room for more; file names have at most 255 bytes."""
    folder, slash, leaf = name.rpartition("/")
    return folder + slash + os.fsdecode(os.fsencode(leaf)[:_LONGEST_NAME])


def overlays(image: Image.Image, maps: Tensor, titles: Sequence[str]) -> Image.Image:
    """Draws an image, the same image under every map, and the colours of all pictures.

    Args:
        image: RGB.
        maps: (K, G, G) probabilities.
        titles: 1 + K texts: one above the picture, then one above every map.
    """
    panels = [image, *(draw_smooth_heat(image, heat) for heat in maps)]
    width, height = image.size[0] + _GAP, image.size[1] + _LINE + _GAP
    columns, rows = min(len(panels), _COLUMNS), -(-len(panels) // _COLUMNS)
    picture = Image.new("RGB", (_GAP + columns * width, _GAP + 2 * _LINE + rows * height), "white")
    draw = ImageDraw.Draw(picture)
    _write(draw, (_GAP, _GAP), titles[0], picture.width - 2 * _GAP)
    bar = draw_smooth_heat(Image.new("RGB", (120, 12), "#808080"), torch.linspace(0, 1, 120)[None])
    picture.paste(bar, (_GAP, _GAP + _LINE + 2))
    _write(draw, (_GAP + 128, _GAP + _LINE), "probability 0 to 1", width)
    for i, (panel, title) in enumerate(zip(panels, ["", *titles[1:]], strict=True)):
        left, top = _GAP + i % columns * width, _GAP + 2 * _LINE + i // columns * height
        _write(draw, (left, top), title, image.size[0])
        picture.paste(panel, (left, top + _LINE))
    return picture


def shrink(file: Path, longest: int) -> Image.Image:
    """The image of a file in its own shape; its longer side gets `longest` pixels."""
    with Image.open(file) as image:
        return ImageOps.contain(upright(image), (longest, longest), Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int) -> None:
    """Writes a text in one line; if it is wider than `width`, dots replace its end."""
    text = whole = printable(text)
    while text and draw.textlength(text, font(_TEXT)) > width:
        whole = whole[:-1]
        text = f"{whole}…"
    draw.text(corner, text, "black", font(_TEXT))
