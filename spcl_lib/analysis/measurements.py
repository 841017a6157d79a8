"""Crop recovery: does the supervision know what a random crop still shows?

The paper claims that SCL recovers the right supervision when the crop has cut out most of the one
labelled object. `notebooks/reference/make.py` measures it, and keeps one tidy table of all values.
"""

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.pooling import Pooling
from spcl_lib.system import paths
from spcl_lib.views import Views

_AT_ONCE = 1024  # views whose heatmaps are in memory at a time


def kept(name: str = "crop-recovery") -> pd.DataFrame:
    """Kept measurements; crop-factored has the factored targets.

    scale: least area of a training crop. source: label, average (CL), heatmap, network. read:
    "view", "whole", or factored: "e=0.25" is whole x v^0.25. group: "labelled" or "unlabelled"
    classes, or "all". value: in percent.
    """
    files = sorted(paths.reference().glob(f"{name}-*.csv"))
    return pd.concat([pd.read_csv(file, comment="#") for file in files], ignore_index=True)


def presence_in_views(
    bank: HeatmapBank, indices: Tensor, views: Views, grid: int, pooling: Pooling
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
    """Share v (B, C) of a class's heat that each of B views shows; 0 for a class without heat.

    It is the sum of H^2 over the view's cells / the sum of H^2.
    """
    found = []
    for p in torch.arange(len(indices)).split(_AT_ONCE):
        squares = bank.read(indices[p], Views.whole(len(p)), bank.size)[0].square()
        shown = (squares * views[p].visible(bank.size)).sum((2, 3))
        found.append(shown / squares.sum((2, 3)).clamp(min=1e-12))
    return torch.cat(found)


def score(target: Tensor, truth: Tensor, asked: Tensor) -> float:
    """How well a target (M, C) ranks the views that show a class before those that do not: AUROC.

    `truth` (M, C) bool says which those are, `asked` (M, C) bool which pairs count. It is in
    percent, the mean over the classes with both answers; NaN without such a class.
    """
    found = []
    for says, is_true, counts in zip(target.T, truth.T, asked.T, strict=True):
        answers = is_true[counts].numpy(), says[counts].numpy()
        if 0 < answers[0].sum() < len(answers[0]):
            found.append(roc_auc_score(*answers))
    return 100 * float(torch.tensor(found).mean())
