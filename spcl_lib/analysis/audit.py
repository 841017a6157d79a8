"""Audit: labels that training images lack, and labels that look wrong, by a run's own heatmaps.

Both ways are ours; the numbers are of trials that are not kept. Of the first 100 missing labels,
REN + SCL's averages have 99 % or more right on photographs, 92 % on scenes; AN's network 95, 94 and
96 %. GR overestimates on coco18 (72 %): take REN.

Wrong labels: 5 to 6 % of the labels were replaced by a class that is not there. Of as many first
suggestions, 54 % are right on coco18 and 63 % on scenes; by heatmaps alone 50 and 57 %, by an
out-of-fold softmax alone 55 and 53 %. So heatmaps help on scenes only. Draws differ by 8.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.model import normalise
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.store import FinishedRun
from spcl_lib.views import Views

EXTENT = 0.8  # share of a map's highest value that its box reaches
_STEP = 64  # images at a time
_FOLDS, _DECAY = 5, 1.0  # of the softmax; weaker decay learns the wrong labels by heart

# Gives heatmaps (B, C, G, G) and the presence (B, C) of every class, in [0, 1], for images (B,).
ReadMaps = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Suggestions:
    """M pairs of image and class whose label looks missing, or looks wrong; the surest first."""

    kind: str  # "missing" or "wrong"
    image: Tensor  # (M,) int64, number of the image
    label: Tensor  # (M,) int64, number of the class
    score: Tensor  # (M,) in [0, 1], how sure
    box: Tensor  # (M, 4) x0, y0, x1, y1 as fractions; the whole image for a wrong label

    def __len__(self) -> int:
        return len(self.image)

    def first(self, count: int) -> Self:
        """The first `count` suggestions."""
        parts = (self.image, self.label, self.score, self.box)
        return Suggestions(self.kind, *(part[:count] for part in parts))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Numbers of image and class, one pair after the other."""
        return zip(self.image.tolist(), self.label.tolist(), strict=True)


def maps_of(run: FinishedRun, predict: bool = False) -> ReadMaps:
    """Reads a run's running averages of its training images.

    The network predicts the maps, in float32, if `predict` asks for it, if the run keeps no
    averages, if these have no place (CL), or if they do not know every image (a short run).
    """
    bank, pooling = run.bank, run.model.pooling
    usable = bank is not None and bank.size > 1 and bool(bank.seen.flatten(1).any(1).all())

    def read_bank(indices: Tensor) -> tuple[Tensor, Tensor]:
        maps, seen = bank.read(indices, Views.whole(len(indices)), bank.size)
        return maps, pooling.presence(maps, seen)

    if usable and not predict:
        return read_bank
    images = inputs_of(run.model, run.train, run.config).images

    def read_network(indices: Tensor) -> tuple[Tensor, Tensor]:
        maps = predict_maps(run.model, images[indices], run.config.eval_side)
        return pooling.heat(maps), pooling(maps).sigmoid()

    return read_network


@torch.no_grad()
def mean_features(run: FinishedRun) -> Tensor:
    """(N, D) float32, the backbone's features of the training images, averaged over the cells."""
    images = inputs_of(run.model, run.train, run.config).images
    known = run.config.trained == "head"  # the images are features already
    parts = []
    for indices in torch.arange(len(run.train)).split(_STEP):
        cells = images[indices] if known else run.model.features(normalise(images[indices]))
        parts.append(cells.float().mean((2, 3)))
    return torch.cat(parts)


def out_of_fold(features: Tensor, given: Tensor) -> Tensor:
    """The probabilities (N, C) of a softmax regression that has not seen the image's own label.

    It learns the labels `given` (N, C) bool, of which every image has one at least, from the
    features (N, D).
    """
    found = torch.empty(given.shape)
    fold = torch.randperm(len(given), generator=torch.Generator().manual_seed(0)) % _FOLDS
    for number in range(_FOLDS):
        seen = fold != number
        mean, deviation = features[seen].mean(0), features[seen].std(0, correction=0) + 1e-6
        scaled, goal = (features - mean) / deviation, F.normalize(given[seen].float(), p=1)
        weight = torch.zeros(features.shape[1] + 1, given.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()  # noqa: B023 (called within its turn)
            logits = torch.addmm(weight[-1], scaled[seen], weight[:-1])  # noqa: B023
            value = F.cross_entropy(logits, goal) + _DECAY / 2 * (weight[:-1] ** 2).sum()  # noqa: B023
            value.backward()
            return value

        optimizer.step(loss)
        found[~seen] = (scaled[~seen] @ weight[:-1] + weight[-1]).softmax(1).detach()
    return found


def presence_of(read: ReadMaps, count: int) -> Tensor:
    """The presence (N, C) float64 of every class in the first `count` images."""
    return torch.cat([read(indices)[1].double() for indices in torch.arange(count).split(_STEP)])


def suggest(
    read: ReadMaps, presence: Tensor, given: Tensor, most: int, likely: Tensor | float = 1.0
) -> tuple[Suggestions, Suggestions]:
    """Ranks the labels that look missing, and those that look wrong; at most `most` of each kind.

    Of the labels `given` (N, C) bool, one is missing where the presence (N, C; see `presence_of`)
    is high without it, and wrong where presence times `likely` (N, C; see `out_of_fold`) is low.
    """
    missing = _best("missing", presence, ~given, most)
    for which, maps in maps_of_pairs(read, missing.image, missing.label):
        missing.box[which] = boxes(maps)
    return missing, _best("wrong", 1 - presence * likely, given, most)


def _best(kind: str, score: Tensor, asked: Tensor, most: int) -> Suggestions:
    image, label = asked.nonzero(as_tuple=True)
    order = score[asked].argsort(descending=True, stable=True)[:most]
    box = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(order), 1)
    return Suggestions(kind, image[order], label[order], score[asked][order].float(), box)


def maps_of_pairs(read: ReadMaps, image: Tensor, label: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Gives numbers (m,) and maps (m, G, G) of M pairs, in parts; it reads every image once."""
    images, place = image.unique(return_inverse=True)
    for start in range(0, len(images), _STEP):
        which = ((place >= start) & (place < start + _STEP)).nonzero().flatten()
        maps = read(images[start : start + _STEP])[0]
        yield which, maps[place[which] - start, label[which]]


def boxes(maps: Tensor, extent: float = EXTENT) -> Tensor:
    """Boxes (M, 4) around the highest cells of maps (M, G, G), and cells that join them.

    These must reach a share `extent` of the map's highest value. A box is x0, y0, x1, y1, as
    fractions of the image.
    """
    found = torch.empty(len(maps), 4)
    for box, heat in zip(found, maps.numpy(), strict=True):
        regions, _ = ndimage.label(heat >= extent * heat.max(), np.ones((3, 3)))
        rows, columns = ndimage.find_objects(regions)[regions.flat[heat.argmax()] - 1]
        box[:] = torch.tensor([columns.start, rows.start, columns.stop, rows.stop])
    return found / maps.shape[-1]


def precision_of_missing(found: Suggestions, data: ImageSet, given: Tensor) -> str | None:
    """How many missing labels are right, in words; None if only the `given` labels are known."""
    unknown = ~given if data.ignored is None else ~(given | data.ignored)
    counted = unknown[found.image, found.label]  # a label that the evaluation ignores is neither
    right = data.labels[found.image, found.label][counted].double()
    if not len(right) or not bool((data.labels & ~given).any()):
        return None
    return (
        f"Of the first {len(right)} missing labels, {right.mean():.0%} are right "
        f"(a random pair: {data.labels[unknown].double().mean():.1%})."
    )
