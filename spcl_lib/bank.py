"""HeatmapBank: a running-average heatmap for every training image and class.

The paper keeps "per-class running-average heatmaps for every training image" in full-image
coordinates. These choices are ours: the storage types, the mask of seen cells, the resolution,
bilinear resampling, and the first value of a cell, which is stored unchanged. With `size=1` the
bank holds the image-level running average P of the consistency loss (CL).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spcl_lib.cells import NOISE, SCALES, read_cells, update_cells
from spcl_lib.system.memory import require_memory_for_averages
from spcl_lib.system.shapes import require_size, require_tensor
from spcl_lib.views import Views

_TYPES = ", ".join(str(dtype) for dtype in SCALES)


class KeptState(nn.Module):
    """A module with a state per image that is saved and restored with the model it is a part of.

    The state is neither a parameter nor a buffer. So `model.to(device)` and `model.half()` leave
    it where it is, for instance in a memory-mapped file.
    """

    def _state(self) -> dict[str, Tensor]:
        """The tensors of the state, without copies of what is on the CPU."""
        raise NotImplementedError

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over the values of a state; ValueError if a shape or type is another one."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores a state that `state_dict` returned.

        Raises:
            ValueError: the state is another module's: a name is missing, or a shape or type is
                another one.
        """
        names = self.state_dict().keys()
        if not isinstance(state, Mapping) or names - state.keys():  # old states have more names
            raise ValueError(f"state must be a dictionary of {', '.join(names)}")
        for path, part in self.named_modules():
            part._restore({name: state[f"{path}.{name}".lstrip(".")] for name in part._state()})

    def _save_to_state_dict(
        self, destination: dict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        destination.update({prefix + name: tensor for name, tensor in self._state().items()})

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, local_metadata: object, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        missing = [prefix + name for name in self._state() if prefix + name not in state_dict]
        missing_keys += missing
        if not missing:
            try:
                self._restore({name: state_dict[prefix + name] for name in self._state()})
            except ValueError as error:
                error_msgs.append(f"{prefix.rstrip('.')}: {error}")


class HeatmapBank(KeptState):
    """Running averages H of probabilities, read and written through views.

    A step changes only the cells that the view shows:
    `H <- momentum * H + (1 - momentum) * T_v^-1(maps)`. A cell that is seen for the first time
    takes the new value unchanged. So the start value 0 has no effect.

    A bank is a module: as a part of a model, it is saved and restored with the model's state dict.
    The model's `to` does not move it, see `device`.

    Args:
        num_images: N, images of the training set.
        num_classes: C, the classes.
        size: W, cells along each side of a heatmap; 1 keeps one value per class.
        momentum: mu in [0, 1); second-hand sources say that the paper uses 0.8.
        dtype: torch.uint8, torch.float16 or torch.float32; see below.
        path: file that holds the heatmaps (memory-mapped) instead of the memory. An existing
            file is overwritten; `load_state_dict` restores the contents.
        seed: seed of the rounding.
        device: where the heatmaps are. A step of a network on a GPU is fastest with "cuda"; then
            the GPU must hold the heatmaps. The results are on the device of the views.

    Memory: N * C * W * W * bytes of dtype, plus N * W * W for the mask of seen cells.

    Storage: uint8 rounds up or down by chance. So it keeps changes below 1/255 on average, but
    adds noise: 0.33 / sqrt(1 - mu^2) steps of 1/255. We measured the noise against float32, on
    averages that drift: 0.55 steps at 0.8, 0.75 steps at 0.9, 1.0 steps at 0.95 and 2.2 steps at
    0.99. For a momentum of 0.95 or more, use float16 (0.06 steps at 0.95, 0.15 at 0.99) or float32.
    float16 rounds to the nearest value. If the predictions stay constant, its average stops up to
    2^-12 / (1 - mu) before it reaches them: 1.2 steps at 0.95 and 6 at 0.99. float32 reaches them.

    Raises:
        ValueError: an argument is outside its range.
        UserError: the memory, or the disk of `path`, has too little free space.

    Example:
        >>> bank = HeatmapBank(num_images=10, num_classes=3, size=8)
        >>> indices, views = torch.tensor([4]), Views.whole(1)
        >>> bank.update(indices, views, torch.full((1, 3, 4, 4), 0.6))
        >>> target, seen = bank.read(indices, views, grid=4)
        >>> target.shape, seen.shape
        (torch.Size([1, 3, 4, 4]), torch.Size([1, 1, 4, 4]))
    """

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        size: int = 28,
        momentum: float = 0.8,
        dtype: torch.dtype = torch.uint8,
        path: str | Path | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._check_sizes(num_images, num_classes, size, momentum, dtype)
        if torch.device(device).type != "cpu" and path is not None:
            raise ValueError(f"a bank in a file is on the CPU; got path '{path}' and {device=}")
        if torch.device(device).type == "cpu":
            require_memory_for_averages(num_images, num_classes, size, dtype, path)
        heatmaps = allocate((num_images, num_classes, size, size), dtype, path, device)
        seen = torch.zeros((num_images, size, size), dtype=torch.bool, device=device)
        self._hold(heatmaps, seen, momentum, seed)

    @classmethod
    def of(cls, heatmaps: Tensor, seen: Tensor) -> HeatmapBank:
        """A bank to read the contents of a run or of a snapshot; it makes no copies.

        Args:
            heatmaps: (N, C, W, W) in a type that a bank stores.
            seen: (N, W, W) bool.

        Raises:
            ValueError: a shape or type is another one.
        """
        bank = cls._holding(heatmaps, seen)
        require_tensor("seen", seen, (len(heatmaps), *heatmaps.shape[2:]), "bool")
        return bank

    @classmethod
    def _holding(cls, heatmaps: Tensor, seen: Tensor) -> HeatmapBank:
        require_tensor("heatmaps", heatmaps, ("N", "C", "W", "W"))
        if heatmaps.dtype not in SCALES:
            raise ValueError(f"heatmaps must be of {_TYPES}; got {heatmaps.dtype}")
        bank = cls.__new__(cls)  # allocates nothing, so needs no memory check
        bank._hold(heatmaps, seen, momentum=0.0, seed=0)
        return bank

    def _hold(self, heatmaps: Tensor, seen: Tensor, momentum: float, seed: int) -> None:
        super().__init__()  # here, because a bank begins with `__init__` or with `of`
        self.num_images, self.num_classes, self.size = heatmaps.shape[:3]
        self.heatmaps, self.seen, self.momentum = heatmaps, seen, momentum
        self._rounding = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def read(self, indices: Tensor, views: Views, grid: int) -> tuple[Tensor, Tensor]:
        """Reads heatmaps through views: T_v(H).

        Args:
            indices: (B,) int64 image numbers.
            views: B views.
            grid: G, cells along each side of the result.

        Returns:
            target: (B, C, G, G) float32 in [0, 1]; averages over seen cells, 0 without seen cells.
            seen: (B, 1, G, G) float32 in {0, 1}; 1 where at least half of the read area was seen.
        """
        self._check(indices, views)
        require_size(grid, "grid")
        device, home = views.boxes.device, self.heatmaps.device
        target, seen = read_cells(self.heatmaps, self.seen, indices.to(home), views.to(home), grid)
        return target.to(device), seen.to(device)

    @torch.no_grad()
    def update(self, indices: Tensor, views: Views, maps: Tensor) -> None:
        """Moves the visible cells of the running averages towards new predictions.

        Args:
            indices: (B,) int64 image numbers, each at most once.
            views: B views that the maps were predicted on.
            maps: (B, C, G, G) probabilities.

        Raises:
            ValueError: a shape is wrong, an index is outside 0..N-1 or occurs twice, or a value
                is not a probability (outside [0, 1] or not finite).
        """
        maps = self._check_update(indices, views, maps)
        home = self.heatmaps.device
        # Each image's noise starts anywhere; its planes follow each other in the noise's table.
        starts = self._first_noise(len(indices)) + torch.arange(self.num_classes) * self.size**2
        update_cells(
            self.heatmaps, self.seen, indices.to(home), views.to(home), maps,
            1 - self.momentum, (starts % NOISE).to(home),
        )  # fmt: skip

    def stored(self, which: slice) -> tuple[Tensor, Tensor]:
        """The heatmaps (n, C, W, W) as they are stored, and the seen cells (n, W, W), of images."""
        return self.heatmaps[which], self.seen[which]

    def tensors(self) -> dict[str, Tensor]:
        """What `of` needs, to write it to a file."""
        return {"heatmaps": self.heatmaps, "seen": self.seen}

    def _first_noise(self, batch: int) -> Tensor:
        return torch.randint(NOISE, (batch, 1), generator=self._rounding)

    def _check_update(self, indices: Tensor, views: Views, maps: Tensor) -> Tensor:
        """The maps as float32 where the heatmaps are; see `update` for the errors."""
        self._check(indices, views)
        require_tensor("maps", maps, (len(indices), self.num_classes, "G", "G"))
        if len(set(indices.tolist())) != len(indices):
            raise ValueError("an image may appear only once in an update")
        maps = maps.detach().to(self.heatmaps.device, torch.float32)
        lowest, highest = maps.aminmax() if maps.numel() else (0, 1)  # NaN, if there is one
        if not (lowest >= 0 and highest <= 1):
            raise ValueError("maps must be finite probabilities in [0, 1]; apply a sigmoid first")
        return maps

    def _state(self) -> dict[str, Tensor]:
        parts = {name: part.cpu() for name, part in self._parts().items()}
        return parts | {"rounding": self._rounding.get_state()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._state().items():
            require_tensor(name, state[name], tensor.shape, str(tensor.dtype).split(".")[1])
        try:
            self._rounding.set_state(state["rounding"])
        except RuntimeError as error:
            raise ValueError(f"rounding must be the state of a generator: {error}") from error
        for name, tensor in self._parts().items():
            tensor.copy_(state[name])

    def _parts(self) -> dict[str, Tensor]:
        """The tensors that an update changes."""
        return {"heatmaps": self.heatmaps, "seen": self.seen}

    @staticmethod
    def _check_sizes(
        num_images: int, num_classes: int, size: int, momentum: float, dtype: torch.dtype
    ) -> None:
        require_size(num_images, "num_images")
        require_size(num_classes, "num_classes")
        require_size(size)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {momentum}")
        if dtype not in SCALES:
            raise ValueError(f"dtype must be one of {_TYPES}; got {dtype}")

    def _check(self, indices: Tensor, views: Views) -> None:
        require_tensor("indices", indices, (len(views),), "int64")
        if len(indices) and not (0 <= int(indices.min()) and int(indices.max()) < self.num_images):
            raise ValueError(f"indices must be in 0..{self.num_images - 1}")


def allocate(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    path: str | Path | None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Zeros in memory, or in a memory-mapped file."""
    if path is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")  # emptied first: the file must start as zeros
    count = torch.Size(shape).numel()
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
