"""Views, crops and flips: T_v carries a full image's map to the view v, T_v^-1 carries it back.

Coordinates are fractions of the full image: x to the right, y down, (0, 0) is the top left corner.
A flip mirrors the crop left to right after it has been cut out, as torchvision does.
"""

import math
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from spcl_lib.system.shapes import require_size, require_tensor

Image = TypeVar("Image")


@dataclass(frozen=True)
class Views:
    """One view (a crop box and a flip) for each image of a batch.

    Example:
        >>> views = Views.sample(8, scale=(0.25, 1.0))
        >>> views.crop(torch.rand(8, 3, 64, 64), 32).shape
        torch.Size([8, 3, 32, 32])
    """

    boxes: Tensor  # (B, 4), any float type; x0, y0, x1, y1 as fractions of the full image
    flipped: Tensor  # (B,) bool; True where the crop is mirrored left to right

    def __post_init__(self) -> None:
        boxes = self.boxes
        require_tensor("boxes", boxes, ("B", 4), "float")
        require_tensor("flipped", self.flipped, (len(boxes),), "bool")
        if not ((boxes[:, :2] < boxes[:, 2:]).all() and ((boxes >= 0) & (boxes <= 1)).all()):
            raise ValueError("every box must have 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")

    @classmethod
    def whole(cls, batch: int, device: torch.device | str = "cpu") -> Self:
        """Views that show each image whole and unflipped."""
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], device=device)
        return cls(box.repeat(batch, 1), torch.zeros(batch, dtype=torch.bool, device=device))

    @classmethod
    def sample(
        cls,
        batch: int,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Samples views as torchvision's RandomResizedCrop and RandomHorizontalFlip do.

        `scale` is the crop's area as a fraction of the image's, `ratio` its width / height. Area
        and log ratio are uniform. The first of ten tries that fits into the image is taken. If none
        fits, it is the largest central crop with an allowed ratio. Images count as squares.
        """
        for name, (low, high), most in (("scale", scale, 1), ("ratio", ratio, 1000)):
            if not 0 < low <= high <= most:
                raise ValueError(f"{name} must satisfy 0 < lowest <= highest <= {most}")
        chance = torch.rand(2, batch, 10, generator=generator)
        corner = torch.rand(batch, 2, generator=generator)
        flipped = torch.rand(batch, generator=generator) < flip

        area = scale[0] + chance[0] * (scale[1] - scale[0])  # (B, 10)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = torch.exp(low + chance[1] * (high - low))
        sizes = torch.stack((area * aspect, area / aspect), 2).sqrt()  # (B, 10, 2) widths, heights
        fits = (sizes <= 1).all(2)
        size = sizes[torch.arange(batch), fits.int().argmax(1)]  # the first that fits
        closest = min(max(1.0, ratio[0]), ratio[1])  # the allowed ratio closest to the image's
        fallback = torch.tensor([min(1.0, closest), min(1.0, 1 / closest)])
        fitted = fits.any(1)[:, None]
        size = torch.where(fitted, size, fallback)
        start = torch.where(fitted, corner, 0.5) * (1 - size)
        return cls(torch.cat((start, (start + size).clamp(max=1)), 1), flipped)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, which: Tensor | slice) -> Self:
        """The views at `which`, as a batch."""
        return Views(self.boxes[which], self.flipped[which])

    def to(self, device: torch.device | str) -> Self:
        """The same views on another device."""
        if self.boxes.device == torch.device(device):
            return self
        return Views(self.boxes.to(device), self.flipped.to(device))

    def axes(self, grid: int, height: int, width: int | None = None) -> tuple[Tensor, Tensor]:
        """The matrices of T_v, Y (B, grid, height) and X (B, grid, width): T_v(H) = Y @ H @ X.mT.

        Row i of Y has the weights of H's rows in row i of the view; at most two are not 0.
        """
        x0, y0, x1, y1 = self._sides()
        centres = _centres(grid, self.boxes.device).expand(len(self), grid)
        rows = _weights(y0 + centres * (y1 - y0), height)
        return rows, _weights(x0 + self._flip(centres) * (x1 - x0), width or height)

    def crop(self, images: Tensor, size: int) -> Tensor:
        """Cuts the views out of full images or maps (B, K, H, W): T_v.

        It samples bilinearly at the cell centres, as
        `torchvision.ops.roi_align(sampling_ratio=1, aligned=True)` does. The result (B, K, size,
        size) has the floating type of `images`; of uint8, float32 in 0..255.
        """
        require_tensor("images", images, (len(self), "K", "H", "W"))
        require_size(size)
        dtype = images.dtype if images.is_floating_point() else torch.float32
        return resample(images, *self.axes(size, *images.shape[2:])).to(dtype)

    def visible(self, size: int) -> Tensor:
        """(B, 1, size, size) bool: the full image's cells whose centre the view shows."""
        centres = _centres(size, self.boxes.device)
        x0, y0, x1, y1 = self._sides()
        columns = (centres >= x0) & (centres <= x1)  # (B, size)
        rows = (centres >= y0) & (centres <= y1)
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)

    def uncrop(self, maps: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Carries the views' maps (B, C, G, G) back to the full image: T_v^-1.

        It gives (B, C, size, size) float32, and `visible`; other cells repeat the edge.
        """
        require_tensor("maps", maps, (len(self), "C", "G", "G"))
        centres = _centres(size, self.boxes.device)
        x0, y0, x1, y1 = self._sides()
        across, down = self._flip((centres - x0) / (x1 - x0)), (centres - y0) / (y1 - y0)
        rows, columns = _weights(down, maps.shape[2]), _weights(across, maps.shape[3])
        return resample(maps, rows, columns), self.visible(size)

    def _sides(self) -> tuple[Tensor, ...]:
        """x0, y0, x1, y1, each (B, 1) float32."""
        return self.boxes.float()[:, :, None].unbind(1)

    def _flip(self, across: Tensor) -> Tensor:
        """Mirrors the fractions (B, S) of the width where a view is flipped."""
        return torch.where(self.flipped[:, None], 1 - across, across)


class RandomView(nn.Module):
    """A random crop and flip of one image, for a pipeline of torchvision's v2 transforms.

    It takes the place of RandomResizedCrop and RandomHorizontalFlip, and gives their box and flip
    together with the crop of `size` x `size` pixels. Later transforms must not move its pixels. A
    batch of boxes and flips makes `Views(boxes, flipped)`.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def forward(self, image: Image) -> tuple[Image, Tensor, bool]:
        """Gives the crop of a PIL image or tensor, its box (4,), and whether it is flipped."""
        from torchvision.transforms import RandomResizedCrop  # here, because the method needs none
        from torchvision.transforms.v2 import functional

        height, width = functional.get_size(image)
        top, left, h, w = RandomResizedCrop.get_params(image, list(self.scale), list(self.ratio))
        crop = functional.resized_crop(image, top, left, h, w, [self.size, self.size])
        flipped = bool(torch.rand(()) < self.flip)
        sides = torch.tensor([width, height, width, height])
        box = torch.tensor([left, top, left + w, top + h]) / sides
        return functional.horizontal_flip(crop) if flipped else crop, box, flipped


def _centres(size: int, device: torch.device) -> Tensor:
    """(size,) centres of the cells along one side, as fractions of it."""
    return (torch.arange(size, device=device) + 0.5) / size


def _weights(at: Tensor, cells: int) -> Tensor:
    """(B, S, cells) weights that interpolate linearly at the fractions `at` (B, S) of one axis.

    Beyond the outer cells' centres all weight is on the outer cell.
    """
    at = (at * cells - 0.5).clamp(0, cells - 1)
    return (1 - (at[:, :, None] - torch.arange(cells, device=at.device)).abs()).clamp(min=0)


def resample(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Y @ H @ X.mT for all maps H of an image at once, in float32 also within autocast."""
    with torch.autocast(maps.device.type, enabled=False):
        wide = maps.float().flatten(1, 2) @ columns.mT  # (B, K * H, S)
        wide = wide.unflatten(1, maps.shape[1:3]).transpose(1, 2)  # (B, H, K, S)
        tall = rows @ wide.flatten(2)  # (B, S, K * S)
    return tall.unflatten(2, wide.shape[2:]).transpose(1, 2)  # (B, K, S, S)
