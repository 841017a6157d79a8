"""`scenes`: images of pictographs on noisy backgrounds, drawn by code.

The data set is ours; the paper has none like it. The pictographs come from the DejaVu Sans font
that ships inside matplotlib. Classes occur together in themes, as in photographs.
"""

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from spcl_lib.data.image_set import ImageSet
from spcl_lib.system.errors import UserError

# Raise it when a pixel or a label of the scenes changes; a test compares golden values.
VERSION = 1
GLYPHS: dict[str, str] = {
    "aeroplane": "✈", "anchor": "⚓", "cloud": "☁", "envelope": "✉", "gear": "⚙", "knight": "♞",
    "lightning": "⚡", "queen": "♛", "skull": "☠", "snowflake": "❄", "telephone": "☎",
    "umbrella": "☂",
}  # fmt: skip
CLASSES = tuple(GLYPHS)
# Every class belongs to two themes: a cloud may mean bad weather or a journey.
THEMES: tuple[tuple[str, ...], ...] = (
    ("cloud", "lightning", "umbrella", "snowflake"),
    ("aeroplane", "anchor", "cloud", "envelope"),
    ("telephone", "envelope", "gear", "umbrella"),
    ("knight", "queen", "skull", "snowflake"),
    ("skull", "anchor", "queen", "lightning"),
    ("gear", "aeroplane", "telephone", "knight"),
)
FROM_THEME = 0.8  # share of the objects from the scene's theme; others come from all classes
OBJECTS_PER_SCENE = (0.15, 0.25, 0.25, 0.2, 0.15)  # probability of 1, 2, 3, 4, 5 objects
OBJECT_SIDE = (0.2, 0.42)  # longest side of an object, as a fraction of the image
SPLIT_SEEDS = {"train": 101, "val": 102, "test": 103}


def make_scenes(count: int, split: str = "train", side: int = 64) -> ImageSet:
    """Draws the first `count` scenes of "train", "val" or "test", with `class_map`."""
    if side < 16:
        raise UserError(f"scenes need 16 pixels or more; got side={side}")
    images = torch.empty((count, 3, side, side), dtype=torch.uint8)
    class_map = torch.empty((count, side, side), dtype=torch.uint8)
    for i in range(count):
        image, visible = draw_scene(np.random.default_rng((SPLIT_SEEDS[split], i)), side)
        images[i] = torch.from_numpy(image).permute(2, 0, 1)
        class_map[i] = torch.from_numpy(visible)
    values = torch.arange(1, len(CLASSES) + 1, dtype=torch.uint8)[:, None]
    labels = (class_map.flatten(1)[:, None] == values).any(2)  # (N, C)
    ids = tuple(f"{split}-{i:05d}" for i in range(count))
    return ImageSet(images, labels, CLASSES, ids, class_map=class_map)


def draw_scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image (side, side, 3) uint8 and class map (side, side) uint8, 0 = background."""
    canvas = background(rng, side)
    class_map = np.zeros((side, side), np.uint8)
    theme = THEMES[rng.integers(len(THEMES))]
    for _ in range(1 + rng.choice(len(OBJECTS_PER_SCENE), p=OBJECTS_PER_SCENE)):
        name = rng.choice(theme) if rng.random() < FROM_THEME else rng.choice(CLASSES)
        add_object(canvas, class_map, GLYPHS[name], CLASSES.index(name) + 1, rng)
    return canvas, class_map


@lru_cache(maxsize=256)
def _template(glyph: str) -> Image.Image:
    """The glyph as a grey mask, cut to its ink and centred in a square of 96 pixels."""
    matplotlib = importlib.util.find_spec("matplotlib")  # not imported: only its font is needed
    file = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    font = ImageFont.truetype(str(file), 96)
    left, top, right, bottom = font.getbbox(glyph)
    square = max(right - left, bottom - top)
    mask = Image.new("L", (square, square))
    corner = ((square - right + left) // 2 - left, (square - bottom + top) // 2 - top)
    ImageDraw.Draw(mask).text(corner, glyph, fill=255, font=font)
    return mask.resize((96, 96), Image.Resampling.LANCZOS)


def background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Smooth coloured noise with low-contrast clutter."""
    tint = rng.integers(60, 200, size=3)
    coarse = np.clip(tint + rng.normal(0, 28, size=(5, 5, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(3, 8)):
        x, y, dx, dy = rng.uniform((0, 0, -0.35, -0.35), (1, 1, 0.35, 0.35)) * side
        colour = tuple(int(v) for v in np.clip(tint + rng.normal(0, 45, 3), 0, 255))
        ends = (min(x, x + dx), min(y, y + dy), max(x, x + dx), max(y, y + dy))
        kind = rng.integers(3)
        if kind == 0:
            draw.line((x, y, x + dx, y + dy), fill=colour, width=int(rng.integers(1, 4)))
        elif kind == 1:
            draw.ellipse(ends, outline=colour, width=int(rng.integers(1, 3)))
        else:
            draw.rectangle(ends, outline=colour)
    grain = rng.normal(0, 6, size=(side, side, 1))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)


def add_object(
    canvas: np.ndarray,
    class_map: np.ndarray,
    glyph: str,
    value: int,
    rng: np.random.Generator,
    sides: tuple[float, float] = OBJECT_SIDE,
) -> None:
    """Draws one glyph into `canvas` and `class_map` (both changed in place)."""
    longest = rng.uniform(*sides) * len(canvas)
    mask = _random_mask(glyph, rng, longest)  # (h, w) in [0, 1]
    y, x = _free_place(mask > 0.5, class_map, rng)
    area = (slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]))
    colour = _contrasting_colour(canvas[area].mean((0, 1)), rng)
    alpha = mask[..., None]
    canvas[area] = (canvas[area] * (1 - alpha) + colour * alpha).round().astype(np.uint8)
    class_map[area][mask > 0.5] = value


def _random_mask(glyph: str, rng: np.random.Generator, longest: float) -> np.ndarray:
    template = _template(glyph)
    if rng.random() < 0.5:
        template = template.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = template.rotate(rng.uniform(-30, 30), Image.Resampling.BILINEAR, expand=True)
    turned = turned.crop(turned.getbbox())
    size = tuple(max(3, round(s * longest / max(turned.size))) for s in turned.size)
    return np.asarray(turned.resize(size, Image.Resampling.BOX), np.float32) / 255


def _free_place(ink: np.ndarray, class_map: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Top-left corner where the ink hides the fewest object pixels, out of 12 tries."""
    height, width = ink.shape
    room = np.array(class_map.shape) - ink.shape + 1
    places = rng.integers(0, room, size=(12, 2)).tolist()
    return min(
        places, key=lambda p: np.count_nonzero(class_map[p[0] : p[0] + height, p[1] : p[1] + width])
    )


def _contrasting_colour(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour whose luminance differs by at least 70 of 255 from the colour under it."""
    luminance = np.array([0.299, 0.587, 0.114])
    for colour in rng.integers(0, 256, size=(16, 3)):
        if abs(colour @ luminance - under @ luminance) >= 70:
            return colour.astype(np.float32)
    return np.full(3, 255.0 if under @ luminance < 128 else 0.0, np.float32)
