"""SparseHeatmapBank: heatmaps of a few classes per image, for data sets with many classes.

1,000 classes, 14 x 14 cells and the 1.28 million images of ImageNet need 251 GB in a HeatmapBank.
Most of it says that a class is not there. This bank keeps the heatmaps of the K classes of each
image that are most likely present. It is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spcl_lib.bank import HeatmapBank, allocate
from spcl_lib.cells import NOISE, SCALES, read_cells, update_cells
from spcl_lib.system.memory import require_memory_for_averages
from spcl_lib.system.shapes import require_tensor
from spcl_lib.views import Views


class SparseHeatmapBank(HeatmapBank):
    """Running-average heatmaps of K classes per image, with the interface of a HeatmapBank.

    The annotated class of an image is always kept. At every update of an image, the other classes
    compete: the score of a kept class is the mean of its heatmap over its seen cells, and the score
    of another class is the mean of its new map. The best of the others take the places of the worst
    of the kept, as long as their score is higher. A class that enters starts as in a new bank:
    no cell has been seen. With K = C all classes are kept, and every bit is that of a HeatmapBank.

    Args:
        num_images: N, images of the training set.
        num_classes: C, the classes.
        kept: K, classes per image, from 1 to C.
        annotated: (N,) int64, the annotated class of every image.
        size: W, as in HeatmapBank, like all arguments below.
        momentum: mu in [0, 1).
        dtype: torch.uint8, torch.float16 or torch.float32.
        path: file that holds the heatmaps instead of the memory.
        seed: seed of the rounding.

    Memory: N * K * W * W * bytes of dtype for the heatmaps, which `path` moves to a file, and
    N * K * (W * W / 8 + 4) for the seen cells and the classes. ImageNet with K = 10 and W = 14:
    2.51 GB and 0.37 GB.

    Raises:
        ValueError: an argument is outside its range.
        UserError: the memory, or the disk of `path`, has too little free space.

    Example:
        >>> bank = SparseHeatmapBank(10, 1000, kept=5, annotated=torch.zeros(10).long(), size=8)
        >>> indices, views = torch.tensor([4]), Views.whole(1)
        >>> bank.update(indices, views, torch.rand(1, 1000, 4, 4))
        >>> target, seen = bank.read(indices, views, grid=4)
        >>> target.shape, seen.shape, seen.amax((0, 2, 3)).sum()
        (torch.Size([1, 1000, 4, 4]), torch.Size([1, 1000, 4, 4]), tensor(5.))
    """

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        kept: int,
        annotated: Tensor,
        size: int = 28,
        momentum: float = 0.8,
        dtype: torch.dtype = torch.uint8,
        path: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        self._check_sizes(num_images, num_classes, size, momentum, dtype)
        if not 1 <= kept <= num_classes:
            raise ValueError(f"kept must be in 1..{num_classes}, the classes; got {kept}")
        require_tensor("annotated", annotated, (num_images,), "int64")
        if not (0 <= int(annotated.min()) and int(annotated.max()) < num_classes):
            raise ValueError(f"annotated classes must be in 0..{num_classes - 1}")
        row = _bytes_of(size)
        require_memory_for_averages(num_images, kept, size, dtype, path, per_label=row + 4)
        heatmaps = allocate((num_images, kept, size, size), dtype, path)
        seen = torch.zeros((num_images, kept, row), dtype=torch.uint8)
        classes = torch.full((num_images, kept), -1, dtype=torch.int32)
        classes[:, 0] = annotated.cpu()
        self._hold(heatmaps, seen, momentum, seed)
        self.num_classes, self.classes = num_classes, classes

    @classmethod
    def of(  # noqa: D102 (as in HeatmapBank)
        cls, heatmaps: Tensor, seen: Tensor, classes: Tensor, num_classes: Tensor
    ) -> SparseHeatmapBank:
        bank = cls._holding(heatmaps, seen)
        images, kept, size = heatmaps.shape[:3]
        require_tensor("seen", seen, (images, kept, _bytes_of(size)), "uint8")
        require_tensor("classes", classes, (images, kept), "int32")
        require_tensor("num_classes", num_classes, (), "int64")
        bank.num_classes, bank.classes = int(num_classes), classes
        return bank

    @property
    def kept(self) -> int:
        """K, classes per image."""
        return self.classes.shape[1]

    @torch.no_grad()
    def read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        """Reads heatmaps through views, as `HeatmapBank.read`.

        Returns:
            target: (B, C, G, G) float32; 0 for classes that are not kept.
            seen: (B, C, G, G) float32 in {0, 1}; 0 for classes that are not kept.
        """
        self._check(indices, views)
        device = views.boxes.device
        held, heatmaps, seen = self._take(indices)
        planes = torch.arange(held.numel())
        target, mask = read_cells(heatmaps, seen, planes, self._spread(views), grid)
        return self._dense(held, target).to(device), self._dense(held, mask).to(device)

    @torch.no_grad()
    def update(self, indices: Tensor, views: Views, maps: Tensor) -> None:
        """Lets classes enter and leave, then updates the kept ones as `HeatmapBank.update`."""
        maps = self._check_update(indices, views, maps)
        held, heatmaps, seen = self._take(indices)
        self._admit(held, heatmaps, seen, maps)
        shown = maps.gather(1, held[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
        starts = (self._first_noise(len(indices)) + held * self.size**2) % NOISE
        update_cells(
            heatmaps, seen, torch.arange(held.numel()), self._spread(views),
            shown.flatten(0, 1).unsqueeze(1), 1 - self.momentum, starts.view(-1, 1),
        )  # fmt: skip
        indices = indices.cpu()
        self.classes[indices] = held.to(torch.int32)
        self.heatmaps[indices] = heatmaps.view(len(indices), *self.heatmaps.shape[1:])
        self.seen[indices] = _pack(seen.view(len(indices), self.kept, -1))

    def stored(self, which: slice) -> tuple[Tensor, Tensor]:
        """The dense heatmaps (n, C, W, W) and seen cells (n, W, W) of some images, as copies."""
        indices = torch.arange(self.num_images)[which]
        held, heatmaps, seen = self._take(indices)
        seen = seen.view(*held.shape, self.size, self.size)
        return self._dense(held, heatmaps), seen[:, 0]  # the annotated class sees every view

    def tensors(self) -> dict[str, Tensor]:
        """What `of` needs."""
        more = {"classes": self.classes, "num_classes": torch.tensor(self.num_classes)}
        return super().tensors() | more

    def _parts(self) -> dict[str, Tensor]:
        return super()._parts() | {"classes": self.classes}

    def _take(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copies: classes (B, K), heatmaps (B * K, 1, W, W) and seen cells (B * K, W, W)."""
        indices = indices.cpu()
        planes = (-1, self.size, self.size)
        seen = _unpack(self.seen[indices], self.size**2).reshape(planes)
        return self.classes[indices].long(), self.heatmaps[indices].view(planes).unsqueeze(1), seen

    def _dense(self, held: Tensor, planes: Tensor) -> Tensor:
        """(B, C, S, S) with the planes (B * K, 1, S, S) of the kept classes, else 0."""
        full = planes.new_zeros(len(held), self.num_classes, *planes.shape[2:])
        image, place = torch.nonzero(held >= 0, as_tuple=True)  # without the empty places
        full[image, held[image, place]] = planes.view(*held.shape, *planes.shape[2:])[image, place]
        return full

    def _spread(self, views: Views) -> Views:
        """The views of the B * K planes, on the CPU."""
        views = views.to("cpu")
        return Views(
            views.boxes.repeat_interleave(self.kept, 0),
            views.flipped.repeat_interleave(self.kept),
        )

    def _admit(self, held: Tensor, heatmaps: Tensor, seen: Tensor, maps: Tensor) -> None:
        """Replaces kept classes by better ones, in place; arguments as `_take` returns them.

        Empty places have the score -1, so the first update fills all of them.
        """
        scores = maps.mean((2, 3))  # (B, C)
        inside = torch.cat((scores, scores[:, :1]), 1)  # a spare column for empty places
        inside.scatter_(1, held.where(held >= 0, self.num_classes), -1.0)  # they are kept already
        best, entering = inside[:, :-1].topk(self.kept - 1, 1)  # (B, K - 1), highest first
        cells = (heatmaps.squeeze(1).float() * seen).sum((1, 2))
        own = cells / (SCALES[heatmaps.dtype] * seen.sum((1, 2)).clamp(min=1))
        own = own.view_as(held).where(held >= 0, -1.0)
        worst, leaving = own[:, 1:].sort(1)  # place 0 is the annotated class's
        row, rank = torch.nonzero(best > worst, as_tuple=True)  # both are sorted: a prefix of ranks
        place = leaving[row, rank] + 1
        held[row, place] = entering[row, rank]
        heatmaps.view(*held.shape, self.size, self.size)[row, place] = 0
        seen.view(*held.shape, self.size, self.size)[row, place] = False


def bank_of(tensors: Mapping[str, Tensor]) -> HeatmapBank:
    """The bank whose method `tensors` returned these."""
    return (SparseHeatmapBank if "classes" in tensors else HeatmapBank).of(**tensors)


def _bytes_of(size: int) -> int:
    """Bytes of W * W cells with one bit each."""
    return -(-(size**2) // 8)


def _pack(seen: Tensor) -> Tensor:
    """(..., cells) bool as (..., ceil(cells / 8)) uint8, one bit per cell."""
    padded = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8)).sum(-1).to(torch.uint8)


def _unpack(packed: Tensor, cells: int) -> Tensor:
    """The inverse of `_pack`."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten(-2)[..., :cells].bool()
