"""Localisation: do score maps and heatmaps lie where the objects are?

The pointing game asks whether the highest cell of a class's map is on an object of the class. Its
tolerance is that of its authors (15 pixels of about 500: Zhang et al., 2016), as a share of the
side. The IoU (intersection over union) asks whether the map, cut at a threshold, has the object's
shape. Ours: each map is divided by its own maximum.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.data.image_set import ImageSet

TOLERANCE = 0.03  # share of the image's side
# Shares of the map's maximum, up to 0.99: a confident map is near its maximum even off the object.
THRESHOLDS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.97, 0.98, 0.99)
_STEP = 64  # images at a time


def localise(
    maps: Tensor, data: ImageSet, observed: Tensor | None = None
) -> dict[str, dict[str, float]]:
    """Compares maps (N, C, G, G), in any scale, with the regions of the classes in the images.

    For "all" and, with the single labels `observed` (N, C), for "labelled" and "unlabelled" classes
    it gives, in percent, means over pairs of image and present class: pointing, its chance level,
    IoU at the best threshold, and the IoU of the whole image. Images with even numbers choose the
    threshold, the other images give the values.
    """
    parts = []
    for indices in torch.arange(len(data)).split(_STEP):
        regions = data.regions(indices)  # (B, C, S, S)
        image, label = regions.flatten(2).any(2).nonzero(as_tuple=True)
        objects, chosen = regions[image, label], maps[indices][image, label].float()  # (M, S, S)
        area = objects.float().mean((1, 2))
        where = (indices[image], label)
        parts.append((*where, *pointing(chosen, objects), overlaps(chosen, objects), area))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    image, label, hit, chance, iou, area = columns
    even = image % 2 == 0
    best = int(iou[even].mean(0).argmax())
    asked = {"all": ~even}
    if observed is not None:
        labelled = observed[image, label]
        asked |= {"labelled": ~even & labelled, "unlabelled": ~even & ~labelled}
    values = {"pointing": hit, "pointing_chance": chance, "iou": iou[:, best], "iou_whole": area}
    return {
        group: {name: 100 * float(value[pairs].double().mean()) for name, value in values.items()}
        for group, pairs in asked.items()
    }


def pointing(maps: Tensor, objects: Tensor, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor]:
    """The pointing game: is the centre of the highest cell on the object, or next to it?

    Maps are (M, G, G), objects (M, S, S) bool; a pixel counts as the circle through its corners,
    and `tolerance` is a share of the side. It gives (M,) the share of the highest cells that hit;
    and (M,) that of all cells, the chance level.
    """
    side = objects.shape[-1]
    distances = torch.cdist(_centres(maps.shape[-1]), _centres(side))  # (G * G, S * S)
    near = distances <= tolerance + math.sqrt(0.5) / side + 1e-6
    hits = (objects.flatten(1).float() @ near.T.float()) > 0  # (M, G * G)
    cells = maps.flatten(1)
    highest = cells == cells.amax(1, keepdim=True)
    return (hits & highest).sum(1) / highest.sum(1), hits.float().mean(1)


def _centres(count: int) -> Tensor:
    """(count * count, 2) y, x of the centres of a square's cells, as shares of its side."""
    line = (torch.arange(count) + 0.5) / count
    return torch.cartesian_prod(line, line)


def overlaps(maps: Tensor, objects: Tensor) -> Tensor:
    """IoU (M, T) of objects (M, S, S) and where maps (M, G, G) reach T shares of their maximum.

    It is 0 for a map that is 0 everywhere.
    """
    size, inside = objects.shape[1:], objects.flatten(1)
    large = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False).flatten(1)
    large = large / large.amax(1, keepdim=True).clamp(min=1e-9)
    found = []
    for threshold in torch.tensor(THRESHOLDS):
        region = large >= threshold
        found.append((region & inside).sum(1) / (region | inside).sum(1).clamp(min=1))
    return torch.stack(found, 1)
