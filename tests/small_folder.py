"""Makes a small folder of images, and has settings for a run on it."""

import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from spcl_lib.__main__ import main
from spcl_lib.runs.settings import make_config

# With a network from random weights a run takes a second: only the way of the data matters.
QUICK = {"backbone": "small_resnet", "weights": "none", "image_side": 16, "crop_side": 16,
         "eval_side": 16, "epochs": 1}  # fmt: skip
FOLDER = ("run", "--dataset", "folder", "--profile", "smoke", "--method", "an")


def small_config(dataset, **settings):
    """A configuration on all images of a data set."""
    everything = {"train_images": 0, "eval_images": 0, "image_side": 16}
    return make_config(dataset, "an", 0, "smoke", everything | settings)


def set_options(settings):
    """Settings as options of the command line."""
    return [text for k, v in settings.items() for text in ("--set", f"{k}={v}")]


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


def train_on(root, base, *more, **settings):
    """Trains on a folder, with results below `base`; gives the run's folder."""
    options = set_options(QUICK | settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_RESULTS", str(base / "results"))
        patch.setenv("SPCL_CACHE", str(base / "cache"))
        assert main([*FOLDER, "--data-root", str(root), *more, *options]) == 0
    (file,) = (base / "results").rglob("metrics.json")
    return file.parent


def assert_mistake(outcome, *said):
    """A command ended with one line that says so."""
    assert outcome.status == 2 and "Traceback" not in outcome.err
    last = outcome.err.replace("\r", "\n").splitlines()[-1]
    assert last.startswith("spcl: error: ")
    for text in said:
        assert str(text) in last


def odd_photographs(folder):
    """Photographs of every odd kind that people have; gives their names, sorted.

    Smooth colours, so that the ways of resizing hardly differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.linspace(0, 255, 90), np.linspace(0, 255, 60))
    colours = np.stack((x, y, 255 - x), 2).astype(np.uint8)
    photo, turned = Image.fromarray(colours), Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    photo.save(folder / "turned.jpg", exif=turned, quality=95)
    photo.save(folder / "plain.jfif", format="jpeg", quality=95)
    photo.save(folder / "plain.ppm")
    photo.convert("L").save(folder / "grey.png")
    photo.convert("CMYK").save(folder / "print.tif")
    photo.quantize(64).save(folder / "palette.png", transparency=0)
    photo.putalpha(Image.fromarray(x.astype(np.uint8)))
    photo.save(folder / "transparent.png")
    Image.fromarray((x * 257).astype(np.uint16)).save(folder / "deep.png")
    frames = [Image.fromarray(np.roll(colours, 30 * i, 1)) for i in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return sorted(file.name for file in folder.iterdir())
