"""HeatmapBank: a running-average heatmap for every training image and class.

The paper keeps them in full-image coordinates. These choices are ours: the storage types, the mask
of seen cells, the resolution, bilinear resampling, and the first value of a cell, which is stored
unchanged. With `size=1` the bank holds the image-level running average P of CL.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.shapes import require_size, require_tensor
from spcl_lib.views import Views, resample

SCALES = {torch.uint8: 255.0, torch.float16: 1.0, torch.float32: 1.0}  # stored value of 1


class HeatmapBank(nn.Module):
    """Running averages H of probabilities, read and written through views.

    A step changes only the cells that the view shows:
    `H <- momentum * H + (1 - momentum) * T_v^-1(maps)`. A cell that is seen for the first time
    takes the new value unchanged.

    As a part of a model, it is saved and restored with the model's state dict. `model.to(device)`
    and `model.half()` leave it where and as it is.

    Args:
        num_images: N, images of the training set.
        num_classes: C, the classes.
        size: W, cells along each side of a heatmap (Method: 16).
        momentum: mu in [0, 1); second-hand sources say that the paper uses 0.8.
        dtype: torch.uint8, torch.float16 or torch.float32. uint8 rounds by chance, so that it is
            right on average. Its noise, in steps of 1/255, is 0.7 for mu = 0.8, 1.3 for 0.95, 3
            for 0.99. Classes share it, so a distribution over 1000 classes adds up to 0.3 to 4.
            float16 stops up to 1 step short of its target for 0.95, 6 for 0.99.
        device: where the heatmaps are. Results are on the device of the views.
        seed: seed of the rounding.

    Example:
        >>> bank = HeatmapBank(num_images=10, num_classes=3, size=8)
        >>> indices, views = torch.tensor([4]), Views.whole(1)
        >>> bank.update(indices, views, torch.full((1, 3, 4, 4), 0.6))
        >>> target, seen = bank.read(indices, views, grid=4)  # (1, 3, 4, 4), (1, 1, 4, 4)
    """

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        size: int = 28,
        momentum: float = 0.8,
        dtype: torch.dtype = torch.uint8,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        if dtype not in SCALES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, SCALES))}; got {dtype}")
        super().__init__()
        self.num_images, self.num_classes, self.size = num_images, num_classes, size
        self.momentum, self.seed = momentum, seed
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # batches so far
        for name, (shape, kind) in self._tables(dtype).items():
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))

    @classmethod
    def of(cls, heatmaps: Tensor, seen: Tensor) -> Self:
        """A bank of heatmaps (N, C, W, W) and seen cells (N, W, W) bool, to read; not copied."""
        bank = cls(1, *heatmaps.shape[1:3], dtype=heatmaps.dtype)
        bank.num_images, bank.heatmaps, bank.seen = len(heatmaps), heatmaps, seen
        return bank

    @torch.no_grad()
    def read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        """Reads the heatmaps of images (B,) int64 through views, on a grid: T_v(H).

        Returns:
            target: (B, C, G, G) float32 in [0, 1]; averages over seen cells, 0 without seen cells.
            seen: (B, 1, G, G) float32 in {0, 1}, or (B, C, G, G) of a SparseHeatmapBank; 1 where
                seen cells have at least half of the weight.
        """
        require_size(grid, "grid")
        here = self._at(indices, views)
        heatmaps, seen = self._planes(here)
        axes = views.to(here.device).axes(grid, self.size)
        share = resample(seen, *axes)  # of the weight, on seen cells; the others hold 0
        mask = (share >= 0.5 - 1e-6).float()
        scale = mask / (SCALES[heatmaps.dtype] * share.clamp(min=1e-6))
        target = (resample(heatmaps, *axes) * scale).clamp(max=1)
        device = views.boxes.device
        return self._of_all(here, target).to(device), self._of_all(here, mask).to(device)

    @torch.no_grad()
    def update(self, indices: Tensor, views: Views, maps: Tensor) -> None:
        """Moves the visible cells of different images (B,) int64 towards new predictions.

        The maps (B, C, G, G) are probabilities that were predicted on the views.
        """
        here = self._at(indices, views)
        require_tensor("maps", maps, (len(indices), self.num_classes, "G", "G"))
        if len(here.unique()) != len(here):
            raise ValueError("an image may appear only once in an update")
        maps = maps.detach().to(here.device, torch.float32)
        lowest, highest = maps.aminmax() if maps.numel() else (0, 1)  # NaN, if there is one
        if not (lowest >= -1e-5 and highest <= 1 + 1e-5):  # a resize may round beyond 1
            raise ValueError("maps must be finite probabilities in [0, 1]; apply a sigmoid first")
        maps = self._admit(here, maps.clamp(0, 1))
        heatmaps, seen = self._planes(here)
        scale = SCALES[heatmaps.dtype]
        new, visible = views.to(here.device).uncrop(scale * maps, self.size)
        share = torch.where(seen, 1 - self.momentum, 1.0) * visible  # 0: the cell stays as it is
        new.clamp_(max=scale)  # fast matrix products may round beyond, and a byte would overflow
        average = torch.lerp(heatmaps.float(), new, share)
        self.heatmaps[here] = self._rounded(average).to(heatmaps.dtype)
        self.seen[here] = (seen | visible).view(len(here), *self.seen.shape[1:])
        self.updates += 1

    def stored(self, which: slice | Tensor) -> tuple[Tensor, Tensor]:
        """The heatmaps (n, C, W, W) as they are stored, and the seen cells (n, W, W), of images."""
        return self.heatmaps[which], self.seen[which]

    def tensors(self) -> dict[str, Tensor]:
        """What `of` needs, to write it to a file."""
        return {"heatmaps": self.heatmaps, "seen": self.seen}

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *more: Any) -> None:
        given = state.get(f"{prefix}heatmaps", self.heatmaps)
        if given.dtype != self.heatmaps.dtype:  # torch would convert bytes to probabilities
            raise ValueError(f"the heatmaps are {given.dtype}, those here {self.heatmaps.dtype}")
        super()._load_from_state_dict(state, prefix, *more)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return self  # it stays on its device and in its type

    def _tables(self, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every table."""
        images, cells = self.num_images, (self.size, self.size)
        return {
            "heatmaps": ((images, self.num_classes, *cells), dtype),
            "seen": ((images, *cells), torch.bool),
        }

    def _at(self, indices: Tensor, views: Views) -> Tensor:
        """Checked image numbers, on the device of the heatmaps."""
        require_tensor("indices", indices, (len(views),), "int64")
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < self.num_images):
            raise ValueError(f"indices must be in 0..{self.num_images - 1}")
        return indices.to(self.heatmaps.device)

    def _planes(self, here: Tensor) -> tuple[Tensor, Tensor]:
        """The kept heatmaps (B, K, W, W) of images, and their seen cells (B, 1 or K, W, W)."""
        return self.heatmaps.index_select(0, here), self.seen[here].unsqueeze(1)

    def _admit(self, here: Tensor, maps: Tensor) -> Tensor:
        """The maps (B, K, G, G) of the kept classes; maps (B, C, G, G) may change which."""
        return maps

    def _of_all(self, here: Tensor, planes: Tensor) -> Tensor:
        """Planes (B, C, S, S) of all classes, of planes (B, K, S, S) of the kept ones."""
        return planes

    def _rounded(self, average: Tensor) -> Tensor:
        """Adds noise in [0, 1), so that cutting off is right on average; classes share it."""
        if self.heatmaps.dtype != torch.uint8:
            return average
        generator = keyed_generator("rounding", self.seed, int(self.updates))
        shape = (len(average), 1, self.size, self.size)
        noise = torch.rand(shape, generator=generator) * (1 - 2**-16)
        return average.add_(noise.to(average.device))
