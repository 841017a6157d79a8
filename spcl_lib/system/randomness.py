"""Keyed chance: every use of chance has a generator of its own, named by a key."""

from __future__ import annotations

import hashlib

import torch


def keyed_generator(*key: object) -> torch.Generator:
    """A random generator of its own for every key, so that any step can be reached directly."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
