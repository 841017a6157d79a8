"""Makes a small folder of images, and has settings for a run on it."""

import zlib

import numpy as np
from PIL import Image

# With a network from random weights a run takes a second: only the way of the data matters.
QUICK = {"backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
         "eval_side": 16, "epochs": 1}  # fmt: skip
FOLDER = ("run", "--dataset", "folder", "--profile", "smoke", "--method", "an")


def save_noise(file):
    """Writes seeded noise, different for every name, as the kind of image that the name says.

    Returns the file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(file.name.encode()))
    Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8)).save(file)
    return file


def make_folder(root, **counts):
    """Class folders with so many images each; the default are 10 cats and 5 dogs."""
    for name, count in (counts or {"cat": 10, "dog": 5}).items():
        for i in range(count):
            save_noise(root / name / f"{name} {i}.png")
    return root


def write_csv(file, *lines):
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file.name
