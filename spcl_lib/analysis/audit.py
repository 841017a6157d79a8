"""Audit: labels that training images lack, and labels that look wrong, by a run's own heatmaps.

Measured (ours; means over 3 runs, in %; the README's runs and leagues with mean pooling): how many
of the first 100 and 500 missing labels are right, and for how many of the right ones among the
first 100 the highest cell is on an object. "network": `maps_of(run, predict=True)`. AN keeps no
averages. A random pair is right in 2.5 % (VOC 2007), 3.2 % (coco18) and 12.5 % (scenes). A random
cell is on an object in about 53 % (VOC 2007) and 19 % (scenes; for AN 15 %).

| run      | maps     | VOC 2007: 100, 500, place | coco18: 100, 500 | scenes: 100, 500, place |
|----------|----------|---------------------------|------------------|-------------------------|
| AN       | network  | 95.0, 75.3, 74            | 94.0, 80.2       | 96.3, 82.7, 85          |
| REN+SCL  | averages | 99.3, 83.3, 66            | 99.7, 89.4       | 92.3, 85.5, 70          |
| REN+SCL  | network  | 99.0, 84.1, 73            | 99.0, 92.5       | 93.3, 91.9, 78          |
| GR+SCL   | averages | 99.7, 84.8, 68            | 71.7, 63.7       | 97.3, 93.1, 77          |
| GR+SCL   | network  | 100, 84.9, 68             | 63.0, 55.4       | 99.7, 98.7, 83          |

So averages find missing labels on photographs better than AN's network, and about as well as the
network of the same run, at no cost. They say little about the place on VOC 2007, and the network is
better on scenes. On coco18 all of the first 100 are persons. GR overestimates: take REN.

Wrong labels (one run each): we replaced the labels of 5 % of the training images by a class that is
not there, and trained on them. Of as many first suggestions as there are wrong labels, right are,
with averages (network): VOC 2007: AN (50), REN+SCL 53 (53), GR+SCL 37 (36); coco18: AN (54),
REN+SCL 54 (53), GR+SCL 44 (44); scenes: AN (44), REN+SCL 58 (74), GR+SCL 66 (76). Chance is 5. So
on photographs averages find no more of them than AN's network does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.analysis.localisation import pointing
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.store import FinishedRun
from spcl_lib.views import Views

KINDS = ("missing", "wrong")
EXTENT = 0.8  # share of a map's highest value that its box reaches
_STEP = 64  # images at a time

# Gives heatmaps (B, C, G, G) and the presence (B, C) of every class, in [0, 1], for images (B,).
ReadMaps = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Suggestions:
    """M pairs of image and class whose label looks missing, or looks wrong; the surest first.

    Attributes:
        kind: one of KINDS.
        image: (M,) int64, number of the image.
        label: (M,) int64, number of the class.
        score: (M,) in [0, 1]: the presence of a class without a label, or 1 - the presence of a
            class with a label.
        box: (M, 4) x0, y0, x1, y1 as fractions of the image; the whole image for a wrong label.
    """

    kind: str
    image: Tensor
    label: Tensor
    score: Tensor
    box: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def first(self, count: int) -> Suggestions:
        """The first `count` suggestions."""
        parts = (self.image, self.label, self.score, self.box)
        return Suggestions(self.kind, *(part[:count] for part in parts))


def maps_of(run: FinishedRun, predict: bool = False) -> ReadMaps:
    """Reads a run's running averages of its training images.

    The network predicts the maps if the run keeps no averages, if these have no place (CL), or if
    they do not know every image (a short run).

    Args:
        run: the run.
        predict: let the network predict them in any case.
    """
    bank, pooling = run.bank, run.model.pooling

    def read_bank(indices: Tensor) -> tuple[Tensor, Tensor]:
        maps, seen = bank.read(indices, Views.whole(len(indices)), bank.size)
        return maps, pooling.presence(maps, seen)

    usable = bank is not None and bank.size > 1 and bool(bank.seen.flatten(1).any(1).all())
    if usable and not predict:
        return read_bank
    images, config = inputs_of(run.model, run.train, run.config).images, run.config

    def read_network(indices: Tensor) -> tuple[Tensor, Tensor]:
        maps = predict_maps(run.model, images[indices], config.eval_side, config.amp)
        return maps.sigmoid(), pooling(maps).sigmoid()

    return read_network


def suggest(read: ReadMaps, given: Tensor, most: int) -> tuple[Suggestions, Suggestions]:
    """Ranks the labels that look missing, and those that look wrong.

    Args:
        read: gives heatmaps and presence of N images.
        given: (N, C) bool, the labels that the run was trained on.
        most: most suggestions of each kind.
    """
    none = torch.empty((3, 0), dtype=torch.float64)
    missing, wrong = none, none  # rows: score, image, label
    for indices in torch.arange(len(given)).split(_STEP):
        presence, labelled = read(indices)[1].double(), given[indices]
        missing = _best(missing, presence, ~labelled, indices, most)
        wrong = _best(wrong, 1 - presence, labelled, indices, most)
    return _with_boxes("missing", missing, read), _with_boxes("wrong", wrong, read)


def _best(rows: Tensor, score: Tensor, asked: Tensor, indices: Tensor, most: int) -> Tensor:
    image, label = asked.nonzero(as_tuple=True)
    rows = torch.cat([rows, torch.stack((score[asked], indices[image], label))], 1)
    return rows[:, rows[0].argsort(descending=True, stable=True)[:most]]


def _with_boxes(kind: str, rows: Tensor, read: ReadMaps) -> Suggestions:
    image, label = rows[1:].long()
    box = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(image), 1)
    if kind == "missing":
        for which, maps in maps_of_pairs(read, image, label):
            box[which] = boxes(maps)
    return Suggestions(kind, image, label, rows[0].float(), box)


def maps_of_pairs(read: ReadMaps, image: Tensor, label: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Gives the heatmaps of M pairs in parts: their numbers (m,), and the maps (m, G, G).

    Every image is read once, because a network may have to compute its maps.
    """
    images, place = image.unique(return_inverse=True)
    for start in range(0, len(images), _STEP):
        which = ((place >= start) & (place < start + _STEP)).nonzero().flatten()
        maps = read(images[start : start + _STEP])[0]
        yield which, maps[place[which] - start, label[which]]


def boxes(maps: Tensor, extent: float = EXTENT) -> Tensor:
    """Boxes around the highest cells of maps, and the cells joined to them that are almost as high.

    Args:
        maps: (M, G, G), not negative.
        extent: share of the map's highest value that a cell must reach.

    Returns:
        (M, 4) x0, y0, x1, y1 as fractions of the image.
    """
    grid = maps.shape[-1]
    cells = maps.flatten(1)
    high = maps >= extent * maps.amax((1, 2), keepdim=True)
    region = F.one_hot(cells.argmax(1), grid**2).view_as(maps).bool()
    for _ in range(grid**2):
        grown = F.max_pool2d(region.float()[:, None], 3, 1, 1)[:, 0].bool() & high
        if bool((grown == region).all()):
            break
        region = grown
    sides = []
    for line in (region.any(1), region.any(2)):  # (M, G) columns, rows
        number = line.int()
        sides.append((number.argmax(1), grid - number.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack((x0, y0, x1, y1), 1) / grid


# --- how many are right, where all labels are known -----------------------------------------------


@dataclass(frozen=True)
class Precision:
    """How many of the first suggestions are right, in percent.

    Attributes:
        count: number of suggestions.
        right: the class is in the image.
        chance: the same for a pair without a label that is drawn at random.
        place: of the right ones, the highest cell points at an object of the class (see
            `localisation.pointing`); None if the objects are not known.
        place_chance: the same for a cell that is drawn at random.
    """

    count: int
    right: float
    chance: float
    place: float | None = None
    place_chance: float | None = None


def precision_of_missing(
    found: Suggestions, read: ReadMaps, data: ImageSet, given: Tensor
) -> Precision | None:
    """Compares suggestions of the kind "missing" with the full labels.

    Args:
        found: the suggestions.
        read: gives heatmaps of the N images.
        data: the N images with full labels, and with objects if these are known.
        given: (N, C) bool, the labels that the run was trained on.

    Returns:
        None if there are no suggestions, or no other labels than the given ones are known.
    """
    unknown = ~given if data.ignored is None else ~(given | data.ignored)
    counted = unknown[found.image, found.label]  # a label that the evaluation ignores is neither
    image, label = found.image[counted], found.label[counted]
    if not len(image) or not bool((data.labels & ~given).any()):
        return None
    right = data.labels[image, label]
    found_rates = len(image), _percent(right), _percent(data.labels[unknown])
    if all(part is None for part in (data.class_map, data.boxes, data.masks)) or not right.any():
        return Precision(*found_rates)
    hits = []
    for which, maps in maps_of_pairs(read, image[right], label[right]):
        objects = data.regions(image[right][which])
        hits.append(
            torch.stack(pointing(maps, objects[torch.arange(len(which)), label[right][which]]))
        )
    return Precision(*found_rates, *map(_percent, torch.cat(hits, 1)))


def _percent(values: Tensor) -> float:
    return 100 * float(values.double().mean())
