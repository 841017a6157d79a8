"""Draws where in an image a trained network sees its labels.

It uses Pillow, because a matplotlib figure would take many times as long as the prediction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from spcl_lib.data.images import to_rgb
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import draw_heat, heat_colours
from spcl_lib.viewer.style import font

_MOST = 5  # most labels that are shown for an image
_SIDE = 240  # pixels, longer side of an image in the picture
_GAP, _LINE, _TEXT = 10, 22, 13  # pixels: space between parts, height of a line, size of letters
_SCALE = 84  # pixels, width of the colour scale with its numbers


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
    picture = overlays(_shrink(image), maps[shown], [f"{image.name} ({says})", *titles])
    with atomic_write(file) as temporary:
        picture.save(temporary, format="png")


def overlays(image: Image.Image, maps: Tensor, titles: Sequence[str]) -> Image.Image:
    """Draws an image, maps over the same image in grey, and their colour scale.

    The scale (viridis, as everywhere) goes up to the highest value of these maps.

    Args:
        image: RGB.
        maps: (K, G, G) probabilities.
        titles: 1 + K texts: one above the picture, then one above every map.
    """
    highest = max(float(maps.max()), 1e-3)
    panels = [image, *(draw_heat(image, heat, highest=highest) for heat in maps)]
    width, height = image.size
    size = (len(panels) * (width + _GAP) + _GAP + _SCALE, height + 2 * _LINE + 2 * _GAP)
    picture, top = Image.new("RGB", size, "white"), _GAP + 2 * _LINE
    draw = ImageDraw.Draw(picture)
    _write(draw, (_GAP, _GAP), titles[0], size[0] - 2 * _GAP)
    for i, panel in enumerate(panels):
        left = _GAP + i * (width + _GAP)
        picture.paste(panel, (left, top))
        if i > 0:
            _write(draw, (left, _GAP + _LINE), titles[i], width)
    _draw_scale(picture, draw, (size[0] - _SCALE, top), height, highest)
    return picture


def _shrink(file: Path) -> Image.Image:
    """The image in its own shape, resized so that its longer side fits the picture."""
    with Image.open(file) as image:
        with contextlib.suppress(Exception):  # damaged EXIF data do not damage the picture
            ImageOps.exif_transpose(image, in_place=True)
        image = to_rgb(image)
    factor = _SIDE / max(image.size)
    size = tuple(max(1, round(factor * side)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def _draw_scale(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    height: int,
    top: float,
) -> None:
    """Draws the colours from 0 (bottom) to `top`, with numbers; the unit is above."""
    left, upper = corner
    values = np.linspace(1, 0, height)[:, None].repeat(14, 1)
    picture.paste(Image.fromarray(heat_colours(values)), corner)
    draw.text((left, upper - _LINE), "probability", "black", font(_TEXT))
    for part in (0, 0.5, 1):
        y = upper + (1 - part) * (height - 1)
        draw.line((left + 14, y, left + 18, y), "black")
        draw.text((left + 22, y), f"{part * top:.2f}", "black", font(_TEXT), anchor="lm")


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int) -> None:
    """Writes a text in one line; if it is wider than `width`, dots replace its end."""
    text = printable(text)
    if draw.textlength(text, font(_TEXT)) > width:
        while text and draw.textlength(f"{text}…", font(_TEXT)) > width:
            text = text[:-1]
        text = f"{text}…"
    draw.text(corner, text, "black", font(_TEXT))
