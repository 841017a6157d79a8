"""Calls of the library in which one argument is odd."""

import copy
import math

import torch
from attack import CLEAR, TRACEBACK, UNCLEAR, call, where
from hypothesis import strategies as st
from test_doors import CALLS

from spcl_lib.system.errors import UserError

_KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
          torch.uint8, torch.bool, torch.complex64)  # fmt: skip
_NUMBERS = (math.nan, math.inf, -math.inf, -1, 0, 1, 2, 255, 1e30, 0.5)
_OTHERS = (None, True, "x", "", b"x", [], [1, 2], {}, {"heatmaps": 1}, object(), 3 + 1j, -1, 0, 2.5,
           2**63, 10**30, math.nan, math.inf, (1, 2), (2, 1), (0.5,), int)  # fmt: skip


@st.composite
def _tensors(draw, right):
    """A tensor that differs in shape, type or values from the right one."""
    sizes = st.lists(st.integers(0, 7), max_size=5)
    shape = draw(sizes) if draw(st.booleans()) else list(right.shape)
    kind = draw(st.sampled_from(_KINDS)) if draw(st.booleans()) else right.dtype
    value = draw(st.sampled_from(_NUMBERS))
    if not (kind.is_floating_point or kind.is_complex):
        value = int(value) if math.isfinite(value) and abs(value) < 2**31 else 0
    return torch.full(shape, value, dtype=torch.float64).to(kind)


@st.composite
def odd_calls(draw):
    """Name of a function, and its arguments, one of them odd."""
    name = draw(st.sampled_from(sorted(CALLS)))
    arguments = copy.deepcopy(CALLS[name][1])
    place = draw(st.integers(0, len(arguments) - 1))
    right = arguments[place]
    odd = st.sampled_from(_OTHERS)
    if isinstance(right, torch.Tensor):
        odd = st.one_of(_tensors(right), _tensors(right), odd)
    if isinstance(right, dict):
        key = draw(st.sampled_from(sorted(right)))
        inner = _tensors(right[key]) if isinstance(right[key], torch.Tensor) else odd
        odd = st.one_of(inner, odd).map(lambda value: right | {key: value})
    return name, [*arguments[:place], draw(odd), *arguments[place + 1 :]]


def attack_call(found):
    """Calls a function; a refusal must be an error of the library's own."""
    name, arguments = found
    error = call(lambda: CALLS[name][0](*arguments)).error
    if error is None:
        return CLEAR, ""
    # OverflowError: a number beyond 64 bits
    if not isinstance(error, ValueError | TypeError | OverflowError | UserError):
        return TRACEBACK, f"{name}: {where(error)}"
    if not str(error) or len(str(error)) > 1000:
        return UNCLEAR, f"{name}: {str(error)[:300]!r}"
    return CLEAR, ""
