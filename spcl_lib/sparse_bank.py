"""SparseHeatmapBank: heatmaps of a few classes per image, for data sets with many classes.

1,000 classes, 14 x 14 cells and the 1.28 million images of ImageNet need 251 GB in a HeatmapBank.
Most of it says that a class is not there. This bank keeps the heatmaps of the K classes of each
image that are most likely present. It is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from spcl_lib.bank import SCALES, HeatmapBank, read_cells
from spcl_lib.system.shapes import require_size, require_tensor
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
        options: size, momentum, dtype, device and seed, as in HeatmapBank.

    Memory: N * K * W * W * bytes of dtype for the heatmaps, and N * K * (W * W / 8 + 4) for the
    seen cells and the classes. ImageNet with K = 10 and W = 14: 2.51 GB and 0.37 GB.

    Raises:
        ValueError: an argument is outside its range.
        UserError: the memory has too little free space.

    Example:
        >>> bank = SparseHeatmapBank(10, 1000, kept=5, annotated=torch.zeros(10).long(), size=8)
        >>> indices, views = torch.tensor([4]), Views.whole(1)
        >>> bank.update(indices, views, torch.rand(1, 1000, 4, 4))
        >>> target, seen = bank.read(indices, views, grid=4)
        >>> target.shape, seen.shape, seen.amax((0, 2, 3)).sum()
        (torch.Size([1, 1000, 4, 4]), torch.Size([1, 1000, 4, 4]), tensor(5.))
    """

    def __init__(
        self, num_images: int, num_classes: int, kept: int, annotated: Tensor, **options: object
    ) -> None:
        require_size(kept, "kept")
        if kept > num_classes:
            raise ValueError(f"kept must be in 1..{num_classes}, the classes; got {kept}")
        require_tensor("annotated", annotated, (num_images,), "int64")
        if not (0 <= int(annotated.min()) and int(annotated.max()) < num_classes):
            raise ValueError(f"annotated classes must be in 0..{num_classes - 1}")
        self.kept = kept  # before the rest, because the allocation needs it
        super().__init__(num_images, num_classes, **options)
        self.classes[:, 0] = annotated

    @classmethod
    def of(  # noqa: D102 (as in HeatmapBank)
        cls, heatmaps: Tensor, seen: Tensor, classes: Tensor, num_classes: Tensor
    ) -> SparseHeatmapBank:
        require_tensor("heatmaps", heatmaps, ("N", "K", "W", "W"))
        images, kept, size = heatmaps.shape[:3]
        require_tensor("seen", seen, (images, kept, _bytes_of(size)), "uint8")
        require_tensor("classes", classes, (images, kept), "int32")
        require_tensor("num_classes", num_classes, (), "int64")
        first = torch.zeros(1, dtype=torch.int64)
        bank = cls(1, int(num_classes), kept, first, size=size, dtype=heatmaps.dtype)
        bank.num_images, bank.heatmaps, bank.seen, bank.classes = images, heatmaps, seen, classes
        return bank

    @torch.no_grad()
    def read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        """Reads heatmaps through views, as `HeatmapBank.read`.

        Returns:
            target: (B, C, G, G) float32; 0 for classes that are not kept.
            seen: (B, C, G, G) float32 in {0, 1}; 0 for classes that are not kept.
        """
        require_size(grid, "grid")
        here = self._at(indices, views)
        held, heatmaps, seen = self._take(here)
        target, mask = read_cells(heatmaps, seen, views.to(here.device), grid)
        device = views.boxes.device
        return self._dense(held, target).to(device), self._dense(held, mask).to(device)

    @torch.no_grad()
    def update(self, indices: Tensor, views: Views, maps: Tensor) -> None:
        """Lets classes enter and leave, then updates the kept ones as `HeatmapBank.update`."""
        here, views, maps = self._check_update(indices, views, maps)
        held, heatmaps, seen = self._take(here)
        self._admit(held, heatmaps, seen, maps)
        shown = maps.gather(1, held[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
        self.heatmaps[here], seen = self._averaged(heatmaps, seen, views, shown)
        self.seen[here], self.classes[here] = _pack(seen.flatten(2)), held.to(torch.int32)

    def stored(self, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The dense heatmaps (n, C, W, W) and seen cells (n, W, W) of some images, as copies."""
        held, heatmaps, seen = self._take(which)
        return self._dense(held, heatmaps), seen[:, 0]  # the annotated class sees every view

    def tensors(self) -> dict[str, Tensor]:
        """What `of` needs."""
        more = {"classes": self.classes, "num_classes": torch.tensor(self.num_classes)}
        return super().tensors() | more

    def _allocate(self, dtype: torch.dtype, device: torch.device) -> None:
        kept, size = (self.num_images, self.kept), self.size
        heatmaps = torch.zeros((*kept, size, size), dtype=dtype, device=device)
        self.register_buffer("heatmaps", heatmaps)
        seen = torch.zeros((*kept, _bytes_of(size)), dtype=torch.uint8, device=device)
        self.register_buffer("seen", seen)  # one bit per cell
        classes = torch.full(kept, -1, dtype=torch.int32, device=device)  # -1: an empty place
        self.register_buffer("classes", classes)

    def _bytes_per_image(self, dtype: torch.dtype) -> int:
        return self.kept * (self.size**2 * dtype.itemsize + _bytes_of(self.size) + 4)

    def _take(self, which: slice | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Copies: classes (B, K), heatmaps (B, K, W, W) and seen cells (B, K, W, W) bool."""
        heatmaps = self.heatmaps[which].clone()
        seen = _unpack(self.seen[which], self.size**2).view(heatmaps.shape)
        return self.classes[which].long(), heatmaps, seen

    def _dense(self, held: Tensor, planes: Tensor) -> Tensor:
        """(B, C, S, S) with the planes (B, K, S, S) of the kept classes, else 0."""
        full = planes.new_zeros(len(held), self.num_classes, *planes.shape[2:])
        image, place = torch.nonzero(held >= 0, as_tuple=True)  # without the empty places
        full[image, held[image, place]] = planes[image, place]
        return full

    def _admit(self, held: Tensor, heatmaps: Tensor, seen: Tensor, maps: Tensor) -> None:
        """Replaces kept classes by better ones, in place; arguments as `_take` returns them.

        Empty places have the score -1, so the first update fills all of them.
        """
        scores = maps.mean((2, 3))  # (B, C)
        inside = torch.cat((scores, scores[:, :1]), 1)  # a spare column for empty places
        inside.scatter_(1, held.where(held >= 0, self.num_classes), -1.0)  # they are kept already
        best, entering = inside[:, :-1].topk(self.kept - 1, 1)  # (B, K - 1), highest first
        total = (heatmaps.float() * seen).sum((2, 3)) / SCALES[heatmaps.dtype]
        own = (total / seen.sum((2, 3)).clamp(min=1)).where(held >= 0, -1.0)
        worst, leaving = own[:, 1:].sort(1)  # place 0 is the annotated class's
        row, rank = torch.nonzero(best > worst, as_tuple=True)  # both are sorted: a prefix of ranks
        place = leaving[row, rank] + 1
        held[row, place] = entering[row, rank]
        heatmaps[row, place] = 0
        seen[row, place] = False


def bank_of(tensors: Mapping[str, Tensor]) -> HeatmapBank:
    """The bank whose method `tensors` returned these."""
    return (SparseHeatmapBank if "classes" in tensors else HeatmapBank).of(**tensors)


def _bytes_of(size: int) -> int:
    """Bytes of W * W cells with one bit each."""
    return -(-(size**2) // 8)


def _pack(seen: Tensor) -> Tensor:
    """(..., cells) bool as (..., ceil(cells / 8)) uint8, one bit per cell."""
    padded = torch.nn.functional.pad(seen, (0, -seen.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8, device=seen.device)).sum(-1).to(torch.uint8)


def _unpack(packed: Tensor, cells: int) -> Tensor:
    """The inverse of `_pack`."""
    bits = packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten(-2)[..., :cells].bool()
