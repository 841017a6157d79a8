"""Checks the answers of the notebook 09_exercises, and says in words what is right or wrong.

Every check takes the student's answer first; None means that there is none yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spcl_lib.analysis.visibility import visible_fraction
from spcl_lib.bank import HeatmapBank
from spcl_lib.data.image_set import ImageSet
from spcl_lib.losses import expected_negative_threshold
from spcl_lib.losses.stateless import weak_negatives
from spcl_lib.pooling import Pooling
from spcl_lib.views import Views

if TYPE_CHECKING:
    import pandas as pd

NOT_YET = "Not answered yet: fill in the cell above and run it."
_CLOSE = 2e-3  # an answer by hand has three decimals
_LEAST_AREA, _WHOLE_ENOUGH = 0.25, 0.9  # of a training's crop; of an object that counts as whole


def check_hidden(answer: object, labels: Tensor, observed: Tensor) -> str:
    """Exercise 1: which labels does AN get wrong?

    Args:
        answer: (N, C) bool; positives that AN takes for negatives.
        labels: y (N, C) bool.
        observed: z (N, C) bool.
    """
    hidden = labels & ~observed
    share = hidden.sum() / observed.sum()
    hints = {
        "these are all positives, also those that were observed": labels,
        "these are all unknown labels; most of them are really absent": ~observed,
        "these are the observed labels: the ones that AN gets right": observed,
    }
    praise = (
        f"{hidden.sum()} positives are hidden, {share:.2f} for every observed one: AN teaches more "
        "false negatives than true positives."
    )
    return _judge(answer, hidden, praise, hints)


def check_box(answer: object, data: ImageSet, image: int, observed: Tensor) -> str:
    """Exercise 2: a crop that loses the label, and shows all other objects.

    Args:
        answer: x0, y0, x1, y1 as fractions of the image.
        data: images that know their regions.
        image: number of the image.
        observed: z (N, C) bool.
    """
    if answer is None:
        return NOT_YET
    try:
        view = Views(torch.tensor([answer], dtype=torch.float32), torch.tensor([False]))
    except (TypeError, ValueError) as error:
        return f"Not right: {error}."
    x0, y0, x1, y1 = view.boxes[0].tolist()
    if (x1 - x0) * (y1 - y0) < _LEAST_AREA:
        return f"Not right: the crop has less than {_LEAST_AREA:.0%} of the image's area."
    shown = visible_fraction(data.regions(torch.tensor([image])), view)[0]  # (C,)
    given, others = observed[image], data.labels[image] & ~observed[image]
    if shown[given].item() > 0:
        return f"Not right: the crop still shows {shown[given].item():.0%} of its label."
    cut = [c for c, yes in zip(data.classes, others & (shown < _WHOLE_ENOUGH), strict=True) if yes]
    if cut:
        return f"Not right: the label is gone, but so is a part of: {', '.join(cut)}."
    return (
        "Right. The label is wrong for this crop, and AN asks for it all the same. It asks for 0 "
        "of all that the crop really shows."
    )


def check_target(answer: object, heatmap: Tensor, view: Views) -> str:
    """Exercise 3: T_v, what a view shows of a heatmap.

    Args:
        answer: (2, 2) values.
        heatmap: (4, 4) values in [0, 1].
        view: one view of a quarter of it.
    """
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    right = HeatmapBank.of(heatmap[None, None], seen[0]).read(torch.tensor([0]), view, 2)[0][0, 0]
    unflipped = "these are the right cells, but the view is flipped: left and right change places"
    praise = "The target of the loss is cut out of the heatmap as the crop is cut out of the image."
    return _judge(answer, right, praise, {unflipped: right.flip(1)})


def check_return(answer: object, maps: Tensor, view: Views) -> str:
    """Exercise 3: the inverse of T_v, a crop's score map put back into the full image.

    Args:
        answer: (4, 4) values, 0 where the view shows nothing.
        maps: (2, 2) values in [0, 1].
        view: one view of a quarter of the full image.
    """
    bank = HeatmapBank(1, 1, 4, dtype=torch.float32)
    bank.update(torch.tensor([0]), view, maps[None, None])
    right = bank.heatmaps[0, 0]
    unflipped = torch.where(right > 0, right.flip(1).roll(2, 1), right)
    praise = "The bank does this after every step, and leaves the other cells as they were."
    return _judge(answer, right, praise, {"the view is flipped, also on the way back": unflipped})


def check_average(answer: object, predictions: Sequence[float], momentum: float) -> str:
    """Exercise 4: the running average of a cell.

    Args:
        answer: its value after the last prediction.
        predictions: of the same cell, in their order.
        momentum: mu.
    """
    bank = HeatmapBank(1, 1, 1, momentum, torch.float32)
    from_zero = 0.0
    for value in predictions:
        bank.update(torch.tensor([0]), Views.whole(1), torch.full((1, 1, 1, 1), value))
        from_zero = momentum * from_zero + (1 - momentum) * value
    hints = {
        "this begins with 0; the first prediction is stored unchanged": torch.tensor(from_zero),
        "this is the mean; later predictions have the weight 1 - momentum": torch.tensor(
            sum(predictions) / len(predictions)
        ),
    }
    right = bank.heatmaps.flatten()[0]
    return _judge(answer, right, f"The bank holds {right:.3f}.", hints)


def check_possible(answer: object, presence: Tensor, labels: Tensor, k: float) -> str:
    """Exercise 5: the unknown labels that EN leaves out of its loss.

    Args:
        answer: (N, C) bool.
        presence: (N, C) running averages.
        labels: z (N, C).
        k: expected positives per image.
    """
    unknown = ~labels.bool()
    right = (presence > expected_negative_threshold(presence, labels, k)) & unknown
    highest = presence.masked_fill(~unknown, 0).flatten()
    unscaled = presence >= highest.topk(int(right.sum())).values[-1]
    hints = {
        "these are the highest averages; divide each class by what it reaches when it is "
        "labelled": unscaled & unknown,
        "the observed labels are certain; EN leaves out unknown ones only": right | ~unknown,
    }
    praise = f"EN says nothing about these {int(right.sum())} labels; all others stay negatives."
    return _judge(answer, right, praise, hints)


def check_pooling(answer: object, maps: Tensor, strength: float) -> str:
    """Exercise 6: the mean of a score map, and its log-sum-exp.

    Args:
        answer: the two logits.
        maps: (G, G) logits.
        strength: of log-sum-exp.
    """
    cells = maps[None, None]
    right = torch.stack([p(cells)[0, 0] for p in (Pooling(), Pooling("lse", strength))])
    total = (strength * maps).flatten().logsumexp(0) / strength
    mean, lse = right.sigmoid().tolist()
    praise = f"As probabilities: {mean:.3f} and {lse:.3f}. The mean does not see a small object."
    hint = "log-sum-exp takes the log of the mean of the exponentials, not of their sum"
    return _judge(answer, right, praise, {hint: torch.stack([right[0], total])})


def check_loss(answer: object, logits: Tensor, labels: Tensor) -> str:
    """Exercise 7: AN with the weight 1 / (C - 1) for unknown labels, which is WAN.

    Args:
        answer: the loss, a number that knows its gradient.
        logits: s (B, C), which needs a gradient.
        labels: z (B, C).
    """
    right = weak_negatives(logits, labels, None)
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits), reduction="none"
    )
    count = logits.shape[1] - 1
    hints = {
        "this is AN: all labels have the weight 1": each.mean(),
        "this is a sum; take the mean over all B * C labels": right * logits.numel(),
        "the weights of known and unknown labels have changed places": (
            each * torch.where(labels.bool(), 1 / count, 1.0)
        ).mean(),
    }
    if isinstance(answer, Tensor) and not answer.requires_grad:
        return "Not right: the loss has no gradient; compute it from s with torch."
    praise = "Both kinds of labels now pull with the same total weight. It is a method: wan."
    return _judge(answer, right, praise, hints)


def check_better(answer: object, table: pd.DataFrame) -> str:
    """Exercise 8: the methods whose interval says that they are better than AN.

    Args:
        answer: names of methods.
        table: rows of `league.league_table`, without AN.
    """
    if answer is None:
        return NOT_YET
    if isinstance(answer, str) or not isinstance(answer, Sequence | set):
        return "Not right: the answer must be a list of names."
    right = set(table.index[table["low"] > 0])
    if unknown := set(answer) - set(table.index):
        return f"Not right: these are no names of the table: {', '.join(map(str, unknown))}."
    if too_many := set(answer) - right:
        name = min(too_many)
        low, high = table.loc[name, ["low", "high"]]
        why = "it holds 0, so the method may be no better" if high > 0 else "the method is worse"
        return f"Not right: the interval of {name} is {low:.2f} to {high:.2f}; {why}."
    if too_few := right - set(answer):
        return f"Not right: one is missing, with an interval above 0: {min(too_few)}."
    return "Right. A higher mean is not enough: the whole interval must be above 0."


def _judge(answer: object, right: Tensor, praise: str, hints: Mapping[str, Tensor]) -> str:
    """A sentence about an answer; `hints` say what is wrong with answers that many give."""
    if answer is None:
        return NOT_YET
    try:
        given = torch.as_tensor(answer).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return f"Not right: the answer must hold numbers; got {type(answer).__name__}."
    if given.shape != right.shape:
        shapes = f"{tuple(right.shape)}; got {tuple(given.shape)}"
        return f"Not right: the answer must have the shape {shapes}."

    def is_close(other: Tensor) -> Tensor:
        return torch.isclose(given, other.double(), rtol=0, atol=_CLOSE)

    if is_close(right).all():
        return f"Right. {praise}"
    for hint, wrong in hints.items():
        if is_close(wrong).all():
            return f"Not right: {hint}."
    return f"Not right: {int((~is_close(right)).sum())} of {right.numel()} values differ."
