"""Draws where in an image a trained network sees its labels.

It uses Pillow, because a matplotlib figure would take many times as long as the prediction.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from spcl_lib.data.image_set import ImageSet
from spcl_lib.data.images import upright
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import draw_smooth_heat, picture_of

_MOST = 5  # most labels that are shown for an image
_SIDE = 280  # pixels, longer side of an image in the picture
_COLUMNS = 3  # most images side by side
_GAP, _LINE = 10, 22  # pixels: space between parts, height of a line
_FONT = ImageFont.truetype(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf", 13)


@dataclass(frozen=True)
class OverlayFolder:
    """A folder for pictures of heatmaps, which `predict_files` fills."""

    folder: Path

    def draw(
        self, image: Path, name: str, classes: Sequence[str], maps: Tensor, scores: Tensor,
        chosen: Tensor, rule: str,
    ) -> None:  # fmt: skip
        """Writes NAME.jpg: the image, and the maps of up to five labels or of the highest score."""
        order = scores.argsort(descending=True)
        present = order[chosen[order]][:_MOST]
        shown = present if len(present) else order[:1]
        says = f"{image.name} ({'labels' if len(present) else 'no label'}: {rule})"
        titles = [f"{scores[c]:.2f}  {classes[c]}" for c in shown.tolist()]
        picture = overlays(shrink(image, _SIDE), maps[shown], [says, *titles])
        leaf = os.fsdecode(os.fsencode(image.name)[:200])  # file names have at most 255 bytes
        with atomic_write(self.folder / Path(name).parent / f"{leaf}.jpg") as temporary:
            picture.save(temporary, format="jpeg", quality=85)


def overlays(image: Image.Image, maps: Tensor, titles: Sequence[str]) -> Image.Image:
    """Draws an image, the same image under every map, and the colours of all pictures.

    Args:
        image: RGB.
        maps: (K, G, G) probabilities.
        titles: 1 + K texts: one above the picture, then one above every map.
    """
    panels = [image, *(draw_smooth_heat(image, heat) for heat in maps)]
    width, height = image.width + _GAP, image.height + _LINE + _GAP
    columns, rows = min(len(panels), _COLUMNS), -(-len(panels) // _COLUMNS)
    picture = Image.new("RGB", (_GAP + columns * width, _GAP + 2 * _LINE + rows * height), "white")
    picture.paste(_line(titles[0], picture.width - _GAP), (_GAP, _GAP))
    bar = draw_smooth_heat(Image.new("RGB", (120, 12), "#808080"), torch.linspace(0, 1, 120)[None])
    picture.paste(bar, (_GAP, _GAP + _LINE + 2))
    picture.paste(_line("probability 0 to 1", width), (_GAP + 128, _GAP + _LINE))
    for i, (panel, title) in enumerate(zip(panels, ["", *titles[1:]], strict=True)):
        left, top = _GAP + i % columns * width, _GAP + 2 * _LINE + i // columns * height
        picture.paste(_line(title, image.width), (left, top))
        picture.paste(panel, (left, top + _LINE))
    return picture


def _line(text: str, width: int) -> Image.Image:
    """A text in one line, cut off where it is too wide."""
    line = Image.new("RGB", (width, _LINE), "white")
    ImageDraw.Draw(line).text((0, 0), printable(text), "black", _FONT)
    return line


def picture_in(data: ImageSet, index: int, longest: int) -> Image.Image:
    """An image of a data set in its own shape; its longer side gets `longest` pixels."""
    if data.files is not None:
        return shrink(data.files[index], longest)
    return picture_of(data.images[torch.tensor([index])][0], longest)


def shrink(file: Path, longest: int) -> Image.Image:
    """The image of a file in its own shape; its longer side gets `longest` pixels."""
    with Image.open(file) as image:
        picture = upright(image)
    sides = [max(1, round(side * longest / max(picture.size))) for side in picture.size]
    return picture.resize(sides, Image.Resampling.LANCZOS)
