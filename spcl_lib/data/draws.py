"""The draw makes a data set single-label: it keeps one label of every training image.

- "uniform": all positives are equally likely (the paper's setting).
- "cole": uniform too, but exactly the labels that Cole et al. (CVPR 2021, "Multi-Label Learning
  from Single Positive Labels") and many later papers train on. So results can be compared.
- "size", "location": the annotator prefers large objects, or central ones. Arroyo et al. (2023,
  arXiv 2305.15584) study these biases; we follow their published code.

The draw's seed is not the training seed: all methods and training seeds see the same labels.
"""

import numpy as np
import torch
from torch import Tensor

from spcl_lib.data.image_set import ImageSet, Objects
from spcl_lib.system.errors import UserError

NEED_BOXES = ("size", "location")  # for these draws a loader must also read the objects
COLE_SEED = 1200  # the seed of Cole et al.'s experiments
_NEAREST = 1e-6  # least distance from the image's centre, as a fraction of the image's side


def draw_labels(data: ImageSet, draw: str, seed: int) -> Tensor:
    """Keeps one positive label per image: (N, C) bool with exactly one True per row.

    Each image must have a positive label. For "cole", seed 0 means their seed.
    """
    if draw == "uniform":
        return single_label_draw(data.labels, seed)
    if draw == "cole":
        return cole_draw(data.labels, data.ids, seed)
    objects = data.objects
    if data.class_map is not None:
        objects = objects_of_map(data.class_map, len(data.classes))
    if objects is None:
        raise UserError(f"draw '{draw}' needs the boxes of objects: take draw=uniform or draw=cole")
    weights = label_weights(data.labels, objects, draw)
    rng = torch.Generator().manual_seed(seed)
    return _one_per_row(data.labels, torch.multinomial(weights, 1, generator=rng).flatten())


def single_label_draw(labels: Tensor, seed: int) -> Tensor:
    """Keeps one positive of the full labels (N, C) bool per image, drawn uniformly."""
    if int(labels.count_nonzero()) == len(labels):  # ImageNet's random numbers would take 5 GB
        return labels
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.rand(labels.shape, generator=rng).masked_fill(~labels, -1).argmax(1)
    return _one_per_row(labels, chosen)


def cole_draw(labels: Tensor, ids: tuple[str, ...], seed: int = 0) -> Tensor:
    """The draw of Cole et al.: (N, C) bool with exactly one positive per row.

    One NumPy stream serves a whole split, so the result equals theirs on all labelled images of
    VOC2012 or COCO2014, but not on a part of them. The draw goes through the ids sorted as texts,
    as theirs does (COCO's "1000" comes before "9").
    """
    rng = np.random.RandomState(COLE_SEED + seed)
    truth = labels.numpy()
    chosen = torch.empty(len(labels), dtype=torch.int64)
    for row in sorted(range(len(labels)), key=ids.__getitem__):
        positives, negatives = np.flatnonzero(truth[row]), np.flatnonzero(~truth[row])
        rng.shuffle(positives)
        rng.shuffle(negatives)  # unused, but their code does it too, and it advances the stream
        chosen[row] = int(positives[0])
    return _one_per_row(labels, chosen)


def label_weights(labels: Tensor, objects: Objects, draw: str) -> Tensor:
    """How likely an annotator with a bias is to name each label: (N, C) float32, 0 for negatives.

    "size": the sum of the areas of the class's boxes. "location": the sum of 1 / distance between
    the centres of boxes and image, in fractions of width and height. Ours: a label without a box
    gets the mean weight of the other labels of its image; without any box, all are alike.
    """
    x0, y0, x1, y1 = objects.box.unbind(1)
    if draw == "size":
        weight = (x1 - x0) * (y1 - y0)
    else:
        weight = 1 / torch.hypot((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2).clamp(min=_NEAREST)
    weights = torch.zeros(labels.shape)
    weights.index_put_((objects.image, objects.label), weight, accumulate=True)
    known = labels & (weights > 0)
    mean = (weights * known).sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    mean = mean.where(mean > 0, 1)  # 1 if no label of the image has a box
    return weights.where(known, mean) * labels


def objects_of_map(class_map: Tensor, num_classes: int) -> Objects:
    """The smallest box around the visible pixels of every class of an image, in (N, S, S)."""
    from torchvision.ops import masks_to_boxes  # torchvision takes a second to import

    values = torch.arange(1, num_classes + 1, dtype=torch.uint8)
    masks = class_map[:, None] == values[:, None, None]  # (N, C, S, S)
    image, label = masks.flatten(2).any(2).nonzero(as_tuple=True)
    box = masks_to_boxes(masks[image, label])
    box[:, 2:] += 1  # after the last pixel
    return Objects(image, label, box / class_map.shape[-1])


def _one_per_row(labels: Tensor, chosen: Tensor) -> Tensor:
    return torch.zeros_like(labels).scatter_(1, chosen[:, None], True) & labels
