"""Draws a heatmap over its image: as cells for figures, smoothly for photographs.

It uses Pillow, because a matplotlib figure takes ten times as long. Figures show the picture that
this module gives.
"""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image
from torch import Tensor

from spcl_lib.viewer.style import HEAT

_FAINT, _STRONG = 0.3, 0.75  # opacity of the colour for probability 0, and for probability 1
_SMOOTH = 0.6  # the same for probability 1 over a photograph in colour


def draw_heat(
    image: Image.Image, heat: Tensor, seen: Tensor | None = None, highest: float = 1.0
) -> Image.Image:
    """Draws a heatmap over its image in grey, so that the object stays visible.

    Args:
        image: RGB.
        heat: (W, W) probabilities.
        seen: (W, W) bool; unseen cells show only the grey image. None: all cells are seen.
        highest: the probability with the last colour of the scale.
    """
    values = (heat.detach().float().cpu() / highest).clamp(0, 1)
    opacity = _FAINT + (_STRONG - _FAINT) * values
    if seen is not None:
        opacity = opacity * seen.cpu()
    colours = Image.fromarray(heat_colours(values.numpy()))
    large = np.asarray(colours.resize(image.size, Image.Resampling.NEAREST), np.float32)
    share = Image.fromarray(opacity.numpy()).resize(image.size, Image.Resampling.NEAREST)
    share = np.asarray(share)[..., None]
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    return Image.fromarray(((1 - share) * grey + share * large).round().astype(np.uint8))


def draw_smooth_heat(image: Image.Image, heat: Tensor) -> Image.Image:
    """Draws a heatmap over its image in colour, without edges between the cells.

    Where the probability is 0, the image stays as it is. The scale is that of all pictures: opacity
    and colour depend on the probability and on nothing else.

    Args:
        image: RGB.
        heat: (G, H) probabilities.
    """
    cells = Image.fromarray(heat.detach().float().cpu().numpy())
    smooth = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC))
    values = smooth.clip(0, 1)  # bicubic values can leave 0..1
    share = (_SMOOTH * values)[..., None]
    mixed = (1 - share) * np.asarray(image, np.float32) + share * heat_colours(values)
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_colours(values: np.ndarray) -> np.ndarray:
    """The colours (..., 3) uint8 of probabilities (...) in [0, 1]."""
    return _palette()[(values * 255).round().astype(np.uint8)]


def picture_of(image: Tensor, side: int) -> Image.Image:
    """An image (3, S, S) in 0..255 as a picture of `side` pixels."""
    array = image.permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy()
    return Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC)


@functools.cache
def _palette() -> np.ndarray:
    """(256, 3) uint8."""
    import matplotlib

    return (matplotlib.colormaps[HEAT](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
