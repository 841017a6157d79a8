"""Keyed random numbers: every use of chance has its own generator, named by a key."""

import hashlib

import torch


def keyed_generator(*key: object) -> torch.Generator:
    """The random generator of a key; a resumed run makes the generator of its step directly."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
