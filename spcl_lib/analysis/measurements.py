"""Measures crop recovery and localisation on finished runs, and reads what has been kept.

All values are in one tidy table, a row per number. `notebooks/reference/make.py` keeps it in files,
`crop-recovery-DATASET-PROFILE.csv`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.analysis import localisation, recovery, visibility
from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.splits import load_splits
from spcl_lib.runs.store import FinishedRun, Run
from spcl_lib.system import paths
from spcl_lib.views import Views

# scale: least area of a training crop. source: label, average (CL), heatmap, network. read: "view",
# "whole", or factored: "e=0.25" is whole x v^0.25. group: "labelled" or "unlabelled" classes, or
# "all". value: in percent.
COLUMNS = (
    "dataset", "profile", "scale", "method", "seed", "split", "source", "read", "group", "least",
    "measure", "value",
)  # fmt: skip
SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)  # at which it is counted how often the label is wrong
VIEWS = 4  # random views of each image
VIEWED = 2500  # training images that are viewed: the first ones
EXPONENTS = (0.25, 0.5, 1.0)  # of the visible heat, in the factored targets
LOCALISED = 1000  # images of each split whose maps are compared with the objects: the first ones
Rows = Iterator[dict[str, Any]]


def kept(name: str = "crop-recovery", folder: Path | None = None) -> pd.DataFrame:
    """Kept measurements, with the columns COLUMNS, from the files NAME-*.csv of a folder.

    Besides crop-recovery there is crop-factored, with the factored targets.
    """
    files = sorted((folder or paths.reference()).glob(f"{name}-*.csv"))
    return pd.concat([pd.read_csv(file, comment="#") for file in files], ignore_index=True)


def measure(configs: Sequence[RunConfig], data_root: str | Path | None = None) -> pd.DataFrame:
    """Measures finished runs of one data set that differ in method, seed and crops only.

    Those with the smallest crops are measured in full, by views sampled as in their training; of
    the others, only the mAP is listed. The data must have masks or boxes.
    """
    splits = load_splits(configs[0], data_root, objects=True)
    smallest, rows = min(c.scale_min for c in configs), []
    for config in tqdm(configs, desc="measuring", unit="run"):
        run = Run.of(config, data_root).load(splits=splits)
        about = {"dataset": config.dataset, "profile": config.profile, "scale": config.scale_min,
                 "method": config.method, "seed": config.seed, "split": "report",
                 "source": "network", "measure": "mAP", "value": run.metrics["mAP"]}  # fmt: skip
        rows.append(about)
        if config.scale_min == smallest:
            rows += [about | row for row in (*_recovery(run), *_localisation(run))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _recovery(run: FinishedRun) -> Rows:
    """How well the run's supervision says what views show; for AN, how often its label is wrong."""
    data, observed = run.train.first(VIEWED), run.observed[:VIEWED]
    if run.config.method == "an":
        for scale in SCALES:
            views = _views(replace(run.config, scale_min=scale), len(data))
            wrong = visibility.wrong_labels(visibility.visible_fractions(data, views), observed)
            yield {"scale": scale, "split": "train", "source": "label", "measure": "wrong",
                   "value": wrong}  # fmt: skip
    views = _views(run.config, len(data))
    fraction = visibility.visible_fractions(data, views).flatten(0, 1)  # (VIEWS * N, C)
    together = Views(torch.cat([v.boxes for v in views]), torch.cat([v.flipped for v in views]))
    indices, observed = torch.arange(len(data)).repeat(VIEWS), observed.repeat(VIEWS, 1)
    asked = {"labelled": observed, "unlabelled": ~observed, "all": torch.ones_like(observed)}
    for (source, read), target in _targets(run, indices, together).items():
        about = {"split": "train", "source": source, "read": read}
        for least in visibility.LIMITS:
            truth = visibility.in_view(fraction, least)
            for group, pairs in asked.items():
                for name, value in recovery.score(target, truth, pairs).items():
                    yield about | {"group": group, "least": least, "measure": name, "value": value}


def _views(config: RunConfig, count: int) -> list[Views]:
    return [visibility.viewed_crops(count, config, config.seed, i) for i in range(VIEWS)]


def _targets(run: FinishedRun, indices: Tensor, views: Views) -> dict[tuple[str, str], Tensor]:
    """What the run's supervision says of the views, (M, C), by source and way of reading."""
    if run.config.method == "an":
        return {("label", "whole"): run.observed[indices].float()}
    if run.bank is None:
        return {}
    bank, pooling, images = run.bank, run.model.pooling, Views.whole(len(indices))
    whole = recovery.presence_in_views(bank, indices, images, bank.size, pooling)
    if bank.size == 1:
        return {("average", "whole"): whole}
    through = recovery.presence_in_views(bank, indices, views, run.grid, pooling)
    v = recovery.visible_heat(bank, indices, views)
    factored = {("heatmap", f"e={e:g}"): whole * v**e for e in EXPONENTS}
    return {("heatmap", "whole"): whole, ("heatmap", "view"): through} | factored


def _localisation(run: FinishedRun) -> Rows:
    """How well the network's maps on both splits, and the heatmaps, find the objects."""
    train, report = run.train.first(LOCALISED), run.report.first(LOCALISED)
    observed = run.observed[:LOCALISED]
    cases = [("train", "network", _maps(run, run.train), train, observed),
             ("report", "network", _maps(run, run.report), report, None)]  # fmt: skip
    if run.bank is not None and run.bank.size > 1:
        heatmaps, _ = run.bank.stored(slice(len(train)))
        cases.append(("train", "heatmap", heatmaps, train, observed))
    for split, source, maps, data, labels in cases:
        for group, values in localisation.localise(maps, data, labels).items():
            about = {"split": split, "source": source, "read": "whole", "group": group}
            yield from ({**about, "measure": k, "value": v} for k, v in values.items())


def _maps(run: FinishedRun, split: ImageSet) -> Tensor:
    images = inputs_of(run.model, split, run.config).images[:LOCALISED]
    return run.model.pooling.heat(predict_maps(run.model, images, run.config.eval_side))
