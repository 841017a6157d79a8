"""Checks of arguments at the door of a function: of tensors shape and type, never values.

A tensor of another shape is often spread over the others, and gives a wrong answer silently.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Shape = Sequence[int | str]  # sizes; a letter stands for any size, the same wherever it occurs


def require_tensor(name: str, value: object, shape: Shape, kind: str = "") -> None:
    """Refuses what is no tensor of this shape, such as ("B", "C") or (8, 20), and type.

    `kind` is "float" for any floating type, the name of one type such as "bool", or "" for any type
    of real numbers.
    """
    wanted = f"{name} must be ({', '.join(map(str, shape))}) {kind or 'of real numbers'}; got "
    if not isinstance(value, Tensor):
        raise TypeError(f"{wanted}{type(value).__name__}, which is no tensor")
    if not _has_shape(value.shape, shape) or not _has_kind(value.dtype, kind):
        raise ValueError(f"{wanted}{tuple(value.shape)} {value.dtype}")


def _has_shape(sizes: torch.Size, shape: Shape) -> bool:
    letters: dict[str, int] = {}
    return len(sizes) == len(shape) and all(
        size == (letters.setdefault(expected, size) if isinstance(expected, str) else expected)
        for size, expected in zip(sizes, shape, strict=True)
    )


def _has_kind(dtype: torch.dtype, kind: str) -> bool:
    if kind == "float":
        return dtype.is_floating_point
    return dtype == getattr(torch, kind) if kind else not dtype.is_complex


def require_seen(seen: Tensor, maps: Tensor) -> None:
    """Refuses a mask that is neither (B, 1, G, G) nor of the shape of maps (B, C, G, G)."""
    per_class = isinstance(seen, Tensor) and seen.shape == maps.shape
    require_tensor("seen", seen, maps.shape if per_class else (len(maps), 1, *maps.shape[2:]))


def require_size(size: object, name: str = "size") -> None:
    """Refuses a number of cells or pixels that is no whole number of at least 1."""
    if isinstance(size, bool) or not hasattr(size, "__index__") or not 1 <= size < 2**63:
        raise ValueError(f"{name} must be a whole number of at least 1; got {size!r}")
