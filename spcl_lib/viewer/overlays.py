"""Draws where in an image a trained network sees its labels.

It uses Pillow, because a matplotlib figure would take many times as long as the prediction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from spcl_lib.data.images import to_rgb
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import draw_smooth_heat
from spcl_lib.viewer.style import font

_MOST = 5  # most labels that are shown for an image
_SIDE = 360  # pixels, longer side of an image in the picture
_COLUMNS = 3  # most images side by side
_GAP, _LINE, _TEXT = 10, 22, 13  # pixels: space between parts, height of a line, size of letters
_BAR, _SCALE = 14, 84  # pixels, width of the colours of the scale, and with their numbers
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class OverlayFolder:
    """A folder for pictures of heatmaps; `runs.predict.predict_files` takes it."""

    folder: Path

    def draw(self, image: Path, file: Path, *seen: Any) -> None:
        """Writes a picture, see `draw_overlays`."""
        draw_overlays(image, file, *seen)


def draw_overlays(
    image: Path,
    file: Path,
    classes: Sequence[str],
    maps: Tensor,
    scores: Tensor,
    chosen: Tensor,
    rule: str,
) -> None:
    """Writes a PNG file: the image, and the image under the score map of every predicted label.

    It shows at most five labels, or the highest score if there is no label.

    Args:
        image: the image file.
        file: the PNG file.
        classes: C names.
        maps: (C, G, G) probabilities.
        scores: (C,) scores of the whole image.
        chosen: (C,) bool, the labels.
        rule: which scores are labels, in words.
    """
    order = scores.argsort(descending=True)
    present = order[chosen[order]][:_MOST]
    shown = present if len(present) else order[:1]
    titles = [f"{scores[c]:.2f}  {classes[c]}" for c in shown.tolist()]
    says = f"labels: {rule}" if len(present) else f"no label: {rule}"
    picture = overlays(shrink(image, _SIDE), maps[shown], [f"{image.name} ({says})", *titles])
    with atomic_write(file) as temporary:
        picture.save(temporary, format="png")


def overlays(image: Image.Image, maps: Tensor, titles: Sequence[str]) -> Image.Image:
    """Draws an image, the same image under every map, and the colour scale of all pictures.

    Args:
        image: RGB.
        maps: (K, G, G) probabilities.
        titles: 1 + K texts: one above the picture, then one above every map.
    """
    panels = [image, *(draw_smooth_heat(image, heat) for heat in maps)]
    width, height = image.size[0] + _GAP, image.size[1] + _LINE + _GAP
    columns, rows = min(len(panels), _COLUMNS), -(-len(panels) // _COLUMNS)
    top = _GAP + _LINE
    size = (_GAP + columns * width + _SCALE, top + rows * height)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    _write(draw, (_GAP, _GAP), titles[0], size[0] - 2 * _GAP)
    for i, (panel, title) in enumerate(zip(panels, ["", *titles[1:]], strict=True)):
        corner = _GAP + i % columns * width, top + i // columns * height
        _write(draw, corner, title, image.size[0])
        picture.paste(panel, (corner[0], corner[1] + _LINE))
    _draw_scale(picture, draw, (size[0] - _SCALE, top + _LINE), image.size[1])
    return picture


def shrink(file: Path, longest: int) -> Image.Image:
    """The image of a file in its own shape; its longer side gets `longest` pixels."""
    with Image.open(file) as image:
        with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
            ImageOps.exif_transpose(image, in_place=True)
        image = to_rgb(image)
    factor = longest / max(image.size)
    size = tuple(max(1, round(factor * side)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_scale(
    picture: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], height: int
) -> None:
    """Draws the colours over grey, from 0 (bottom) to 1, with numbers; the unit is above."""
    left, upper = corner
    values = torch.linspace(1, 0, height)[:, None]
    bar = draw_smooth_heat(Image.new("RGB", (_BAR, height), "#808080"), values)
    picture.paste(bar, corner)
    draw.text((left, upper - _LINE), "probability", "black", font(_TEXT))
    for value in _TICKS:
        y = upper + (1 - value) * (height - 1)
        draw.line((left + _BAR, y, left + _BAR + 4, y), "black")
        draw.text((left + _BAR + 8, y), f"{value:g}", "black", font(_TEXT), anchor="lm")


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int) -> None:
    """Writes a text in one line; if it is wider than `width`, dots replace its end."""
    text = printable(text)
    if draw.textlength(text, font(_TEXT)) > width:
        while text and draw.textlength(f"{text}…", font(_TEXT)) > width:
            text = text[:-1]
        text = f"{text}…"
    draw.text(corner, text, "black", font(_TEXT))
