"""Measures crop recovery and localisation on finished runs, and gives tables of plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.analysis import localisation, recovery, visibility
from spcl_lib.analysis.statistics import Rows
from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.methods import METHODS
from spcl_lib.runs.ablation import CROP_SCALES
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.snapshots import FILE, load_snapshots
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.store import FinishedRun, Run
from spcl_lib.system.errors import UserError
from spcl_lib.views import Views

Tables = dict[str, Rows]
VIEWS = 4  # random views of each image
VIEWED = 2500  # the number of training images that are viewed: the first ones
FOLLOWED_VIEWS = 32  # random views of each image that the snapshots follow
LOCALISED = 1000  # images of each split whose maps are compared with the objects: the first ones
TABLES = ("sources", "reliability", "visibility", "decisions", "localisation")


def measure(configs: Sequence[RunConfig], data_root: str | Path | None = None) -> Tables:
    """Measures finished runs that differ in method and seed only.

    Args:
        configs: configurations of finished runs. Views are sampled as in their training.
        data_root: see `paths.data_root`.

    Returns:
        Tables of rows. All values are in percent, except targets and reliability.
        wrongness: how much of the labelled object crops show, by seed and least crop area.
        sources, reliability, visibility: how good every source of supervision is, by seed. A
            source is "an" (the raw label), a method with consistency (its running averages, read
            through the view), or METHOD_whole (the same heatmaps, read without the view).
        decisions: labels corrected and spoiled, by method and seed; on "all" images after the last
            epoch for recovery.FALLS, on "followed" images after every epoch for recovery.FALL.
        localisation: results by method, seed, split and kind of maps.

    Raises:
        UserError: the data are missing, or have no known regions.
    """
    splits = load_splits(configs[0], data_root, objects=True)
    _check_regions(splits[0], configs[0])
    found: Tables = {name: [] for name in TABLES}
    watched: dict[int, tuple[Watched, Watched]] = {}  # by seed
    for config in tqdm(configs, desc="measuring", unit="run"):
        run = Run.of(config, data_root).load(splits=splits)
        if config.seed not in watched:
            watched[config.seed] = _watch_both(run)
            many = watched[config.seed][0]
            _score_source(found, "an", config.seed, many.observed.float(), many)
        if METHODS[config.method].consistency and run.bank is not None:
            _add_supervision(found, run, run.bank, *watched[config.seed])
        found["localisation"] += _measure_localisation(run)
    return {"wrongness": _wrongness(configs, splits[0], run.observed)} | found


def _check_regions(data: ImageSet, config: RunConfig) -> None:
    try:
        data.regions(torch.tensor([0]))
    except ValueError as error:
        raise UserError(f"crop recovery cannot be measured on {config.dataset}: {error}") from error


# --- crops ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """M random views of some images, and the visible fraction of every class.

    Attributes:
        indices: (M,) int64, image numbers.
        views: M views.
        fraction: (M, C) visible fractions.
        observed: (M, C) bool, single labels of the viewed images.
    """

    indices: Tensor
    views: Views
    fraction: Tensor
    observed: Tensor


def _watch_both(run: FinishedRun) -> tuple[Watched, Watched]:
    """Views of many images, and more views per image of the few that snapshots follow."""
    return (
        watch(run.train.first(VIEWED), run.observed, run.config, VIEWS),
        watch(run.train.first(run.config.snapshots), run.observed, run.config, FOLLOWED_VIEWS),
    )


def watch(data: ImageSet, observed: Tensor, config: RunConfig, times: int) -> Watched:
    """Views every image `times` times, as the training of `config` does."""
    count, observed = len(data), observed[: len(data)]
    views = [visibility.viewed_crops(count, config, config.seed, i) for i in range(times)]
    fraction = visibility.visible_fractions(data, views)  # (times, N, C)
    together = Views(torch.cat([v.boxes for v in views]), torch.cat([v.flipped for v in views]))
    indices = torch.arange(count).repeat(times)
    return Watched(indices, together, fraction.flatten(0, 1), observed.repeat(times, 1))


def _wrongness(configs: Sequence[RunConfig], train: ImageSet, observed: Tensor) -> Rows:
    """How often the label is wrong for the view, for every crop scale of the ablation."""
    data = train.first(VIEWED)
    observed = observed[: len(data)]
    scales = sorted({*CROP_SCALES, configs[0].scale_min}, reverse=True)
    cases = [(seed, s) for seed in sorted({c.seed for c in configs}) for s in scales]
    views = [
        visibility.viewed_crops(len(data), replace(configs[0], scale_min=s), seed, i)
        for seed, s in cases
        for i in range(VIEWS)
    ]
    fraction = visibility.visible_fractions(data, views).unflatten(0, (len(cases), VIEWS))
    return [
        {"seed": seed, "scale_min": s} | visibility.label_visibility(f, observed)
        for (seed, s), f in zip(cases, fraction, strict=True)
    ]


# --- supervision ----------------------------------------------------------------------------------


def _score_source(found: Tables, source: str, seed: int, target: Tensor, many: Watched) -> None:
    """Adds rows that say how good one source of supervision is."""
    about = {"source": source, "seed": seed}
    for table, rows in (
        ("sources", recovery.score_target),
        ("reliability", recovery.reliability_rows),
        ("visibility", recovery.target_by_visibility),
    ):
        found[table] += [about | row for row in rows(target, many.fraction, many.observed)]


def _add_supervision(
    found: Tables, run: FinishedRun, bank: HeatmapBank, many: Watched, few: Watched
) -> None:
    """Adds rows that say how good the running averages of a run are."""
    method, seed, pooling = run.config.method, run.config.seed, run.model.pooling
    target = recovery.presence_in_views(bank, many.indices, many.views, run.grid, pooling)
    _score_source(found, method, seed, target, many)
    if bank.size > 1:
        whole = recovery.presence_in_images(bank, many.indices, pooling)
        _score_source(found, f"{method}_whole", seed, whole, many)
    about = {"method": method, "seed": seed}
    end = {"epoch": run.config.epochs, "images": "all"}
    found["decisions"] += [about | end | row for row in _decide(run, bank, many, recovery.FALLS)]
    for epoch, snapshot in _snapshots(run):
        (row,) = _decide(run, snapshot, few, (recovery.FALL,))
        found["decisions"].append(about | {"epoch": epoch, "images": "followed"} | row)


def _decide(run: FinishedRun, bank: HeatmapBank, watched: Watched, falls: Sequence[float]) -> Rows:
    w = watched
    return recovery.count_corrections(
        bank, w.indices, w.views, w.fraction, w.observed, run.grid, falls, run.model.pooling
    )


def _snapshots(run: FinishedRun) -> list[tuple[int, HeatmapBank]]:
    """Epochs and their banks, without epochs in which nothing has been seen yet."""
    if not (run.folder / FILE).is_file():
        return []
    snapshots = load_snapshots(run.folder)
    banks = [(epoch, snapshots.bank(epoch)) for epoch in range(1, len(snapshots) + 1)]
    return [(epoch, bank) for epoch, bank in banks if bool(bank.seen.any())]


# --- localisation ---------------------------------------------------------------------------------


def _measure_localisation(run: FinishedRun) -> Rows:
    """Rows for the heatmaps, if the run has any, and for the network's maps on both splits."""
    train, report = run.train.first(LOCALISED), run.report.first(LOCALISED)
    observed = run.observed[: len(train)]
    rows = []
    if run.bank is not None and run.bank.size > 1:
        heatmaps, _ = run.bank.stored(slice(len(train)))
        rows += _rows(run, "heatmaps", "train", heatmaps, train, observed)
    rows += _rows(run, "network", "train", _maps(run, run.train), train, observed)
    return rows + _rows(run, "network", "report", _maps(run, run.report), report, None)


def _maps(run: FinishedRun, split: ImageSet) -> Tensor:
    """The network's maps of the first images; from the kept features if only the head learned."""
    images = inputs_of(run.model, split, run.config).images[:LOCALISED]
    return predict_maps(run.model, images, run.config.eval_side, run.config.amp).sigmoid()


def _rows(
    run: FinishedRun, kind: str, split: str, maps: Tensor, data: ImageSet, observed: Tensor | None
) -> Rows:
    about = {"method": run.config.method, "seed": run.config.seed, "split": split, "maps": kind}
    found = localisation.localise(maps, data)
    return [about | row for row in localisation.summary(found, observed)]
