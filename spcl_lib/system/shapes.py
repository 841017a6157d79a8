"""Checks of arguments at the door of a function: of tensors shape and type, never values.

A tensor of another shape is often spread over the others, and gives a wrong answer silently. A
check takes about a microsecond, and does not wait for the tensor's device.
"""

from __future__ import annotations

import torch
from torch import Tensor

Shape = tuple[int | str, ...]  # sizes; a letter stands for any size, the same wherever it occurs


def require_tensor(name: str, value: object, shape: Shape | None, kind: str = "") -> None:
    """Refuses what is no tensor of this shape and type.

    Args:
        name: name of the argument, for the message.
        value: the argument.
        shape: such as ("B", "C") or (8, 20); None for any.
        kind: "float" for any floating type, the name of one type such as "bool", or "" for any
            type of real numbers.

    Raises:
        TypeError: it is no tensor.
        ValueError: its shape or type is another one.
    """
    if isinstance(value, Tensor):
        if (shape is None or _has_shape(value.shape, shape)) and _has_kind(value.dtype, kind):
            return
        error, found = ValueError, f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    else:
        error, found = TypeError, f"{type(value).__name__}, which is no tensor"
    sizes = "" if shape is None else f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)}) "
    raise error(f"{name} must be {sizes}{kind or 'of real numbers'}; got {found}")


def require_seen(seen: Tensor, maps: Tensor) -> None:
    """Refuses a mask that is neither (B, 1, G, G) nor of the shape of maps (B, C, G, G).

    Raises:
        TypeError, ValueError: see `require_tensor`.
    """
    per_class = isinstance(seen, Tensor) and seen.shape == maps.shape
    require_tensor("seen", seen, maps.shape if per_class else (len(maps), 1, *maps.shape[2:]))


def _has_shape(sizes: torch.Size, shape: Shape) -> bool:
    if sizes == shape:
        return True
    if len(sizes) != len(shape):
        return False
    letters: dict[str, int] = {}
    for size, expected in zip(sizes, shape, strict=True):  # `all` would take twice as long
        if isinstance(expected, str):
            expected = letters.setdefault(expected, size)
        if expected != size:
            return False
    return True


def _has_kind(dtype: torch.dtype, kind: str) -> bool:
    if kind == "float":
        return dtype.is_floating_point
    return dtype == getattr(torch, kind) if kind else not dtype.is_complex


def require_size(size: object, name: str = "size", least: int = 1) -> None:
    """Refuses a number of cells, images or views, or a seed, that is no whole number >= `least`."""
    if isinstance(size, bool) or not hasattr(size, "__index__") or not least <= size < 2**63:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {size!r}")
