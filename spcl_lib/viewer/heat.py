"""Draws a heatmap over its image: as cells for figures, smoothly for photographs.

It uses Pillow, because a matplotlib figure takes ten times as long.
"""

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from spcl_lib.viewer.style import HEAT

_FAINT, _STRONG = 0.3, 0.75  # opacity of the colour for probability 0, and for probability 1
_SMOOTH = 0.6  # the same for probability 1 over a photograph in colour


def draw_heat(
    image: Image.Image, heat: Tensor, seen: Tensor | None = None, highest: float = 1.0
) -> Image.Image:
    """Draws probabilities (W, W) over their image in grey, so that the object stays visible.

    Cells that are not in `seen` (W, W) bool show only the grey image. The probability `highest` has
    the last colour of the scale.
    """
    values = (heat.detach().float().cpu() / highest).clamp(0, 1)
    opacity = _FAINT + (_STRONG - _FAINT) * values
    if seen is not None:
        opacity = opacity * seen.cpu()
    colours = Image.fromarray(heat_colours(values.numpy()))
    large = colours.resize(image.size, Image.Resampling.NEAREST)
    share = Image.fromarray(opacity.numpy()).resize(image.size, Image.Resampling.NEAREST)
    return _mixed(image.convert("L").convert("RGB"), np.asarray(large), np.asarray(share))


def draw_smooth_heat(image: Image.Image, heat: Tensor) -> Image.Image:
    """Draws a heatmap (G, H) over its image in colour, without edges between the cells.

    Where the probability is 0, the image stays as it is. Opacity and colour depend on the
    probability and on nothing else, in all pictures.
    """
    cells = Image.fromarray(heat.detach().float().cpu().numpy())
    smooth = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC))
    values = smooth.clip(0, 1)  # bicubic values can leave 0..1
    return _mixed(image, heat_colours(values), _SMOOTH * values)


def _mixed(image: Image.Image, colours: np.ndarray, share: np.ndarray) -> Image.Image:
    share = share[..., None]
    mixed = (1 - share) * np.asarray(image, np.float32) + share * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_colours(values: np.ndarray) -> np.ndarray:
    """The colours (..., 3) uint8 of probabilities (...) in [0, 1]."""
    return matplotlib.colormaps[HEAT](values, bytes=True)[..., :3]


def picture_of(image: Tensor, side: int) -> Image.Image:
    """An image (3, S, S) in 0..255 as a picture of `side` pixels."""
    pixels = image.round().clamp(0, 255).byte().cpu().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy()).resize((side, side), Image.Resampling.BICUBIC)
