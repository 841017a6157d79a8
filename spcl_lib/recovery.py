"""Crop recovery: does the supervision know what a random crop still shows?

The paper claims that SCL recovers the right supervision when the crop has cut out most of the one
labelled object. Here that is counted, on images whose objects are known, for every source of
supervision: the raw label, the average of the image's predictions (CL), the heatmap read through
the view (SCL). Ours, all of it: the metrics, and the rule that turns a target into a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_lib import binary
from spcl_lib.bank import HeatmapBank
from spcl_lib.losses import presence_in
from spcl_lib.views import Views
from spcl_lib.visibility import LIMITS, VISIBILITY, in_view, visibility

# A target that falls below this share of the whole image's says: not in this view. Chosen on one
# run (SCL, seed 0, scenes) before others were measured; FALLS shows what other shares would give.
FALL = 0.8
FALLS = (0.4, 0.5, 0.6, 0.7, FALL, 0.9, 1.0)
NOT_THERE = "not in the image"
GROUPS = ("labelled", "unlabelled", "all")

Row = dict[str, object]


def said(bank: HeatmapBank, indices: Tensor, views: Views, grid: int) -> Tensor:
    """What running averages say of every class in the views: the target, pooled.

    Heatmaps (SCL) are read through the view. Averages with one value per class (CL) know nothing
    of views and are read whole.

    Args:
        bank: the running averages.
        indices: (B,) int64.
        views: B views.
        grid: G, at which the training reads them.

    Returns:
        (B, C) in [0, 1]; 0 where nothing has been seen.
    """
    if bank.size == 1:
        views, grid = Views.whole(len(indices)), 1
    parts = [
        presence_in(*bank.read(i, v, grid))
        for i, v in zip(indices.split(1024), _split(views, 1024), strict=True)
    ]
    return torch.cat(parts)


def said_of_whole(bank: HeatmapBank, indices: Tensor) -> Tensor:
    """(B, C) what running averages say of the whole images."""
    return said(bank, indices, Views.whole(len(indices)), bank.size)


def _split(views: Views, size: int) -> list[Views]:
    return [views[i : i + size] for i in range(0, len(views), size)]


def groups(observed: Tensor) -> dict[str, Tensor]:
    """The pairs of image and class that are asked about apart, (N, C) bool each; see GROUPS."""
    every = torch.ones_like(observed)
    return dict(zip(GROUPS, (observed, ~observed, every), strict=True))


def judged(target: Tensor, fraction: Tensor, observed: Tensor) -> list[Row]:
    """How well targets say what is in the views.

    Args:
        target: (M, C) in [0, 1].
        fraction: (M, C) visible fractions.
        observed: (M, C) bool, the single labels of the viewed images.

    Returns:
        One row for every group and every limit of LIMITS, in percent: AP and AUROC are means over
        classes; "chance" is the AP of a constant; AP_wrong is the AP of finding what is *not* in
        the view; ECE is the expected calibration error over 10 bins, all classes pooled.
    """
    rows = []
    for least in LIMITS:
        truth = in_view(fraction, least)
        for name, asked in groups(observed).items():
            rows.append({
                "group": name, "least": least,
                "AP": binary.over_classes(binary.average_precision, target, truth, asked),
                "AP_wrong": binary.over_classes(binary.average_precision, -target, ~truth, asked),
                "AUROC": binary.over_classes(binary.auroc, target, truth, asked),
                "chance": binary.over_classes(_share, target, truth, asked),
                "ECE": binary.reliability(target[asked], truth[asked]).error(),
            })  # fmt: skip
    return rows


def _share(_: Tensor, truth: Tensor) -> float:
    return 100 * float(truth.double().mean())


def calibration(target: Tensor, fraction: Tensor, observed: Tensor) -> list[Row]:
    """Reliability curves for every group; arguments as in `judged`. Shares and scores in [0, 1]."""
    truth, rows = in_view(fraction), []
    for name, asked in groups(observed).items():
        found = binary.reliability(target[asked], truth[asked])
        rows.append({"group": name, "score": found.score.tolist(), "share": found.share.tolist(),
                     "count": found.count.tolist()})  # fmt: skip
    return rows


def by_visibility(target: Tensor, fraction: Tensor, observed: Tensor) -> list[Row]:
    """Mean target by how much of the class the view shows; arguments as in `judged`."""
    group, rows = visibility(fraction), []
    names = (*VISIBILITY, NOT_THERE)
    for who, asked in (("labelled", observed), ("unlabelled", ~observed)):
        for number, name in zip((*range(len(VISIBILITY)), -1), names, strict=True):
            found = target[asked & (group == number)]
            if len(found):
                rows.append({"group": who, "visibility": name, "target": float(found.mean()),
                             "count": len(found)})  # fmt: skip
    return rows


def says_absent(target: Tensor, whole: Tensor, fall: float = FALL) -> Tensor:
    """Our rule that turns a target into a decision: it has fallen below a share of the whole's.

    The yardstick is what the same averages say of the same class in the whole image, so that it
    fits any class, image and epoch. A target that does not depend on the view never decides so.

    Args:
        target: what is said of the view, any shape.
        whole: what is said of the whole image, same shape.
        fall: the share.
    """
    return (target > 0) & (target < fall * whole)  # exactly 0: nothing has been seen


def decisions(
    bank: HeatmapBank,
    indices: Tensor,
    views: Views,
    fraction: Tensor,
    observed: Tensor,
    grid: int,
    falls: Sequence[float] = (FALL,),
) -> list[Row]:
    """Wrong labels that the target corrects and right ones that it spoils, in percent of each.

    A label is wrong for a view when its class is not in the view. `says_absent` corrects it; where
    the class is in the view, it spoils the label.

    Args:
        bank: the running averages.
        indices: (M,) int64, images of the bank.
        views: M views.
        fraction: (M, C) visible fractions.
        observed: (M, C) bool, the single labels of the viewed images.
        grid: as in `said`.
        falls: shares to decide by.

    Returns:
        A row for each of `falls`: fall, corrected, spoiled (NaN where there is none to decide on),
        and the counts wrong and right.
    """
    target = said(bank, indices, views, grid)[observed]  # (M,) of the labelled class
    whole = said_of_whole(bank, indices)[observed]
    left = fraction[observed]
    known = ~left.isnan()
    wrong, right = known & ~in_view(left), known & in_view(left)
    rows = []
    for fall in falls:
        absent = says_absent(target, whole, fall).double()
        rows.append({
            "fall": fall, "corrected": 100 * float(absent[wrong].mean()),
            "spoiled": 100 * float(absent[right].mean()),
            "wrong": int(wrong.sum()), "right": int(right.sum()),
        })  # fmt: skip
    return rows
