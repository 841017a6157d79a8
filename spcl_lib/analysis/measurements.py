"""Measures crop recovery and localisation on finished runs, and reads what has been kept.

Crop recovery: does the supervision know what a random crop still shows? The paper claims that SCL
recovers the right supervision when the crop has cut out most of the one labelled object. All values
are in one tidy table, which `notebooks/reference/make.py` keeps: `crop-recovery-*.csv`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bars cannot be switched off (TQDM_DISABLE)

from spcl_lib.analysis.localisation import localise
from spcl_lib.analysis.visibility import LEAST, in_view, visible_fraction
from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import predict_maps
from spcl_lib.pooling import Pooling
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.store import FinishedRun, Run
from spcl_lib.system import paths
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.train import sample_views
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
LIMITS = (0.0, LEAST, 0.5)  # show how much the findings depend on LEAST; 0 means any pixel
_AT_ONCE = 1024  # views whose heatmaps are in memory at a time
Rows = Iterator[dict[str, Any]]


def kept(name: str = "crop-recovery") -> pd.DataFrame:
    """Kept measurements, with the columns COLUMNS; crop-factored has the factored targets."""
    files = sorted(paths.reference().glob(f"{name}-*.csv"))
    return pd.concat([pd.read_csv(file, comment="#") for file in files], ignore_index=True)


def measure(configs: Sequence[RunConfig], data_root: str | Path | None = None) -> pd.DataFrame:
    """Measures finished runs of one data set that differ in method, seed and crops only.

    Those with the smallest crops are measured in full, by views sampled as in their training; of
    the others, only the mAP is listed. The data must have masks or boxes.
    """
    smallest, rows = min(c.scale_min for c in configs), []
    for config in tqdm(configs, desc="measuring", unit="run"):
        run = Run.of(config, data_root)
        about = {"dataset": config.dataset, "profile": config.profile, "scale": config.scale_min,
                 "method": config.method, "seed": config.seed, "split": "report",
                 "source": "network", "measure": "mAP", "value": run.finished()["mAP"]}  # fmt: skip
        rows.append(about)
        if config.scale_min == smallest:
            loaded = run.load(objects=True)
            rows += [about | row for row in (*_recovery(loaded), *_localisation(loaded))]
    return pd.DataFrame(rows, columns=COLUMNS)


def presence_in_views(
    bank: HeatmapBank, indices: Tensor, views: Views, grid: int, pooling: Pooling
) -> Tensor:
    """What running averages say (B, C) of every class in B views; 0 where nothing has been seen.

    Heatmaps (SCL) are read through the view, at the training's grid. The averages of CL (size 1)
    know nothing of places and are read whole.
    """
    if bank.size == 1:
        views, grid = Views.whole(len(indices)), 1
    parts = torch.arange(len(indices)).split(_AT_ONCE)
    return torch.cat([pooling.presence(*bank.read(indices[p], views[p], grid)) for p in parts])


def visible_heat(bank: HeatmapBank, indices: Tensor, views: Views) -> Tensor:
    """Share v (B, C) of a class's heat that the view shows: sum of H^2 over its cells / sum of H^2.

    With it, a target factors (ours): presence in the whole image * v ** e. The first factor asks
    whether the class is in the image; the second, how much of it the crop shows.
    """
    shares = []
    for part in torch.arange(len(indices)).split(_AT_ONCE):
        whole = Views.whole(len(part))
        heat = bank.read(indices[part], whole, bank.size)[0].square()  # (b, C, W, W)
        shown = (heat * views[part].visible(bank.size)).sum((2, 3))
        shares.append(shown / heat.sum((2, 3)).clamp(min=1e-12))  # 0 for a class without heat
    return torch.cat(shares)


def score(target: Tensor, truth: Tensor, asked: Tensor) -> float:
    """How well a target (M, C) ranks the views that show a class before those that do not: AUROC.

    `truth` (M, C) bool says which those are, `asked` (M, C) bool which pairs count. It is in
    percent, the mean over the classes with both answers; NaN without such a class.
    """
    found = []
    for says, is_true, counts in zip(target.T, truth.T, asked.T, strict=True):
        answers = is_true[counts].numpy(), says[counts].numpy()
        if 0 < answers[0].sum() < len(answers[0]):
            found.append(roc_auc_score(*answers))
    return 100 * float(torch.tensor(found).mean())


def _recovery(run: FinishedRun) -> Rows:
    """How well the run's supervision says what views show; for AN, how often its label is wrong."""
    data, observed = run.train.first(VIEWED), run.observed[:VIEWED].repeat(VIEWS, 1)
    if run.config.method == "an":
        for scale in SCALES:
            views = _views(run.config.replace(scale_min=scale), len(data))
            shown = _visible(data, views)[observed]  # NaN: a label without a known region
            wrong = ~in_view(shown[~shown.isnan()])
            yield {"scale": scale, "split": "train", "source": "label", "measure": "wrong",
                   "value": 100 * float(wrong.double().mean())}  # fmt: skip
    views = _views(run.config, len(data))
    fraction = _visible(data, views)
    together = Views(torch.cat([v.boxes for v in views]), torch.cat([v.flipped for v in views]))
    asked = {"labelled": observed, "unlabelled": ~observed, "all": torch.ones_like(observed)}
    for (source, read), target in _targets(run, together).items():
        about = {"split": "train", "source": source, "read": read, "measure": "AUROC"}
        for least in LIMITS:
            truth = in_view(fraction, least)
            for group, pairs in asked.items():
                value = score(target, truth, pairs)
                yield about | {"group": group, "least": least, "value": value}


def _views(config: RunConfig, count: int) -> list[Views]:
    """VIEWS times one view of each image, sampled as in the training."""
    keys = [keyed_generator("recovery", config.seed, i) for i in range(VIEWS)]
    return [sample_views(count, config, key) for key in keys]


def _visible(data: ImageSet, views: Sequence[Views]) -> Tensor:
    """The `visible_fraction` (VIEWS * N, C) of every view, for some images at a time."""
    parts = []
    for indices in torch.arange(len(data)).split(32):
        regions = data.regions(indices)
        parts.append(torch.stack([visible_fraction(regions, v[indices]) for v in views]))
    return torch.cat(parts, 1).flatten(0, 1)


def _targets(run: FinishedRun, views: Views) -> dict[tuple[str, str], Tensor]:
    """What the run's supervision says of the views, (M, C), by source and way of reading."""
    bank, pooling = run.bank, run.model.pooling
    indices = torch.arange(len(views) // VIEWS).repeat(VIEWS)
    if run.config.method == "an":
        return {("label", "whole"): run.observed[indices].float()}
    if bank is None:
        return {}
    whole = presence_in_views(bank, indices, Views.whole(len(views)), bank.size, pooling)
    if bank.size == 1:
        return {("average", "whole"): whole}
    through = presence_in_views(bank, indices, views, run.grid, pooling)
    v = visible_heat(bank, indices, views)
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
        for group, values in localise(maps, data, labels).items():
            about = {"split": split, "source": source, "read": "whole", "group": group}
            yield from ({**about, "measure": k, "value": v} for k, v in values.items())


def _maps(run: FinishedRun, split: ImageSet) -> Tensor:
    images = inputs_of(run.model, split, run.config).images[:LOCALISED]
    return run.model.pooling.heat(predict_maps(run.model, images, run.config.eval_side))
