"""Fingerprints: short texts that identify what a cached result depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def fingerprint(sources: Sequence[object]) -> str:
    """Twelve characters that change when any source does.

    The name of a cached file holds a fingerprint of all that the file depends on: settings, the
    data, and the VERSION of the code that makes it. When one of them changes, it is made again.

    Args:
        sources: values whose `repr` says all about them.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr(source).encode())
    return digest.hexdigest()[:12]
