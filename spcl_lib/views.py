"""A batch of random crops and flips, which can carry maps to and from the full image.

Coordinates are fractions of the full image: x to the right, y down, (0, 0) is the top left corner.
A flip mirrors the crop left to right after it has been cut out, as torchvision does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.system.shapes import require_size, require_tensor

Image = TypeVar("Image")


@dataclass(frozen=True)
class Views:
    """One view (a crop box and a flip) for each image of a batch.

    Attributes:
        boxes: (B, 4) float32; x0, y0, x1, y1 as fractions of the full image.
        flipped: (B,) bool; True where the crop is mirrored left to right.

    Raises:
        ValueError: shapes or types differ from those above, or a box is empty or leaves the image.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> views = Views.sample(8, scale=(0.25, 1.0), generator=generator)
        >>> views.crop(torch.rand(8, 3, 64, 64), 32).shape
        torch.Size([8, 3, 32, 32])
    """

    boxes: Tensor
    flipped: Tensor

    def __post_init__(self) -> None:
        boxes = self.boxes
        require_tensor("boxes", boxes, ("B", 4), "float")
        require_tensor("flipped", self.flipped, (len(boxes),), "bool")
        ordered = bool((boxes[:, :2] < boxes[:, 2:]).all())
        if not (ordered and bool(((boxes >= 0) & (boxes <= 1)).all())):
            raise ValueError("every box must have 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1")

    @classmethod
    def whole(cls, batch: int, device: torch.device | str = "cpu") -> Views:
        """Views that show each image whole and unflipped."""
        require_size(batch, "batch", least=0)
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
    ) -> Views:
        """Samples views as torchvision's RandomResizedCrop and RandomHorizontalFlip do.

        Area and log aspect ratio are uniform. The first of ten tries that fits into the image is
        taken. If none fits, it is the largest central crop with an allowed ratio. Images count as
        squares, and boxes are not rounded to pixels.

        Args:
            batch: number of views B.
            scale: lowest and highest area of the crop, as a fraction of the image's.
            ratio: lowest and highest width / height of the crop.
            flip: probability of a flip.
            generator: source of random numbers, on the CPU.

        Raises:
            ValueError: a range is empty or has impossible values.
        """
        require_size(batch, "batch", least=0)
        for name, pair in (("scale", scale), ("ratio", ratio)):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"{name} must be a pair of numbers; got {pair!r}")
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must satisfy 0 < lowest <= highest <= 1; got {scale}")
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ValueError(f"ratio must satisfy 0 < lowest <= highest; got {ratio}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must be a probability; got {flip}")
        chance = torch.rand(2, batch, 10, generator=generator)
        corner = torch.rand(batch, 2, generator=generator)
        flipped = torch.rand(batch, generator=generator) < flip

        area = scale[0] + chance[0] * (scale[1] - scale[0])  # (B, 10)
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = torch.exp(low + chance[1] * (high - low))
        sizes = torch.stack((area * aspect, area / aspect), 2).sqrt()  # (B, 10, 2) widths, heights
        fits = (sizes <= 1).all(2)
        first = fits.int().argmax(1)  # the first that fits; 0 if none does
        size = sizes[torch.arange(batch), first]
        closest = min(max(1.0, ratio[0]), ratio[1])  # the allowed ratio closest to the image's
        fallback = torch.tensor([min(1.0, closest), min(1.0, 1 / closest)])
        fitted = fits.any(1)[:, None]
        size = torch.where(fitted, size, fallback)
        start = torch.where(fitted, corner, 0.5) * (1 - size)
        return cls(torch.cat((start, (start + size).clamp(max=1)), 1), flipped)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, which: Tensor | slice) -> Views:
        """The views at `which`, as a batch."""
        return Views(self.boxes[which], self.flipped[which])

    def to(self, device: torch.device | str) -> Views:
        """The same views on another device."""
        return Views(self.boxes.to(device), self.flipped.to(device))

    def theta(self) -> Tensor:
        """(B, 2, 3) affine from the view's coordinates to the full image's, both in [-1, 1].

        With it, `torch.nn.functional.affine_grid` cuts the views out.
        """
        x0, y0, x1, y1 = self.boxes.unbind(1)
        sign = 1 - 2 * self.flipped.to(x0.dtype)
        zero = torch.zeros_like(x0)
        row_x = torch.stack((sign * (x1 - x0), zero, x0 + x1 - 1), 1)
        row_y = torch.stack((zero, y1 - y0, y0 + y1 - 1), 1)
        return torch.stack((row_x, row_y), 1)

    def crop(self, images: Tensor, size: int) -> Tensor:
        """Cuts the views out of full images or maps: T_v of the method.

        It samples bilinearly at the cell centres, as
        `torchvision.ops.roi_align(sampling_ratio=1, aligned=True)` does.

        Args:
            images: (B, K, H, W); uint8 images are read as float32 in 0..255.
            size: height and width of the result.

        Returns:
            (B, K, size, size), in the floating type of `images`, or float32 for uint8.
        """
        self._check("images", images, size)
        images = images if images.is_floating_point() else images.float()
        shape = [len(images), images.shape[1], size, size]
        grid = F.affine_grid(self.theta().to(images), shape, align_corners=False)
        return F.grid_sample(images, grid, "bilinear", "border", align_corners=False)

    def crop_maps(self, maps: Tensor, size: int) -> Tensor:
        """Cuts the views out of full-image maps: `crop` in two steps, first rows, then columns.

        It uses only additions and multiplications in a fixed order. So every machine, and the
        compiled code of the bank, gives the same bits.

        Args:
            maps: (B, K, H, W) float32.
            size: height and width of the result.

        Returns:
            (B, K, size, size); a constant map stays exactly constant.
        """
        self._check("maps", maps, size)
        require_tensor("maps", maps, None, "float")
        centres = _centres(size, self.boxes.device).expand(len(self), size)
        x0, y0, x1, y1 = self.boxes.float()[:, :, None].unbind(1)  # (B, 1) each
        across = torch.where(self.flipped[:, None], 1 - centres, centres)
        low = _interpolate(maps, y0 + centres * (y1 - y0), 2)  # (B, K, size, W)
        return _interpolate(low, x0 + across * (x1 - x0), 3)

    def visible(self, size: int) -> Tensor:
        """(B, 1, size, size) bool: the full image's cells whose centre the view shows."""
        require_size(size)
        centres = _centres(size, self.boxes.device)
        x0, y0, x1, y1 = self.boxes[:, :, None].unbind(1)  # (B, 1) each
        columns = (centres >= x0) & (centres <= x1)  # (B, size)
        rows = (centres >= y0) & (centres <= y1)
        return (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)

    def uncrop(self, maps: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Carries a view's maps back to the full image: T_v^-1 of the method.

        Args:
            maps: (B, C, G, G) values on the view's grid.
            size: height and width of the full-image maps.

        Returns:
            (B, C, size, size) full-image maps, and (B, 1, size, size) bool, the cells whose centre
            the view shows. The maps have a meaning only in these cells.
        """
        self._check("maps", maps, size)
        require_tensor("maps", maps, None, "float")
        centres = _centres(size, self.boxes.device)
        x0, y0, x1, y1 = self.boxes.float()[:, :, None].unbind(1)  # (B, 1) each
        across, down = (centres - x0) / (x1 - x0), (centres - y0) / (y1 - y0)  # (B, size)
        across = torch.where(self.flipped[:, None], 1 - across, across)
        wide = _interpolate(maps, across, 3)  # (B, C, G, size)
        return _interpolate(wide, down, 2), self.visible(size)

    def _check(self, name: str, maps: Tensor, size: int) -> None:
        require_tensor(name, maps, (len(self), "K", "H", "W"))
        require_size(size)


class RandomView(nn.Module):
    """A random crop and flip of one image, for a pipeline of torchvision's v2 transforms.

    It takes the place of RandomResizedCrop and RandomHorizontalFlip, and gives their box and flip
    together with the crop. Transforms behind it must keep every place of the crop. They change the
    crop only. A batch of boxes and flips makes `Views(boxes, flipped)`.

    Args:
        size: height and width of the crop, in pixels.
        scale: lowest and highest area of the crop, as a fraction of the image's.
        ratio: lowest and highest width / height of the crop, in pixels of the image.
        flip: probability of a flip.

    Raises:
        ValueError: the size is none.

    Example:
        >>> crop, box, flipped = RandomView(32)(torch.zeros(3, 64, 48))
        >>> crop.shape, box.shape, type(flipped)
        (torch.Size([3, 32, 32]), torch.Size([4]), <class 'bool'>)
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.25, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        super().__init__()
        require_size(size)
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def forward(self, image: Image) -> tuple[Image, Tensor, bool]:
        """Gives the crop, its box (4,) as in Views, and whether it is flipped.

        Args:
            image: a PIL image, or (..., H, W) as a tensor or an image of torchvision.
        """
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


def _interpolate(maps: Tensor, at: Tensor, axis: int) -> Tensor:
    """Values of maps (B, K, H, W) at the fractions `at` (B, S) of one axis, 2 or 3; linear.

    Beyond the outer cells' centres it gives the outer cells' values.
    """
    cells = maps.shape[axis]
    at = (at * cells - 0.5).clamp(0, cells - 1)
    shape = (len(maps), 1, -1, 1) if axis == 2 else (len(maps), 1, 1, -1)
    full = list(maps.shape)
    full[axis] = at.shape[1]
    left = at.long()  # the cell before each position; its right neighbour is the next one
    share = (at - left).view(shape)
    low, high = (
        maps.gather(axis, cell.view(shape).expand(full))
        for cell in (left, (left + 1).clamp(max=cells - 1))
    )
    return low + share * (high - low)
