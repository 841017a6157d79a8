"""Measures the heatmap bank against a plain loop and the bytes it moves, and mAP's speed.

All parts of a comparison take turns in one process, and ratios are of the same turn. So a slower
machine affects all of them. A spread is from the 10th to the 90th of 100 turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spcl_lib.bank import HeatmapBank
from spcl_lib.cells import compiled
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.system import paths
from spcl_lib.views import Views


@dataclass(frozen=True)
class Shape:
    """What a bank is measured with.

    Attributes:
        name: of the data set that has this shape.
        classes: C.
        size: W.
        grid: G.
        batch: B.
        images: N; the heatmaps must not fit into the processor's cache.
    """

    name: str
    classes: int
    size: int
    grid: int
    batch: int = 64
    images: int = 2000


SHAPES = (Shape("COCO", 80, 28, 7), Shape("small", 20, 12, 3))


class PlainLoop:
    """The bank that is written first: a loop over images, `F.interpolate`, rounding to nearest.

    It is no reference: its boxes are whole cells, and small changes are lost in its rounding.
    """

    def __init__(self, num_images: int, num_classes: int, size: int) -> None:
        self.heatmaps = torch.zeros((num_images, num_classes, size, size), dtype=torch.uint8)

    def read(self, indices: Tensor, views: Views, grid: int) -> Tensor:
        """As `HeatmapBank.read`, without the mask of seen cells."""
        target = torch.empty(len(indices), self.heatmaps.shape[1], grid, grid)
        for out, (cells, flipped) in zip(target, self._visible(indices, views), strict=True):
            read = _resize(cells.float(), (grid, grid))
            out.copy_(read.flip(2) if flipped else read)
        return target.div_(255)

    def update(self, indices: Tensor, views: Views, maps: Tensor) -> None:
        """As `HeatmapBank.update`, with a momentum of 0.8."""
        for new, (cells, flipped) in zip(maps, self._visible(indices, views), strict=True):
            resized = _resize(new.flip(2) if flipped else new, cells.shape[1:])
            cells.copy_(cells.float().lerp_(resized.mul_(255), 0.2).round_())

    def _visible(self, indices: Tensor, views: Views) -> Iterator[tuple[Tensor, bool]]:
        size = self.heatmaps.shape[-1]
        first = (views.boxes[:, :2] * size).floor().int().tolist()
        last = (views.boxes[:, 2:] * size).ceil().int().tolist()
        for i, (x0, y0), (x1, y1), flipped in zip(
            indices.tolist(), first, last, views.flipped.tolist(), strict=True
        ):
            yield self.heatmaps[i, :, y0:y1, x0:x1], flipped


def _resize(maps: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(maps[None], tuple(shape), mode="bilinear", align_corners=False)[0]


def bank_seconds(shape: Shape, turns: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of every turn: a read and an update of a batch of random images.

    Args:
        shape: what is measured.
        turns: how often.
        folder: where the bank in a file puts its file.

    Returns:
        by name: the plain loop; the bytes moved, which are two copies of the batch's heatmaps out
        of the bank and one into it; and the bank, in memory and in a file.
    """
    sizes = shape.images, shape.classes, shape.size
    loop = PlainLoop(*sizes)
    banks: dict[str, PlainLoop | HeatmapBank] = {
        "plain loop": loop, "bank": HeatmapBank(*sizes),
        "bank in a file": HeatmapBank(*sizes, path=folder / "bank.bin"),
    }  # fmt: skip
    copies = torch.empty((shape.batch, *loop.heatmaps.shape[1:]), dtype=torch.uint8)
    for bank in banks.values():  # all cells are seen, and all pages of the memory exist
        for part in torch.arange(shape.images).split(shape.batch):
            bank.update(part, Views.whole(len(part)), _random_maps(shape, len(part)))

    def move(indices: Tensor) -> None:
        numbers = indices.tolist()
        for _ in range(2):
            for copy, i in zip(copies, numbers, strict=True):
                copy.copy_(loop.heatmaps[i])
        for copy, i in zip(copies, numbers, strict=True):
            loop.heatmaps[i].copy_(copy)

    seconds: dict[str, list[float]] = {}
    for _ in range(turns):
        views, maps = Views.sample(shape.batch), _random_maps(shape, shape.batch)
        for name, bank in banks.items():
            indices = torch.randperm(shape.images)[: shape.batch]
            clock = time.perf_counter()
            bank.read(indices, views, shape.grid)
            bank.update(indices, views, maps)
            seconds.setdefault(name, []).append(time.perf_counter() - clock)
        taken, _ = _time(move, torch.randperm(shape.images)[: shape.batch])
        seconds.setdefault("bytes moved", []).append(taken)
    return seconds


def _random_maps(shape: Shape, batch: int) -> Tensor:
    return torch.rand(batch, shape.classes, shape.grid, shape.grid)


def _time(function: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """The seconds that a call takes, and its result."""
    clock = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - clock, result


def spread(values: Sequence[float]) -> str:
    """The median, and the values between which four of five lie."""
    middle = statistics.median(values)
    if len(values) < 2:
        return f"{middle:.2f}"
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return f"{middle:.2f} ({tenths[0]:.2f} to {tenths[-1]:.2f})"


def bench_bank(turns: int) -> None:
    """Prints the speed of the bank in ratios: to the plain loop, and to the bytes moved."""
    way = "compiled" if compiled() else "PyTorch only: no C compiler"
    paths.cache().mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="bench-") as folder:
            seconds = bank_seconds(shape, turns, Path(folder))
        print(
            f"bank, {shape.name}: {shape.classes} classes, {shape.size} x {shape.size} cells, "
            f"uint8, batch {shape.batch}, grid {shape.grid}, {torch.get_num_threads()} thread(s), "
            f"{turns} turns, {way}"
        )
        print(
            f"{'read + update':15} {'ms':>8} {'fastest':>8}  {'times as fast as the loop':27} "
            "x bytes moved"
        )
        for name, times in seconds.items():
            faster = [a / b for a, b in zip(seconds["plain loop"], times, strict=True)]
            moved = [b / a for a, b in zip(seconds["bytes moved"], times, strict=True)]
            print(
                f"{name:15} {1000 * statistics.median(times):8.2f} {1000 * min(times):8.2f}  "
                f"{spread(faster):27} {spread(moved)}"
            )
        print()


def bench_map(turns: int, images: int = 50_000, classes: int = 1000) -> None:
    """Prints the speed of mAP in ratios to scikit-learn's, with 1 % and 30 % positives.

    Args:
        turns: how often each is measured.
        images: N.
        classes: C.
    """
    try:
        from sklearn.metrics import average_precision_score
    except ImportError:
        print("mAP: scikit-learn is not installed; pip install 'spcl[test]' to compare with it\n")
        return
    print(f"mAP of {images:,} x {classes:,} float32 scores, one thread, {turns} turn(s)")
    print(f"{'positives':9} {'seconds':>8} {'scikit-learn':>13}  {'times as fast':25} difference")
    for share in (0.01, 0.3):
        scores, labels = torch.rand(images, classes), torch.rand(images, classes) < share
        labels[0] = True  # scikit-learn counts a class without a positive as 0
        mine, theirs = [], []
        for _ in range(turns):
            mine.append(_time(mean_average_precision, scores, labels))
            theirs.append(_time(average_precision_score, labels.numpy(), scores.numpy()))
        faster = [b / a for (a, _), (b, _) in zip(mine, theirs, strict=True)]
        difference = abs(mine[0][1] - 100 * theirs[0][1])
        print(
            f"{f'{100 * share:.0f} %':9} {statistics.median(t for t, _ in mine):8.2f} "
            f"{statistics.median(t for t, _ in theirs):13.2f}  {spread(faster):25} "
            f"{difference:.0e}"
        )
    print()
