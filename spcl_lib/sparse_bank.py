"""SparseHeatmapBank: heatmaps of a few classes per image, for data sets with many classes.

ImageNet needs 251 GB in a HeatmapBank of 14 x 14 cells, and most of it says that a class is not
there. This bank keeps the K classes of each image that are most likely present. It is ours.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from spcl_lib.bank import SCALES, HeatmapBank


class SparseHeatmapBank(HeatmapBank):
    """Running-average heatmaps of K classes per image, with the interface of a HeatmapBank.

    The annotated class of an image is always kept. At every update of an image, the other classes
    compete: the score of a kept class is the mean of its heatmap over its seen cells, and the score
    of another class is the mean of its new map. The best of the others take the places of the worst
    of the kept, as long as their score is higher. A class that enters starts as in a new bank:
    no cell has been seen. Classes that are not kept read as 0, and as not seen. With K = C every
    bit is that of a HeatmapBank. With K = 10 and W = 14, ImageNet takes 5.07 GB.

    `kept` is K, `annotated` (N,) int64 the annotated class of every image, and the options are
    size, momentum, dtype, device and seed, as in HeatmapBank.
    """

    def __init__(
        self, num_images: int, num_classes: int, kept: int, annotated: Tensor, **options: object
    ) -> None:
        if not 1 <= kept <= num_classes:
            raise ValueError(f"kept must be in 1..{num_classes}, the classes; got {kept}")
        self.kept = kept  # before the rest, because the tables need it
        super().__init__(num_images, num_classes, **options)
        self.classes.fill_(-1)  # an empty place
        self.classes[:, 0] = annotated

    @classmethod
    def of(  # noqa: D102 (as in HeatmapBank)
        cls, heatmaps: Tensor, seen: Tensor, classes: Tensor, num_classes: Tensor
    ) -> Self:
        images, kept, size = heatmaps.shape[:3]
        bank = cls(1, int(num_classes), kept, classes[:1, 0], size=size, dtype=heatmaps.dtype)
        bank.num_images, bank.heatmaps, bank.seen, bank.classes = images, heatmaps, seen, classes
        return bank

    def stored(self, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Copies of heatmaps (n, C, W, W), 0 if not kept; the annotated class's seen cells."""
        seen = self.seen[which][:, 0]  # (n, W, W); the annotated class sees every view
        return self._of_all(which, self.heatmaps[which]), seen

    def tensors(self) -> dict[str, Tensor]:
        """What `of` needs."""
        more = {"classes": self.classes, "num_classes": torch.tensor(self.num_classes)}
        return super().tensors() | more

    def _tables(self, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        kept, cells = (self.num_images, self.kept), (self.size, self.size)
        return {
            "heatmaps": ((*kept, *cells), dtype),
            "seen": ((*kept, *cells), torch.bool),
            "classes": (kept, torch.int32),
        }

    def _planes(self, here: Tensor) -> tuple[Tensor, Tensor]:
        return self.heatmaps.index_select(0, here), self.seen[here]

    def _of_all(self, here: slice | Tensor, planes: Tensor) -> Tensor:
        held = self.classes[here].long()
        full = planes.new_zeros(len(held), self.num_classes, *planes.shape[2:])
        image, place = torch.nonzero(held >= 0, as_tuple=True)  # without the empty places
        full[image, held[image, place]] = planes[image, place]
        return full

    def _admit(self, here: Tensor, maps: Tensor) -> Tensor:
        """Replaces kept classes by better ones. Empty places have the score -1."""
        held = self.classes[here].long()
        heatmaps, seen = self._planes(here)
        scores = maps.mean((2, 3))  # (B, C)
        inside = torch.cat((scores, scores[:, :1]), 1)  # a spare column for empty places
        inside.scatter_(1, held.where(held >= 0, self.num_classes), -1.0)  # they are kept already
        best, entering = inside[:, :-1].topk(self.kept - 1, 1)  # (B, K - 1), highest first
        total = (heatmaps.float() * seen).sum((2, 3)) / SCALES[heatmaps.dtype]
        own = (total / seen.sum((2, 3)).clamp(min=1)).where(held >= 0, -1.0)
        worst, leaving = own[:, 1:].sort(1)  # place 0 is the annotated class's
        row, rank = torch.nonzero(best > worst, as_tuple=True)  # both are sorted: a prefix of ranks
        image, place = here[row], leaving[row, rank] + 1
        held[row, place] = entering[row, rank]
        self.heatmaps[image, place] = 0
        self.seen[image, place] = False
        self.classes[here] = held.to(torch.int32)
        return maps.gather(1, held[:, :, None, None].expand(-1, -1, *maps.shape[2:]))


def bank_of(tensors: Mapping[str, Tensor]) -> HeatmapBank:
    """The bank whose method `tensors` returned these."""
    return (SparseHeatmapBank if "classes" in tensors else HeatmapBank).of(**tensors)
