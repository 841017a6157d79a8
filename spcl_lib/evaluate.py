"""Metrics of multi-label classification, and the scores that they use.

All metrics take scores or predictions (N, C) and labels (N, C), 1 or True where the class is
present, and give percent. With `ignored` (N, C) bool, an image is left out for a class. Without
anything to count mAP, AP, top-1, CP, CR and CF1 are NaN, and OP, OR and OF1 are 0.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.model import Images, autocast, normalise
from spcl_lib.pooling import Pooling
from spcl_lib.system.shapes import require_tensor

_AT_ONCE = 128  # images


def average_precisions(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> Tensor:
    """(C,) float64 average precision of every class; NaN for a class without a positive.

    AP = sum over distinct scores of (gain in recall) * (precision at that score), which is
    scikit-learn's definition.
    """
    labels = _checked(scores, labels, ignored)
    columns, positive = _columns(scores.detach()), _columns(labels)  # (C, N)
    counted = None if ignored is None else _columns(~ignored)

    def of_class(c: int) -> float:
        keys = _ranks(columns[c]) << 1 | positive[c]
        return _average_precision(keys if counted is None else keys[counted[c]])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy sorts without the GIL
        found = list(pool.map(of_class, range(scores.shape[1])))
    return torch.tensor(found, dtype=torch.float64)


def _columns(values: Tensor) -> np.ndarray:
    """(C, N), contiguous; numpy has no bfloat16."""
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return values.cpu().T.contiguous().numpy()


def _ranks(scores: np.ndarray) -> np.ndarray:
    """(N,) int64 that are ordered as the scores (N,), with room for one bit more.

    Sorted with the label in that bit, they take half of the time of an argsort of the scores.
    """
    if scores.dtype != np.float32:
        return np.unique(scores, return_inverse=True)[1]
    bits = (scores + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0
    return np.where(bits < 0, np.int32(-(2**31)) - bits, bits).astype(np.int64)


def _average_precision(keys: np.ndarray) -> float:
    """AP in percent of (rank << 1 | label) in any order; NaN without a positive."""
    keys = np.sort(keys)[::-1]  # the highest score first
    hits = np.cumsum(keys & 1)
    if not len(keys) or not hits[-1]:
        return math.nan
    last = np.flatnonzero(np.append(keys[1:] >> 1 != keys[:-1] >> 1, True))  # of equal scores
    gained = np.diff(hits[last], prepend=0)
    return 100 * float((gained * (hits[last] / (last + 1))).sum() / hits[-1])


def mean_average_precision(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> float:
    """Gives mAP in percent: the mean AP over the classes that have a positive.

    The others do not count (scikit-learn and torchmetrics count them as 0).
    """
    return float(average_precisions(scores, labels, ignored).nanmean())


def top1_accuracy(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> float:
    """Percent of the images whose highest-ranked class is one of their labels.

    Images without a label do not count, nor those whose highest-ranked class is ignored. With
    ReaL's labels this is ReaL accuracy (Beyer et al., 2020, "Are we done with ImageNet?").
    """
    labels = _checked(scores, labels, ignored)
    highest = scores.argmax(1, keepdim=True)
    ignored = torch.zeros_like(labels) if ignored is None else ignored
    counted = (labels & ~ignored).any(1) & ~ignored.gather(1, highest)[:, 0]
    return float(100 * labels.gather(1, highest)[counted, 0].double().mean())


def precision_recall(
    chosen: Tensor, labels: Tensor, ignored: Tensor | None = None
) -> dict[str, float]:
    """Precision, recall and F1, overall (OP, OR, OF1) and as a mean over classes (CP, CR, CF1).

    A class that is never chosen has precision 0; one without a positive is left out.
    """
    labels, chosen = _checked(chosen, labels, ignored), _as_bool("chosen", chosen)
    if ignored is not None:
        chosen, labels = chosen & ~ignored, labels & ~ignored
    right = (chosen & labels).sum(0).double()  # (C,)
    predicted, present = chosen.sum(0).double(), labels.sum(0).double()
    counted = present > 0
    values = {
        "CP": (right / predicted.clamp(min=1))[counted].mean(),
        "CR": (right / present.clamp(min=1))[counted].mean(),
        "OP": right.sum() / predicted.sum().clamp(min=1),
        "OR": right.sum() / present.sum().clamp(min=1),
    }
    for kind in ("C", "O"):
        p, r = values[f"{kind}P"], values[f"{kind}R"]
        values[f"{kind}F1"] = 2 * p * r / (p + r).clamp(min=1e-12)
    return {name: float(100 * value) for name, value in values.items()}


def _checked(scores: Tensor, labels: Tensor, ignored: Tensor | None) -> Tensor:
    """The labels as bool."""
    require_tensor("scores", scores, ("N", "C"))
    require_tensor("labels", labels, scores.shape)
    if ignored is not None:
        require_tensor("ignored", ignored, scores.shape, "bool")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores must be finite: NaN or infinity among them")
    return _as_bool("labels", labels)


def _as_bool(name: str, values: Tensor) -> Tensor:
    """Labels or predictions as bool; -1 would count as present."""
    if not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"{name} must be 0 or 1; got others among them")
    return values.bool()


def evaluate_scores(
    scores: Tensor, labels: Tensor, classes: tuple[str, ...], ignored: Tensor | None = None
) -> dict[str, object]:
    """All metrics of a run, from probabilities and the names of the classes.

    An AP is None without a positive. "top_3" chooses the 3 highest-ranked classes of every image.
    """
    require_tensor("scores", scores, ("N", "C"), "float")
    ap = average_precisions(scores, labels, ignored)
    highest = torch.zeros_like(scores, dtype=torch.bool)
    highest.scatter_(1, scores.topk(min(3, scores.shape[1]), 1).indices, True)
    return {
        "mAP": float(ap.nanmean()),
        "AP": {c: None if a != a else a for c, a in zip(classes, ap.tolist(), strict=True)},
        "classes_without_positive": int(ap.isnan().sum()),
        "top1_accuracy": top1_accuracy(scores, labels, ignored),
        "at_0.5": precision_recall(scores >= 0.5, labels, ignored),
        "top_3": precision_recall(highest, labels, ignored),
    }


def prepare(images: Tensor, side: int) -> Tensor:
    """Network input (B, 3, side, side) of whole images (B, 3, H, W) in 0..255."""
    return normalise(resize(images.float(), side, side))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Images of another size (B, 3, height, width), as Pillow makes them but for rounding."""
    size = height, width
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


@torch.no_grad()
def predict_maps(model: nn.Module, images: Images, side: int, amp: str = "off") -> Tensor:
    """Score-map logits (N, C, G, G) of whole images, on the CPU.

    uint8 images are resized to `side` pixels; floats are features. `amp` as in `model.autocast`.
    """
    device, out = next(model.parameters()).device, []
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    for part in torch.arange(len(images)).split(_AT_ONCE):
        batch = images[part].to(device)
        is_features = batch.is_floating_point()
        batch = batch if is_features else prepare(batch, side)
        with autocast(device, amp):
            out.append((model.classify if is_features else model)(batch).float().cpu())
    for part, mode in modes:  # some parts of a model may stay frozen in its training
        part.training = mode
    return torch.cat(out)


def predict_scores(
    model: nn.Module, images: Images, side: int, poolings: Sequence[Pooling], amp: str = "off"
) -> list[Tensor]:
    """Probabilities (N, C) of whole images, one tensor for each pooling of their maps."""
    parts = []
    for part in torch.arange(len(images)).split(_AT_ONCE):
        maps = predict_maps(model, images[part], side, amp)
        parts.append([pooling(maps).sigmoid() for pooling in poolings])
    return [torch.cat(scores) for scores in zip(*parts, strict=True)]
