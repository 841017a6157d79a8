"""Fingerprints: short texts that identify what a cached result depends on."""

import hashlib
from collections.abc import Sequence


def fingerprint(sources: Sequence[object]) -> str:
    """Twelve characters that change when any source does; their `repr` says all about them."""
    return hashlib.sha256("".join(map(repr, sources)).encode()).hexdigest()[:12]
