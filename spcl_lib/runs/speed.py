"""Measures the heatmap bank: its speed, and the memory of a training with it; and mAP's speed.

All parts of a comparison take turns in one process, and ratios are of the same turn. So a slower
machine affects all of them. A spread is from the 10th to the 90th of 100 turns.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.bank import HeatmapBank
from spcl_lib.cells import compiled
from spcl_lib.config import RunConfig
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.methods import Method, MethodSettings
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs.checkpoint import BANK_FILE, Checkpoint
from spcl_lib.sparse_bank import SparseHeatmapBank
from spcl_lib.system import paths
from spcl_lib.train import Progress, make_optimizer, train
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


# --- larger data sets -----------------------------------------------------------------------------

_CURVES = {
    "C, classes (W = 14)": [Shape(str(c), c, 14, 7, images=500) for c in (10, 20, 80, 200, 400)],
    "W, cells along a side (C = 80)": [
        Shape(str(w), 80, w, 7, images=500) for w in (7, 14, 28, 42)
    ],
}  # fmt: skip


def bank_curves(turns: int) -> dict[str, dict[int, dict[str, float]]]:
    """Milliseconds of a read and an update of 64 images, against C and against W.

    Args:
        turns: how often each is measured; the median counts.

    Returns:
        by the varied quantity, by its value, by name as in `bank_seconds`.
    """
    with tempfile.TemporaryDirectory() as folder:
        return {
            axis: {
                int(shape.name): {
                    name: 1000 * statistics.median(times)
                    for name, times in bank_seconds(shape, turns, Path(folder)).items()
                }
                for shape in shapes
            }
            for axis, shapes in _CURVES.items()
        }


@dataclass(frozen=True)
class Traffic:
    """What a SparseHeatmapBank costs.

    Attributes:
        file_bytes: of the heatmaps' file.
        memory_bytes: of seen cells and classes.
        milliseconds: of a read and an update of a batch.
        batch: B.
    """

    file_bytes: int
    memory_bytes: int
    milliseconds: float
    batch: int


def sparse_traffic(shape: Shape, kept: int, turns: int) -> Traffic:
    """Measures a SparseHeatmapBank of the given size in a file, with random images and views.

    The file gets pages only where the random images are, so the measurement needs little disk.

    Args:
        shape: N, C, W, G and B.
        kept: K, classes per image.
        turns: batches.
    """
    annotated = torch.randint(shape.classes, (shape.images,))
    with tempfile.TemporaryDirectory() as folder:
        bank = SparseHeatmapBank(
            shape.images, shape.classes, kept, annotated, shape.size, path=Path(folder) / "bank.bin"
        )
        times = []
        for _ in range(turns):
            indices = torch.randint(shape.images, (4 * shape.batch,)).unique()
            indices = indices[torch.randperm(len(indices))][: shape.batch]
            views, maps = Views.sample(len(indices)), _random_maps(shape, len(indices))
            bank.update(indices, views, maps)  # writes the pages that are measured next
            clock = time.perf_counter()
            bank.read(indices, views, shape.grid)
            bank.update(indices, views, maps)
            times.append(time.perf_counter() - clock)
        memory = sum(t.numel() * t.element_size() for t in (bank.seen, bank.classes))
        return Traffic(bank.heatmaps.numel(), memory, 1000 * statistics.median(times), shape.batch)


# --- memory ---------------------------------------------------------------------------------------

_COCO = Shape("COCO", 80, 28, 7, 64, 82_081)


def bench_memory(shape: Shape = _COCO) -> None:
    """Prints the peak memory of a training with all heatmaps in a file, and without heatmaps.

    The pages of the file are not counted: the system gives them up when memory is needed.

    Args:
        shape: C, W, G, B and N of the training.
    """
    if not Path("/proc/self/status").exists():
        print("memory: only Linux tells how much memory a process takes\n")
        return
    paths.cache().mkdir(parents=True, exist_ok=True)
    print(
        f"memory of a small network's epoch on {shape.images:,} images, {shape.classes} classes, "
        f"heatmaps of {shape.size} x {shape.size} cells in a file of "
        f"{shape.images * shape.classes * shape.size**2 / 1e9:.2f} GB, a checkpoint and a resume"
    )
    peaks = {}
    for method in ("an", "scl"):
        with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="bench-") as folder:
            # A new process: memory that another part of this one took and gave back counts too.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                peaks[method] = pool.submit(_peak_memory, method, shape, Path(folder)).result()
    for method, peak in peaks.items():
        print(f"{method:4} {peak / 1e9:6.2f} GB  {(peak - peaks['an']) / 1e9:+6.2f} GB")
    print()


def _peak_memory(method: str, shape: Shape, folder: Path) -> int:
    """Bytes at the peak of a training, a checkpoint and a resume; of this process alone."""
    os.environ[paths.BANK_GB] = "0"
    torch.set_num_threads(1)
    side = 4 * shape.grid
    config = RunConfig(
        method=method, epochs=1, batch=shape.batch, image_side=side, crop_side=side,
        settings=MethodSettings(start=0, bank_size=shape.size),
    )  # fmt: skip
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(shape.images, -1, -1, -1)
    labels = torch.zeros(shape.images, shape.classes, dtype=torch.bool)
    with _highest(_own_bytes) as highest:
        model = SpatialClassifier(nn.Sequential(nn.Conv2d(3, 8, 4, 4)), 8, shape.classes)
        own = Method(method, shape.images, shape.classes, config.settings, file=folder / BANK_FILE)
        optimizer = make_optimizer(model, 1e-3, 1.0, 0.0)
        train(model, optimizer, own, images, labels, config)
        checkpoint = Checkpoint(folder, config, model, optimizer, own)
        checkpoint.save(Progress(epoch=1))
        checkpoint.load()
    return max(highest)


def _own_bytes() -> int:
    """Memory of this process that belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(s.split()[1]) for s in lines if s.startswith(("RssAnon:", "RssShmem:")))


@contextlib.contextmanager
def _highest(value: Callable[[], int]) -> Iterator[list[int]]:
    """Watches a value; the list holds what was seen."""
    seen, stop = [value()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            seen.append(value())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()
