"""A small Pascal VOC that the tests make: its ids and its flags."""

import numpy as np


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
