"""Crop recovery: does the supervision know what a random crop still shows?

The paper claims that SCL recovers the right supervision when the crop has cut out most of the one
labelled object. Here the targets are computed and scored, for classes with and without a label.
"""

from __future__ import annotations

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.pooling import MEAN_POOLING, Pooling
from spcl_lib.views import Views

_AT_ONCE = 1024  # views whose heatmaps are in memory at a time


def presence_in_views(
    bank: HeatmapBank, indices: Tensor, views: Views, grid: int, pooling: Pooling = MEAN_POOLING
) -> Tensor:
    """What running averages say (B, C) of every class in B views; 0 where nothing has been seen.

    Heatmaps (SCL) are read through the view, at the training's grid. The averages of CL (size 1)
    know nothing of places and are read whole.
    """
    if bank.size == 1:
        views, grid = Views.whole(len(indices)), 1
    parts = torch.arange(len(indices)).split(_AT_ONCE)
    return torch.cat([pooling.presence(*bank.read(indices[p], views[p], grid)) for p in parts])


def visible_heat(bank: HeatmapBank, indices: Tensor, views: Views) -> Tensor:
    """Share v (B, C) of a class's heat that the view shows: sum of H^2 over its cells / sum of H^2.

    With it, a target factors (ours): presence in the whole image * v ** e. The first factor asks
    whether the class is in the image; the second, how much of it the crop shows.
    """
    shares = []
    for part in torch.arange(len(indices)).split(_AT_ONCE):
        whole = Views.whole(len(part))
        heat = bank.read(indices[part], whole, bank.size)[0].square()  # (b, C, W, W)
        shown = (heat * views[part].visible(bank.size)).sum((2, 3))
        shares.append(shown / heat.sum((2, 3)).clamp(min=1e-12))  # 0 for a class without heat
    return torch.cat(shares)


def score(target: Tensor, truth: Tensor, asked: Tensor) -> dict[str, float]:
    """How well a target (M, C) ranks the views that show a class before those that do not.

    Args:
        target: of M views.
        truth: (M, C) bool, whether the view shows the class.
        asked: (M, C) bool, the pairs of view and class that count.

    Returns:
        AUROC and AP in percent, means over the classes with both answers; NaN without such a class.
    """
    found: dict[str, list[float]] = {"AUROC": [], "AP": []}
    for says, is_true, counts in zip(target.T, truth.T, asked.T, strict=True):
        answers = is_true[counts].numpy(), says[counts].numpy()
        if 0 < answers[0].sum() < len(answers[0]):
            found["AUROC"].append(roc_auc_score(*answers))
            found["AP"].append(average_precision_score(*answers))
    return {name: 100 * float(torch.tensor(values).mean()) for name, values in found.items()}
