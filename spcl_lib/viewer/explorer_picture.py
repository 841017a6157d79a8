"""Draws the explorer's picture with Pillow, because a matplotlib figure takes ten times as long.

People with any colour vision can tell the colours apart (viridis; Okabe and Ito's palette).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from spcl_lib.viewer.heat import draw_heat, heat_colours, picture_of
from spcl_lib.viewer.style import font

SIDE = 236  # pixels of a panel
_GAP, _TOP, _BOTTOM = 14, 46, 54  # pixels between panels, for the captions, for the scale
_BARS, _ROWS = 400, 12  # width of the table of bars in pixels; most classes that it shows
_INK, _FAINT, _PAPER = (34, 34, 34), (150, 150, 150), (255, 255, 255)
_LABEL, _TARGET, _PREDICTION = (107, 107, 107), (0, 114, 178), (230, 159, 0)
_OUTLINE = (213, 94, 0)


@dataclass(frozen=True)
class ClassBar:
    """One class in the table of bars; the numbers are in 0..1.

    Attributes:
        name: name of the class.
        labelled: whether it is the observed label.
        visible: share of its objects that the view shows; None if the image has none.
        target: probability of the class in the view, by the heatmap; None if nothing has been seen.
        prediction: probability of the class in the view, by the network.
        chosen: whether its heatmap is shown.
    """

    name: str
    labelled: bool
    visible: float | None
    target: float | None
    prediction: float
    chosen: bool = False


@dataclass(frozen=True)
class ExplorerPicture:
    """All that one picture shows.

    Attributes:
        image: (3, S, S) uint8, the whole image.
        region: (S, S) bool, the pixels of the chosen class, or None if they are not known.
        box: x0, y0, x1, y1 of the crop, as fractions of the image.
        crop: (3, K, K) in 0..255, as the network sees it.
        heatmap: (W, W) in [0, 1], of the chosen class in the whole image.
        seen: (W, W) bool, the cells that have been seen.
        target: (G, G) in [0, 1], the heatmap read through the view.
        target_seen: (G, G) bool.
        rows: the classes of the table.
        name: name of the chosen class.
        epoch: number of finished epochs.
        flipped: whether the crop is mirrored left to right.
    """

    image: Tensor
    region: Tensor | None
    box: tuple[float, float, float, float]
    crop: Tensor
    heatmap: Tensor
    seen: Tensor
    target: Tensor
    target_seen: Tensor
    rows: Sequence[ClassBar]
    name: str
    epoch: int
    flipped: bool = False


def draw(stage: ExplorerPicture) -> Image.Image:
    """Draws the picture: image, heatmap, crop, target, and the table of classes."""
    width = 4 * SIDE + 4 * _GAP + _BARS
    canvas = Image.new("RGB", (width, _TOP + SIDE + _BOTTOM), _PAPER)
    whole, crop = picture_of(stage.image, SIDE), picture_of(stage.crop, SIDE)
    panels = (
        (_outline(whole, stage.region), "the image", "outline: what is truly there"),
        (draw_heat(whole, stage.heatmap, stage.seen), f"heatmap of “{stage.name}”",
         f"after epoch {stage.epoch}"),
        (crop, "the crop", "what the network is shown"),
        (draw_heat(crop, stage.target, stage.target_seen), "the target: heatmap",
         "read through the crop"),
    )  # fmt: skip
    pen = ImageDraw.Draw(canvas)
    for number, (picture, title, below) in enumerate(panels):
        left = number * (SIDE + _GAP)
        canvas.paste(picture, (left, _TOP))
        if number < 2:
            _draw_box(pen, stage.box, left)
        pen.text((left, 4), title, _INK, font(15, bold=True))
        pen.text((left, 24), below, _INK, font(14))
    _draw_scale(canvas, pen, SIDE + _GAP, _TOP + SIDE + 12)
    _draw_rows(pen, stage.rows, 4 * (SIDE + _GAP))
    return canvas


def as_png(picture: Image.Image) -> bytes:
    """PNG bytes, made fast rather than small."""
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _outline(picture: Image.Image, region: Tensor | None) -> Image.Image:
    """Draws the border of a region into the picture."""
    if region is None or not bool(region.any()):
        return picture
    large = Image.fromarray(region.numpy().astype(np.uint8) * 255).resize(
        picture.size, Image.Resampling.BICUBIC
    )
    inside = np.pad(np.asarray(large) > 127, 2)
    shifted = [np.roll(inside, (y, x), (0, 1)) for y in (-2, 0, 2) for x in (-2, 0, 2)]
    border = (np.logical_or.reduce(shifted) & ~inside)[2:-2, 2:-2]
    array = np.array(picture)
    array[border] = _OUTLINE
    return Image.fromarray(array)


def _draw_box(pen: ImageDraw.ImageDraw, box: Sequence[float], left: int) -> None:
    x0, y0, x1, y1 = (round(v * (SIDE - 1)) for v in box)
    area = (left + x0, _TOP + y0, left + x1, _TOP + y1)
    pen.rectangle(area, outline=(0, 0, 0), width=4)
    inner = (area[0] + 1, area[1] + 1, area[2] - 1, area[3] - 1)
    pen.rectangle(inner, outline=(255, 255, 255), width=2)


def _draw_scale(canvas: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    ramp = np.linspace(0, 1, SIDE)[None].repeat(12, 0)
    canvas.paste(Image.fromarray(heat_colours(ramp)), (left, top))
    for value, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        pen.text((left + value * SIDE, top + 16), f"{value:g}", _INK, font(13), anchor=anchor)
    pen.text((left + SIDE + _GAP, top - 2), "probability;", _INK, font(13))
    pen.text((left + SIDE + _GAP, top + 15), "grey: not seen yet", _INK, font(13))


def _draw_rows(pen: ImageDraw.ImageDraw, rows: Sequence[ClassBar], left: int) -> None:
    """Draws the table: label, visible share, target and prediction of every class."""
    shown, visible, bars = left + 128, left + 178, left + 240
    length = _BARS - 240 - 44
    heads = ((left, "class", _INK), (shown, "label", _LABEL), (visible, "visible", _INK))
    for x, text, ink in heads:
        pen.text((x, 4), text, ink, font(14, bold=True))
    pen.text((bars, 4), "target", _TARGET, font(14, bold=True))
    pen.text((bars + 60, 4), "prediction", _PREDICTION, font(14, bold=True))
    pen.text((bars, 24), "what is in the crop", _INK, font(13))
    step = min(26, (SIDE + _BOTTOM - 8) // max(1, len(rows)))
    for number, row in enumerate(rows[:_ROWS]):
        y = _TOP + 2 + number * step
        ink = _INK if row.chosen or row.labelled or row.visible is not None else _FAINT
        pen.text((left, y), _short(row.name, 118), ink, font(14, bold=row.chosen))
        if row.labelled:
            pen.ellipse((shown + 12, y + 3, shown + 24, y + 15), fill=_LABEL)
        if row.visible is not None:
            pen.text((visible + 46, y), f"{100 * row.visible:.0f} %", ink, font(14), anchor="ra")
        _draw_bar(pen, bars, y + 1, length, row.target, _TARGET)
        _draw_bar(pen, bars, y + 10, length, row.prediction, _PREDICTION)


def _draw_bar(
    pen: ImageDraw.ImageDraw, x: int, y: int, length: int, value: float | None, ink: tuple
) -> None:
    pen.rectangle((x, y, x + length, y + 7), fill=(238, 238, 238))
    if value is None:
        return
    pen.rectangle((x, y, x + round(value * length), y + 7), fill=ink)
    pen.text((x + length + 5, y - 3), f"{value:.2f}", _INK, font(10))


def _short(text: str, width: int) -> str:
    """Shortens a name to `width` pixels."""
    bold, whole = font(14, bold=True), text
    while bold.getlength(text) > width:
        text = text[:-2].rstrip("…") + "…"
        if len(text) < 2:
            return whole[:1]
    return text
