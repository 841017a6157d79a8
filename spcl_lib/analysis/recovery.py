"""Crop recovery: does the supervision know what a random crop still shows?

The paper claims that SCL recovers the right supervision when the crop has cut out most of the one
labelled object. This module measures the claim on images whose objects are known, for every source
of supervision: the raw label, the average of the image's predictions (CL), the heatmap read through
the view (SCL). Ours: the metrics, and the rule that turns a target into a decision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spcl_lib.analysis import calibration
from spcl_lib.analysis.statistics import Rows
from spcl_lib.analysis.visibility import LIMITS, VISIBILITY, in_view, visibility
from spcl_lib.bank import HeatmapBank
from spcl_lib.pooling import MEAN_POOLING, Pooling
from spcl_lib.views import Views

# A class counts as not in the view if its target is below this share of its whole image's target.
# Chosen on one run (SCL, seed 0, scenes) before others were measured. FALLS are other shares.
FALL = 0.8
FALLS = (0.4, 0.5, 0.6, 0.7, FALL, 0.9, 1.0)
NOT_THERE = "not in the image"
QUESTION_GROUPS = ("labelled", "unlabelled", "all")


def presence_in_views(
    bank: HeatmapBank,
    indices: Tensor,
    views: Views,
    grid: int,
    pooling: Pooling = MEAN_POOLING,
) -> Tensor:
    """The pooled target of every class in the views, from running averages.

    Heatmaps (SCL) are read through the view. CL has one average per class, which knows nothing of
    views, so it is read whole.

    Args:
        bank: the running averages.
        indices: (B,) int64.
        views: B views.
        grid: G, the grid at which the training reads the bank.
        pooling: pooling of the network.

    Returns:
        (B, C) in [0, 1]; 0 where nothing has been seen.
    """
    if bank.size == 1:
        views, grid = Views.whole(len(indices)), 1
    parts = torch.arange(len(indices)).split(1024)
    return torch.cat([pooling.presence(*bank.read(indices[p], views[p], grid)) for p in parts])


def presence_in_images(
    bank: HeatmapBank, indices: Tensor, pooling: Pooling = MEAN_POOLING
) -> Tensor:
    """(B, C) pooled target of every class in the whole images; see `presence_in_views`."""
    return presence_in_views(bank, indices, Views.whole(len(indices)), bank.size, pooling)


def question_groups(observed: Tensor) -> dict[str, Tensor]:
    """For each of QUESTION_GROUPS, the pairs of image and class that belong to it, (N, C) bool."""
    every = torch.ones_like(observed)
    return dict(zip(QUESTION_GROUPS, (observed, ~observed, every), strict=True))


def score_target(target: Tensor, fraction: Tensor, observed: Tensor) -> Rows:
    """Measures how well targets say which classes are in the views.

    Args:
        target: (M, C) in [0, 1].
        fraction: (M, C) visible fractions.
        observed: (M, C) bool, the single labels of the viewed images.

    Returns:
        One row for every group and every limit of LIMITS, in percent. AP and AUROC are means over
        classes. "chance" is the AP of a constant. AP_wrong is the AP of finding classes that are
        *not* in the view. ECE is the expected calibration error of all classes together, 10 bins.
    """
    rows = []
    for least in LIMITS:
        truth = in_view(fraction, least)
        for name, asked in question_groups(observed).items():
            rows.append({
                "group": name, "least": least,
                "AP": calibration.over_classes(calibration.average_precision, target, truth, asked),
                "AP_wrong": calibration.over_classes(
                    calibration.average_precision, -target, ~truth, asked
                ),
                "AUROC": calibration.over_classes(calibration.auroc, target, truth, asked),
                "chance": calibration.over_classes(_share, target, truth, asked),
                "ECE": calibration.reliability(target[asked], truth[asked]).error(),
            })  # fmt: skip
    return rows


def _share(_: Tensor, truth: Tensor) -> float:
    return 100 * float(truth.double().mean())


def reliability_rows(target: Tensor, fraction: Tensor, observed: Tensor) -> Rows:
    """Reliability curves for every group, in [0, 1]; arguments as in `score_target`."""
    truth, rows = in_view(fraction), []
    for name, asked in question_groups(observed).items():
        found = calibration.reliability(target[asked], truth[asked])
        rows.append({"group": name, "score": found.score.tolist(), "share": found.share.tolist(),
                     "count": found.count.tolist()})  # fmt: skip
    return rows


def target_by_visibility(target: Tensor, fraction: Tensor, observed: Tensor) -> Rows:
    """Mean target by how much of the class the view shows; arguments as in `score_target`."""
    group, rows = visibility(fraction), []
    names = (*VISIBILITY, NOT_THERE)
    for who, asked in (("labelled", observed), ("unlabelled", ~observed)):
        for number, name in zip((*range(len(VISIBILITY)), -1), names, strict=True):
            found = target[asked & (group == number)]
            if len(found):
                rows.append({"group": who, "visibility": name, "target": float(found.mean()),
                             "count": len(found)})  # fmt: skip
    return rows


def is_absent(target: Tensor, whole: Tensor, fall: float = FALL) -> Tensor:
    """Our rule for "not in the view": the target is below a share of the whole image's target.

    Both targets come from the same averages, so the rule suits any class, image and epoch. If a
    target does not depend on the view, the rule never says "not in the view".

    Args:
        target: target for the view, any shape.
        whole: target for the whole image, same shape.
        fall: the share.
    """
    return (target > 0) & (target < fall * whole)  # exactly 0 means that nothing has been seen


def count_corrections(
    bank: HeatmapBank,
    indices: Tensor,
    views: Views,
    fraction: Tensor,
    observed: Tensor,
    grid: int,
    falls: Sequence[float] = (FALL,),
    pooling: Pooling = MEAN_POOLING,
) -> Rows:
    """Counts wrong labels that the target corrects, and right labels that it spoils, in percent.

    A label is wrong for a view if its class is not in the view. If `is_absent` is true for a wrong
    label, the label is corrected. If it is true for a right label, the label is spoiled.

    Args:
        bank: the running averages.
        indices: (M,) int64, images of the bank.
        views: M views.
        fraction: (M, C) visible fractions.
        observed: (M, C) bool, the single labels of the viewed images.
        grid: as in `presence_in_views`.
        falls: shares for `is_absent`.
        pooling: pooling of the network.

    Returns:
        A row for each of `falls`: fall, corrected and spoiled in percent (NaN if there is no such
        label), and the number of wrong and of right labels.
    """
    # (M,) of the labelled class:
    target = presence_in_views(bank, indices, views, grid, pooling)[observed]
    whole = presence_in_images(bank, indices, pooling)[observed]
    left = fraction[observed]
    known = ~left.isnan()
    wrong, right = known & ~in_view(left), known & in_view(left)
    rows = []
    for fall in falls:
        absent = is_absent(target, whole, fall).double()
        rows.append({
            "fall": fall, "corrected": 100 * float(absent[wrong].mean()),
            "spoiled": 100 * float(absent[right].mean()),
            "wrong": int(wrong.sum()), "right": int(right.sum()),
        })  # fmt: skip
    return rows
