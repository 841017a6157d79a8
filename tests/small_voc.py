"""Makes a small Pascal VOC: its ids, flags, lists and annotations."""

import numpy as np

from spcl_lib.data.cache import decode_image_set
from spcl_lib.data.voc import CLASSES, list_voc


def voc_ids():
    """Ids of the tiny VOC, deliberately not in the order of their names."""
    return {"train": [f"{i:06d}" for i in (7, 3, 12, 5, 9, 33)],
            "val": [f"{i:06d}" for i in (8, 4, 2, 6)]}  # fmt: skip


def voc_flags(split):
    """(N, 20) flags of the tiny VOC: 1 positive, 0 difficult, -1 negative."""
    rng = np.random.default_rng(len(split))
    flags = rng.choice([-1, 0, 1], p=[0.7, 0.15, 0.15], size=(len(voc_ids()[split]), 20))
    flags[:, 14] = 1  # every image has a positive, save those that tests change
    return flags


def write_lists(folder):
    """Writes ImageSets/Main of the tiny VOC."""
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, ids in voc_ids().items():
        (lists / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))
        flags = voc_flags(split)
        for c, name in enumerate(CLASSES):
            rows = [f"{i} {flag:2d}\n" for i, flag in zip(ids, flags[:, c], strict=True)]
            (lists / f"{name}_{split}.txt").write_text("".join(rows))


def write_annotations(folder, objects):
    """Writes Annotations/ID.xml for every id; objects are (class, xmin, ymin, xmax, ymax)."""
    (folder / "Annotations").mkdir(exist_ok=True)
    names = ("xmin", "ymin", "xmax", "ymax")
    for name, rows in objects.items():
        text = "<annotation><size><width>24</width><height>18</height></size>"
        for label, *corners in rows:
            box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(names, corners, strict=True))
            text += f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
        (folder / "Annotations" / f"{name}.xml").write_text(text + "</annotation>")


def load_voc(root, split, side, damaged="stop", **options):
    """A split of VOC2007, listed and decoded."""
    data = list_voc(root, split, 2007, **options)
    return decode_image_set(data, side, f"voc2007-{split}", damaged)
