"""Checks the answers of the notebook 09_exercises; the answers and the hints stand there."""

from collections.abc import Mapping

import torch

_CLOSE = 2e-3  # an answer by hand has three decimals


def check(answer: object, right: object, hints: Mapping[str, object] | None = None) -> str:
    """Says whether an answer is right, or what is wrong with it; None is no answer yet.

    `hints` are: what is wrong with answers that many give -> these answers.
    """
    if answer is None:
        return "Not answered yet: fill in the cell above and run it."
    right = _numbers(right)
    try:
        given = _numbers(answer)
    except (TypeError, ValueError, RuntimeError):
        return f"Not right: the answer must hold numbers; got {type(answer).__name__}."
    if given.shape != right.shape:
        shapes = f"{tuple(right.shape)}; got {tuple(given.shape)}"
        return f"Not right: the answer must have the shape {shapes}."
    for said, other in {"Right.": right, **(hints or {})}.items():
        if torch.allclose(given, _numbers(other).expand_as(given), rtol=0, atol=_CLOSE):
            return said if said == "Right." else f"Not right: {said}."
    far = ~torch.isclose(given, right, rtol=0, atol=_CLOSE)
    return f"Not right: {int(far.sum())} of {right.numel()} values differ."


def _numbers(values: object) -> torch.Tensor:
    return torch.as_tensor(values).detach().double()
