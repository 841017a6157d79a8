"""Metrics of multi-label classification, and the scores that they use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.model import Images, autocast, normalise
from spcl_lib.pooling import Pooling, pooling_of
from spcl_lib.system.compiled import call, load_compiled
from spcl_lib.system.shapes import Shape, require_size, require_tensor

_EXACT_AS_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)
_NOT_FINITE = "scores must be finite: NaN or infinity among them"


def average_precisions(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Average precision of every class, in percent; NaN for a class without a positive.

    AP = sum over distinct scores of (gain in recall) * (precision at that score). This is
    scikit-learn's definition without interpolation. Equal scores count together, so the order of
    the images does not matter. float32 scores use `evaluate.c`, if this machine has a C compiler.

    Args:
        scores: (N, C), higher means more likely present.
        labels: (N, C), 1 or True where the class is present.
        ignored: (N, C) bool; True where an image is left out of the ranking of a class.

    Returns:
        (C,) float64.

    Raises:
        ValueError: shapes differ or are not (N, C), `ignored` is not bool, a label is neither 0
            nor 1, or scores are not finite.
    """
    require_tensor("scores", scores, ("N", "C"), "float")
    labels = _as_bool("labels", labels, scores.shape, ignored)
    scores = scores.detach()
    library = load_compiled(Path(__file__).with_suffix(".c"))
    places = {tensor.device.type for tensor in (scores, labels, ignored) if tensor is not None}
    if library is not None and scores.dtype in _EXACT_AS_FLOAT32 and places == {"cpu"}:
        result = torch.empty(scores.shape[1], dtype=torch.float64)
        failed = call(
            library.average_precisions, scores.float(), labels, ignored, result,
            *scores.shape,
        )  # fmt: skip
        if failed == 2:
            raise ValueError(_NOT_FINITE)
        if not failed:
            return result
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(_NOT_FINITE)
    ranked, order = scores.sort(0, descending=True)  # (N, C)
    counted = torch.ones_like(labels, dtype=torch.bool) if ignored is None else ~ignored
    hits = (labels & counted).gather(0, order).double().cumsum(0)
    ranks = counted.gather(0, order).double().cumsum(0)
    precision = hits / ranks.clamp(min=1)
    last = torch.ones_like(ranked, dtype=torch.bool)  # the last image of each group of ties
    last[:-1] = ranked[:-1] != ranked[1:]
    before = torch.where(last, hits, 0).cummax(0).values.roll(1, 0)  # hits of the earlier groups
    before[0] = 0
    positives = hits[-1]
    return 100 * torch.where(last, (hits - before) * precision, 0).sum(0) / positives


def mean_average_precision(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> float:
    """Gives mAP in percent: the mean AP over the classes that have a positive.

    Classes without a positive have no AP and do not count (scikit-learn and torchmetrics count
    them as 0); `evaluate_scores` returns their number. NaN if no class has a positive.

    Args:
        scores: (N, C), higher means more likely present.
        labels: (N, C), 1 or True where the class is present.
        ignored: (N, C) bool; True where an image is left out of the ranking of a class.

    Raises:
        ValueError: see `average_precisions`.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.3]])
        >>> labels = torch.tensor([[1, 0], [0, 1], [1, 0]])
        >>> mean_average_precision(scores, labels)
        100.0
    """
    return float(average_precisions(scores, labels, ignored).nanmean())


def top1_accuracy(scores: Tensor, labels: Tensor, ignored: Tensor | None = None) -> float:
    """Share of the images whose highest-ranked class is one of their labels, in percent.

    Images without a label do not count; NaN if no image has a label. With ReaL's labels this is
    ReaL accuracy (Beyer et al., 2020, "Are we done with ImageNet?").

    Args:
        scores: (N, C), higher means more likely present; the first class wins a tie.
        labels: (N, C), 1 or True where the class is present.
        ignored: (N, C) bool; images whose highest-ranked class is ignored are left out.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.3]])
        >>> labels = torch.tensor([[1, 1], [1, 0], [0, 0]], dtype=torch.bool)
        >>> top1_accuracy(scores, labels)
        50.0
    """
    require_tensor("scores", scores, ("N", "C"), "float")
    labels = _as_bool("labels", labels, scores.shape, ignored)
    highest = scores.argmax(1, keepdim=True)
    ignored = torch.zeros_like(labels) if ignored is None else ignored
    counted = (labels & ~ignored).any(1) & ~ignored.gather(1, highest)[:, 0]
    return float(100 * labels.gather(1, highest)[counted, 0].double().mean())


def precision_recall(
    chosen: Tensor, labels: Tensor, ignored: Tensor | None = None
) -> dict[str, float]:
    """Precision, recall and F1 in percent, overall (O) and as an average over classes (C).

    The names are usual in the field (CP, CR, CF1, OP, OR, OF1). CF1 is the F1 of the averages CP
    and CR. A class that is never chosen has precision 0. CP and CR leave out classes without a
    positive.

    Args:
        chosen: (N, C) predictions, 1 or True where the class is predicted.
        labels: (N, C), 1 or True where the class is present.
        ignored: (N, C) bool; a prediction there is neither right nor wrong.

    Raises:
        ValueError: see `average_precisions`.
    """
    chosen = _as_bool("chosen", chosen, ("N", "C"))
    labels = _as_bool("labels", labels, chosen.shape, ignored)
    if ignored is not None:
        chosen, labels = chosen & ~ignored, labels & ~ignored
    right = (chosen & labels).sum(0).double()  # (C,)
    predicted, present = chosen.sum(0).double(), labels.sum(0).double()
    counted = present > 0
    class_precision = (right / predicted.clamp(min=1))[counted].mean()
    class_recall = (right / present.clamp(min=1))[counted].mean()
    overall_precision = right.sum() / predicted.sum().clamp(min=1)
    overall_recall = right.sum() / present.sum().clamp(min=1)
    values = {
        "CP": class_precision, "CR": class_recall, "CF1": _f1(class_precision, class_recall),
        "OP": overall_precision, "OR": overall_recall,
        "OF1": _f1(overall_precision, overall_recall),
    }  # fmt: skip
    return {name: float(100 * value) for name, value in values.items()}


def _as_bool(name: str, values: Tensor, shape: Shape, ignored: Tensor | None = None) -> Tensor:
    """Checked labels or predictions as bool; a label of -1 would count as present."""
    require_tensor(name, values, shape)
    if ignored is not None:
        require_tensor("ignored", ignored, values.shape, "bool")
    if values.dtype != torch.bool and not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"{name} must be 0 or 1; got others among them")
    return values.bool()


def _f1(precision: Tensor, recall: Tensor) -> Tensor:
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def evaluate_scores(
    scores: Tensor, labels: Tensor, classes: tuple[str, ...], ignored: Tensor | None = None
) -> dict[str, object]:
    """All metrics of a run, in percent.

    Args:
        scores: (N, C) probabilities.
        labels: (N, C) bool, full labels.
        classes: C names.
        ignored: (N, C) bool; labels that are neither right nor wrong. An ignored class can still
            be among the 3 highest of an image.

    Returns:
        mAP, AP per class (None without a positive), the number of classes without a positive, and
        the accuracy of the highest-ranked class. Precision, recall and F1 at probability 0.5, and
        for the 3 highest-ranked classes of every image.

    Raises:
        ValueError: see `average_precisions`; or the number of names is not C.
    """
    require_tensor("scores", scores, ("N", "C"), "float")
    if len(classes) != scores.shape[1]:
        raise ValueError(f"classes must be {scores.shape[1]} names; got {len(classes)}")
    ap = average_precisions(scores, labels, ignored)
    top = min(3, scores.shape[1])
    highest = torch.zeros_like(scores, dtype=torch.bool)
    highest.scatter_(1, scores.topk(top, 1).indices, True)
    return {
        "mAP": float(ap.nanmean()),
        "AP": {c: None if a != a else a for c, a in zip(classes, ap.tolist(), strict=True)},
        "classes_without_positive": int(ap.isnan().sum()),
        "top1_accuracy": top1_accuracy(scores, labels, ignored),
        "at_0.5": precision_recall(scores >= 0.5, labels, ignored),
        "top_3": precision_recall(highest, labels, ignored),
    }


def _batches(count: int, size: int = 128) -> Iterator[slice]:
    return (slice(i, min(i + size, count)) for i in range(0, count, size))


def prepare(images: Tensor, side: int) -> Tensor:
    """Network input (B, 3, side, side) of whole images (B, 3, H, W), uint8 or floats in 0..255.

    They are resized, antialiased, and then normalised; images of this side keep their values. This
    function has no state and no branches, so it can be exported with a model, for any H and W.
    """
    resized = F.interpolate(
        images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return normalise(resized)


@torch.no_grad()
def predict_maps(model: nn.Module, images: Images, side: int, amp: str = "auto") -> Tensor:
    """Score-map logits (N, C, G, G) of whole images.

    Args:
        model: gives score maps.
        images: (N, 3, H, W) uint8, or their features (N, D, G, G).
        side: side of the resized images, in pixels; features stay unchanged.
        amp: see `model.autocast`.

    Raises:
        ValueError: there is no image, or the shape or type is another one.
    """
    require_size(len(images), "the number of images")
    require_size(side, "side")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    out = []
    for part in _batches(len(images)):
        batch = images[part]
        require_tensor("images", batch, ("N", "K", "H", "W"))
        batch = batch.to(device)
        if batch.is_floating_point():
            with autocast(device, amp):
                out.append(model.classify(batch).float().cpu())
            continue
        network_input = prepare(batch, side)
        with autocast(device, amp):
            out.append(model(network_input).float().cpu())
    model.train(was_training)
    return torch.cat(out)


class LabelledImages(Protocol):
    """The data of an evaluation, such as `data.image_set.ImageSet`."""

    images: Images
    labels: Tensor  # (N, C) bool
    classes: tuple[str, ...]
    ignored: Tensor | None  # (N, C) bool


def predict_scores(
    model: nn.Module,
    images: Images,
    side: int,
    poolings: Sequence[Pooling],
    amp: str = "auto",
    rows: range | None = None,
) -> list[Tensor]:
    """Probabilities (N, C) of whole images on the CPU, one tensor for each pooling of their maps.

    The other arguments are those of `evaluate`. With `rows`, only the images with these numbers.
    """
    parts, rows = [], range(len(images)) if rows is None else rows
    for part in _batches(len(rows)):
        some = rows[part]
        maps = predict_maps(model, images[some.start : some.stop : some.step], side, amp)
        parts.append([pooling(maps).sigmoid() for pooling in poolings])
    return [torch.cat(scores) for scores in zip(*parts, strict=True)]


def evaluate(
    model: nn.Module,
    data: LabelledImages,
    side: int,
    amp: str = "auto",
    pooling: Pooling | None = None,
) -> dict[str, object]:
    """All metrics of a model on a split; see `evaluate_scores`.

    Args:
        model: gives score maps.
        data: the split.
        side: side of the resized images, in pixels.
        amp: see `model.autocast`.
        pooling: pooling of the score maps; by default the model's own.
    """
    (scores,) = predict_scores(model, data.images, side, [pooling or pooling_of(model)], amp)
    return evaluate_scores(scores, data.labels, data.classes, data.ignored)
