"""Makes a small COCO: images of 8 x 6 pixels, every kind of mask, ids in no order."""

import json

import numpy as np
from PIL import Image

from spcl_lib.data.cache import decode_image_set
from spcl_lib.data.coco import list_coco

WIDTH, HEIGHT = 8, 6
CATEGORIES = {7: "train", 1: "person", 90: "toothbrush"}  # as they stand in the file
CLASSES = ("person", "train", "toothbrush")  # in ascending order of their ids


def rectangle(x0, y0, x1, y1):
    """A polygon whose mask is exactly these pixels."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


# Uncompressed run lengths of the crowd: down the columns, starting with zeros.
CROWD = {"size": [HEIGHT, WIDTH], "counts": [1, 3, 15, 3, 15, 3, 8]}


def crowd_mask():
    """What the crowd of image 300 covers."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[1:4, ::3] = True
    return mask


def instance(image, category, segmentation, box=(0, 0, 4, 3), iscrowd=0):
    """An annotation without its id."""
    return {
        "image_id": image, "category_id": category, "segmentation": segmentation,
        "bbox": list(box), "iscrowd": iscrowd, "area": 1.0,
    }  # fmt: skip


def small_coco(first_id=0):
    """The content of an instances_*.json. Image first_id + 20 has no annotation."""
    ids = [first_id + i for i in (300, 5, 20, 1000, 41)]
    annotations = [
        instance(ids[3], 90, [rectangle(0, 0, 2, 3), rectangle(4, 2, 7, 5)], (0, 0, 7, 5)),
        instance(ids[0], 1, CROWD, (0, 1, 7, 3), iscrowd=1),
        instance(ids[0], 1, [rectangle(6, 0, 8, 6)], (6, 0, 2, 6)),
        instance(ids[1], 7, [rectangle(1, 1, 6, 4)], (1, 1, 5, 3)),
        instance(ids[1], 1, [rectangle(3, 2, 8, 6)], (3, 2, 5, 4)),
        instance(ids[4], 90, [rectangle(0, 0, 8, 6)], (0, 0, 8, 6)),
    ]
    images = [
        {"id": i, "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in ids
    ]
    return {
        "info": {},
        "images": images,
        "annotations": [record | {"id": 70 + n} for n, record in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
    }


def write_coco(root, split="train", content=None):
    """Writes a split below the data root; returns the file of its annotations."""
    content = content or small_coco(2000 * (split == "val"))
    folder = root / "coco" / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for record in content["images"]:
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / record["file_name"], quality=95)
    file = root / "coco" / "annotations" / f"instances_{split}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def load_coco(root, split, side, damaged="stop", **options):
    """A split of COCO 2017, listed and decoded."""
    data = list_coco(root, split, 2017, **options)
    return decode_image_set(data, side, f"coco-{split}", damaged)
