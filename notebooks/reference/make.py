"""Makes the files of this folder: `python notebooks/reference/make.py NAME [DATASET [PROFILE]]`.

    backbone                 the scenes' pretrained network; a minute
    photograph               heatmaps of coffee.jpg
    overview                 README's picture; a minute
    runs scenes cpu          the paper's methods, three seeds (also: voc2007 long)
    runs voc2007 cpu 0 1 2 3 4   the same with five
    ablations voc2007 frozen one setting varied at a time
    ablations scenes cpu bank_classes   the same for some settings
    recovery scenes cpu      what a crop still shows (also: voc2007 frozen)
    recovery voc2007 cpu an cl scl en_scl   the same for some methods
    factored scenes cpu      the same for the factored targets (also: voc2007 frozen)
    worth scenes cpu         what knowledge of the crop is worth in training
    league scenes            every loss, the same search for each (also: voc2007, coco18); hours
    league voc2007 an full   the same for some methods; the others stay as they are
    whole voc2007            the best with the whole network (also: coco18); hours
    notebooks 02_results     runs notebooks again in place, in their folder (by default all)

Finished runs in the results are taken as they are. Real data lie below SPCL_DATA.
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from PIL import Image
from torch import Tensor, nn
from torchvision.io import decode_image
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from tqdm import tqdm

from spcl_lib.analysis import league as leagues
from spcl_lib.analysis.localisation import localise
from spcl_lib.analysis.measurements import presence_in_views, score, visible_heat
from spcl_lib.analysis.runs import read_kept
from spcl_lib.analysis.visibility import LEAST, in_view, visible_fraction
from spcl_lib.bank import HeatmapBank
from spcl_lib.config import RunConfig
from spcl_lib.data import scenes
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.image_set import ImageSet
from spcl_lib.evaluate import mean_average_precision, predict_maps, predict_scores
from spcl_lib.methods import METHODS, PAPER_METHODS, Method
from spcl_lib.model import SpatialClassifier, autocast, normalise, small_resnet
from spcl_lib.pooling import MEAN_POOLING, logit
from spcl_lib.reproduce.plan import FOLLOWED
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.league import ROBUST, League, Settings, own_pooling, run_league
from spcl_lib.runs.network import build_network
from spcl_lib.runs.notebooks import describe_figures, execute, notebook_file, notebook_names
from spcl_lib.runs.profiles import OF_TRAINING
from spcl_lib.runs.schedule import run_all
from spcl_lib.runs.settings import make_config, methods_of
from spcl_lib.runs.snapshots import load_trace
from spcl_lib.runs.splits import identify_all, load_splits
from spcl_lib.runs.store import FinishedRun, Run
from spcl_lib.system import paths
from spcl_lib.system.checksums import with_sum
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write
from spcl_lib.system.machine import choose_device, count_cores
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.weights import save_tensors
from spcl_lib.train import batches_of_epoch, make_optimizer, sample_views, set_learning_rates, train
from spcl_lib.viewer import figures, style
from spcl_lib.viewer.explorer_page import starting_class, view_without_label
from spcl_lib.viewer.heat import draw_heat, picture_of
from spcl_lib.views import Views

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
# Glyphs for pretraining; the classes of the scenes are not among them.
GLYPHS = (
    "☀★☮☯☢☣☘☚☹☻☽♁♂♃♄♆♈♉♋♎♐♒♔♖♗♜♝♟♠♣♥♦♨♪♫♻⚀⚄⚑⚒⚔⚕⚖⚗⚘⚛⚜⚠⚰⚱✂✆✇✌✍✎✒✔✘✚✠✡✪✱✴✿❀❂❉❏❖❣❦➊➌➔➘➤➳↺⌂⌘▦◐◢"
)
BATCH, RATE, WARMUP, LEAST_CROP = 64, 3e-3, 0.2, 0.5


def backbone(
    file: Path = HERE / "small_resnet.safetensors", images: int = 10_000, epochs: int = 12
) -> float:
    """Trains the scenes' backbone on single glyphs that are none of the scenes' classes.

    The paper starts from ImageNet's features. These take their place where nothing can be
    downloaded: a network with random weights predicts noise, and consistency with noise does harm.

    Args:
        file: gets the backbone's weights, in float16.
        images: training images.
        epochs: passes over them.

    Returns:
        The top-1 accuracy, in percent, on 1,000 other images of the same glyphs.
    """
    torch.set_num_threads(1)  # else the last bits would depend on the number of cores
    torch.manual_seed(0)
    model = SpatialClassifier(small_resnet(), 128, len(GLYPHS))
    model = model.to(memory_format=torch.channels_last)
    _train_on_glyphs(model, *make_glyphs(images, seed=0), epochs)
    weights = {k: v.half() if v.is_floating_point() else v
               for k, v in model.features.state_dict().items()}  # fmt: skip
    with atomic_write(file) as temporary:
        save_tensors(weights, temporary)
    others, glyphs = make_glyphs(1000, seed=1)
    with torch.no_grad():
        right = MEAN_POOLING(model.eval()(normalise(others))).argmax(1) == glyphs
    return 100 * right.double().mean().item()


def make_glyphs(count: int, seed: int, side: int = 32) -> tuple[Tensor, Tensor]:
    """Images (N, 3, side, side) uint8 with one glyph each, and the glyphs' numbers (N,) int64.

    The objects are as large in pixels as in a scene of 64 pixels, so the images can be small.
    """
    rng = np.random.default_rng((211, seed))
    kinds = rng.integers(len(GLYPHS), size=count)
    images = torch.empty((count, 3, side, side), dtype=torch.uint8)
    for i, kind in enumerate(kinds):
        canvas = scenes.background(rng, side)
        empty = np.zeros((side, side), np.uint8)
        scenes.add_object(canvas, empty, GLYPHS[kind], 1, rng, (0.45, 0.85))
        images[i] = torch.from_numpy(canvas).permute(2, 0, 1)
    return images, torch.from_numpy(kinds)


def _train_on_glyphs(model: nn.Module, images: Tensor, glyphs: Tensor, epochs: int) -> None:
    optimizer = make_optimizer(model, RATE, head_factor=1.0, weight_decay=1e-2)
    batches = [b for e in range(epochs) for b in batches_of_epoch(len(images), BATCH, 0, e)]
    for step, numbers in enumerate(tqdm(batches, desc="training the scenes' backbone")):
        indices = torch.tensor(numbers)
        set_learning_rates(optimizer, RATE, step / len(batches), WARMUP)
        generator = keyed_generator("glyphs", step)
        views = Views.sample(len(indices), (LEAST_CROP, 1.0), generator=generator)
        with autocast(torch.device("cpu"), "auto"):
            maps = model(normalise(views.crop(images[indices], images.shape[-1])))
        optimizer.zero_grad()
        F.cross_entropy(MEAN_POOLING(maps.float()), glyphs[indices]).backward()
        optimizer.step()


def photograph(file: Path = HERE / "coffee-heatmaps.safetensors") -> str:
    """Heatmaps of coffee.jpg from random crops, by torchvision's ImageNet network (it downloads).

    Nothing is trained: it shows running averages of a real network's maps, for 04_heatmaps.

    Args:
        file: gets "espresso" and "coffee mug", (3, 20, 20) each, after 1, 10 and 300 crops.
    """
    weights = MobileNet_V2_Weights.IMAGENET1K_V1
    model = mobilenet_v2(weights=weights).eval()
    names = weights.meta["categories"]
    shown = ["espresso", "coffee mug"]
    chosen = [names.index(name) for name in shown]
    photo = decode_image(HERE / "coffee.jpg")[None].float()
    bank, generator, kept = HeatmapBank(1, len(chosen), 20), torch.Generator().manual_seed(0), []
    for count in tqdm(range(1, 301), desc="crops of the photograph"):
        view = Views.sample(1, (0.1, 0.5), generator=generator)
        with torch.no_grad():
            features = model.features(normalise(view.crop(photo, 224)))
            maps = model.classifier(features.permute(0, 2, 3, 1)).softmax(3).permute(0, 3, 1, 2)
        bank.update(torch.tensor([0]), view, maps[:, chosen])
        if count in (1, 10, 300):
            kept.append(bank.heatmaps[0].clone())
    with atomic_write(file) as temporary:
        save_tensors(dict(zip(shown, torch.stack(kept, 1), strict=True)), temporary)
    return f"{file.name}: after 1, 10 and 300 crops"


def overview(file: Path = HERE / "overview.png") -> str:
    """Draws README's picture: a scene whose crop has lost the label, and what SCL says of it."""
    config = make_config("scenes", "scl", 0, "cpu", {"snapshots": FOLLOWED})
    trace = load_trace(*_finish([config]))
    image = next(i for i in trace.most_corrected() if trace.hidden()[i].sum() == 1)
    view, given = view_without_label(trace, image), int(trace.observed[image].int().argmax())
    hidden = starting_class(trace, image)
    whole, heat = trace.data.images[[image]], trace.heatmaps[-1, image] / 255  # (C, W, W)
    bank = HeatmapBank.of(trace.heatmaps[-1], trace.seen[-1])
    target, _ = bank.read(torch.tensor([image]), view, bank.size)
    full, crop = (picture_of(part[0], 240) for part in (whole, view.crop(whole, 64)))
    label, other = (f"“{trace.data.classes[c]}”" for c in (given, hidden))
    figure, rows = figures.panels(2, 3, 2.0, text=0.45)
    titles = (f"the image, and its\none label: {label}", f"heatmap of\nthe label {label}",
              f"heatmap of {other},\nwhich nobody named")  # fmt: skip
    for axes, title, heats in zip(rows[0], titles, (None, heat[given], heat[hidden]), strict=True):
        figures.show(axes, full if heats is None else draw_heat(full, heats), title)
        figures.draw_box(axes, view.boxes[0])
    titles = (f"a crop of it: AN still\nasks for {label}", f"SCL's target\nfor {label}",
              f"SCL's target\nfor {other}")  # fmt: skip
    for axes, title, c in zip(rows[1], titles, (None, given, hidden), strict=True):
        figures.show(axes, crop if c is None else draw_heat(crop, target[0, c]), title)
    figure.set_figwidth(6.7)  # room for the colour bar
    figure.colorbar(ScalarMappable(cmap=style.HEAT), ax=list(rows.flat), label="probability",
                    pad=0.01, shrink=0.9)  # fmt: skip
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
        temporary.write_bytes(_with_fewer_colours(temporary.read_bytes()))
    return f"{file.name}: image {image} of scenes"


# --- files of results ---------------------------------------------------------------------------


def keep(name: str, content: Mapping[str, Any]) -> Path:
    """Writes NAME.json with rounded numbers, a line for every row of a list; gives the file."""
    parts = []
    for key, value in with_sum(_rounded(dict(content))).items():
        has_rows = isinstance(value, list) and isinstance(next(iter(value), None), dict)
        text = "[\n" + ",\n".join(map(_line, value)) + "\n]" if has_rows else _line(value)
        parts.append(f'"{key}": {text}')
    file = HERE / f"{name}.json"
    with atomic_write(file) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    return file


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _rounded(value: Any) -> Any:
    """Floats with 6 digits (a score in percent: 4 decimals), but not in a run's configuration."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")  # JSON has no NaN
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, dict):
        return {k: v if k == "config" else _rounded(v) for k, v in value.items()}
    return value


# --- what runs give -------------------------------------------------------------------------------


def _jobs() -> int:
    return 1 if choose_device().type == "cuda" else count_cores()


def _finish(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Makes the unfinished runs, and gives all with the fingerprint of their data."""
    known = identify_all(list(dict.fromkeys(configs)), None)
    failed = run_all(known, None, _jobs())
    if failed:
        raise UserError("; ".join(f"{task.name} failed, see {task.log}" for task in failed))
    return known


def runs(dataset: str, profile: str, *seeds: str) -> str:
    """Keeps the runs of the paper's methods."""
    numbers = [int(seed) for seed in seeds] or SEEDS
    configs = [make_config(dataset, m, s, profile) for m in methods_of(dataset) for s in numbers]
    found = [Run.of(config).finished() for config in _finish(configs)]
    return str(keep(f"{dataset}-{profile}", {"runs": found}))


SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)  # least areas of a crop
CROP_METHODS, LEAGUES_BEST = ("an", "cl", "scl", "en_scl", "full"), ("ren_scl",)
RECOVERY_SCALE = 0.1
_SPATIAL, _ALL = ("scl", "en_scl"), ("an", "scl", "en_scl", "full")


def _vary(setting: str, *values: object) -> dict[str, Settings]:
    return {f"{v:g}" if isinstance(v, float) else str(v): {setting: v} for v in values}


def _ablations(
    dataset: str, profile: str, count: int
) -> dict[str, tuple[str, tuple[str, ...], dict[str, Settings]]]:
    """name -> axis, methods, and settings by value: choices that the paper leaves open, or a user.

    Args:
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset]; the values depend on its own settings.
        count: number of training images without this ablation.
    """
    usual = make_config(dataset, "en_scl", 0, profile)
    k, start = usual.settings.expected_positives, usual.settings.start
    counts = _vary("expected_positives", *map(float, (max(1, k / 2), k, 2 * k)))
    parts = _vary("train_images", *(count // n for n in (8, 4, 2)))
    classes = _vary("bank_classes", 1, 2, 3, 5, 10) | {"all": {"bank_classes": 0}}
    found = {
        "momentum": ("momentum", _SPATIAL, _vary("momentum", 0.5, 0.8, 0.9, 0.95)),
        "bank_size": ("W, cells along a side of a heatmap", _SPATIAL,
                      _vary("bank_size", 3, 6, 12, 16, 24)),
        "weight": ("lambda, weight of the consistency", _SPATIAL,
                   _vary("weight", 0.1, 0.3, 1.0, 3.0)),
        "distance": ("distance d", _SPATIAL, _vary("distance", "bce", "l1", "l2")),
        "start": ("start, in epochs", _SPATIAL, _vary("start", 1, start // 2, start, 2 * start)),
        "expected_positives": ("k, expected positives per image", ("en", "en_scl"),
                               counts | {"estimated": {"expected_count": "estimated"}}),
        "bank_dtype": ("type of the running averages", _SPATIAL,
                       _vary("bank_dtype", "uint8", "float16", "float32")),
        "bank_classes": ("K, classes per image with a heatmap", _SPATIAL, classes),
        "train_images": ("number of training images", _ALL, parts | {f"{count}": {}}),
        "draw": ("rule that draws the label", _ALL, _vary("draw", "uniform", "size", "location")),
    }  # fmt: skip
    if usual.trained == "head":
        axis = "cells along a side of an image (its pixels / pixels between cells)"
        found["grid"] = (axis, _ALL, {
            f"{cells} ({side} / {32 // dilation})":
            {"image_side": side, "eval_side": side, "crop_side": crop, "dilation": dilation}
            for side, crop, dilation, cells in
            ((192, 160, 1, 6), (128, 107, 2, 8), (160, 133, 2, 10), (192, 160, 2, 12),
             (224, 187, 2, 14))
        })  # fmt: skip
    return found


def ablate(dataset: str, profile: str, *names: str) -> str:
    """Keeps all ablations of a profile, or some."""
    train, _ = load_splits(make_config(dataset, "an", 0, profile), None)
    every = _ablations(dataset, profile, len(train))
    asked = {name: every[name] for name in names or every}
    cases = [
        (name, method, value, [make_config(dataset, method, s, profile, settings) for s in SEEDS])
        for name, (_, methods, values) in asked.items()
        for value, settings in values.items()
        for method in methods
    ]
    _finish([config for *_, same in cases for config in same])
    rows = [
        {
            "ablation": name, "value": value, "method": method, "mAP": _scores(same),
            "usual": same[0] == make_config(dataset, method, SEEDS[0], profile),
        }
        for name, method, value, same in cases
    ]  # fmt: skip
    return str(keep(f"ablations-{dataset}-{profile}", {
        "dataset": dataset, "profile": profile, "seeds": list(SEEDS), "rows": rows,
        "ablations": {name: {"axis": axis} for name, (axis, *_) in asked.items()},
    }))  # fmt: skip


def _scores(configs: Sequence[RunConfig]) -> list[float]:
    """The mAP of finished runs."""
    return [Run.of(config).finished()["mAP"] for config in configs]


def crop_scale_configs(
    dataset: str, profile: str, scales: Sequence[float] = SCALES, methods: Sequence[str] = ()
) -> list[RunConfig]:
    """The runs of every scale (the least area of a crop), method and seed.

    With small crops, the one label is more often wrong for the crop. Crop recovery is measured with
    RECOVERY_SCALE, where the league's best methods take part, too. At the profile's own scale, the
    runs are those of the profile.
    """
    configs, chosen = [], _chosen_by_league(dataset)
    for scale in scales:
        varied, usual = {"scale_min": scale}, CROP_METHODS
        if scale == RECOVERY_SCALE:
            varied, usual = varied | {"snapshots": FOLLOWED}, (*CROP_METHODS, *LEAGUES_BEST)
        for m in methods or usual:
            settings = varied | (chosen[m] if m in LEAGUES_BEST else {})
            configs += [make_config(dataset, m, seed, profile, settings) for seed in SEEDS]
    return configs


def recovery(dataset: str, profile: str, *methods: str) -> str:
    """Measures crop recovery, by default for all methods that take part, and keeps the table."""
    scales = SCALES if dataset == "scenes" else (RECOVERY_SCALE,)
    return _measure("recovery", crop_scale_configs(dataset, profile, scales, methods))


def factored(dataset: str, profile: str) -> str:
    """The same for the factored targets, with two methods."""
    configs = crop_scale_configs(dataset, profile, [0.1], ("scl", "ren_scl"))
    return _measure("factored", configs)


def _measure(name: str, configs: Sequence[RunConfig]) -> str:
    table, first = measure(_finish(configs)), configs[0]
    if name == "factored":
        table = table[(table.measure == "AUROC") & (table.least == LEAST)]
    return _keep_table(name, first.dataset, first.profile, table.round({"value": 4}))


def _keep_table(name: str, dataset: str, profile: str, table: pd.DataFrame) -> str:
    file = HERE / f"crop-{name}-{dataset}-{profile}.csv"
    with atomic_write(file) as temporary, temporary.open("w") as out:
        made = f"make.py {name} {dataset} {profile}; {date.today()}; torch {torch.__version__}"
        out.write(f"# {made}\n")
        table.to_csv(out, index=False)
    return f"{file.name}: {len(table)} rows"


# --- crop recovery and localisation ---------------------------------------------------------------

# See `measurements.kept`.
COLUMNS = (
    "dataset", "profile", "scale", "method", "seed", "split", "source", "read", "group", "least",
    "measure", "value",
)  # fmt: skip
VIEWS = 4  # random views of each image
VIEWED = 2500  # training images that are viewed: the first ones
EXPONENTS = (0.25, 0.5, 1.0)  # of the visible heat, in the factored targets
LOCALISED = 1000  # images of each split whose maps are compared with the objects: the first ones
LIMITS = (0.0, LEAST, 0.5)  # show how much the findings depend on LEAST; 0 means any pixel
Rows = Iterator[dict[str, Any]]


def measure(configs: Sequence[RunConfig], data_root: str | Path | None = None) -> pd.DataFrame:
    """Measures finished runs of one data set that differ in method, seed and crops only.

    Those with crops from RECOVERY_SCALE are measured in full, by views sampled as in their
    training; of the others, only the mAP is listed. The data must have masks or boxes.
    """
    rows = []
    for config in tqdm(configs, desc="measuring", unit="run"):
        run = Run.of(config, data_root)
        about = {"dataset": config.dataset, "profile": config.profile, "scale": config.scale_min,
                 "method": config.method, "seed": config.seed, "split": "report",
                 "source": "network", "measure": "mAP", "value": run.finished()["mAP"]}  # fmt: skip
        rows.append(about)
        if config.scale_min == RECOVERY_SCALE:
            loaded = run.load(objects=True)
            rows += [about | row for row in (*_recovery(loaded), *_localisation(loaded))]
    return pd.DataFrame(rows, columns=COLUMNS)


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
        image, label = regions.flatten(2).any(2).nonzero().T  # few of the classes are in an image
        found = torch.full((len(views), *regions.shape[:2]), math.nan)
        for fraction, v in zip(found, views, strict=True):
            shown = visible_fraction(regions[image, label, None], v[indices[image]])
            fraction[image, label] = shown[:, 0]
        parts.append(found)
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
    images = inputs_of(run.model, split, run.config).images
    first = images[torch.arange(min(LOCALISED, len(images)))]
    return run.model.pooling.heat(predict_maps(run.model, first, run.config.eval_side))


# --- what knowledge of the crop is worth ----------------------------------------------------------

# methods, what becomes of the annotated label and of SCL's target, least areas of a crop
WORTH: tuple[tuple[tuple[str, ...], str, str, tuple[float, ...]], ...] = (
    (("an", "en_scl"), "given", "view", (0.25, 0.05)),
    (("an", "en_scl"), "crop size", "view", (0.25, 0.05)),
    (("an", "en_scl"), "heatmap", "view", (0.25, 0.05)),
    (("an", "en_scl"), "truth", "view", (0.25, 0.05)),
    (("scl",), "given", "view", (0.25,)),
    (("scl", "en_scl"), "given", "factored", (0.25,)),
    (("scl", "en_scl"), "given", "empty", (0.25,)),
)


class CropMethod(Method):
    """A method that is told what the crop shows of its label, or that has another target of SCL.

    The label becomes 1 - (1 - 1 / C) (1 - area)^2 ("crop size": Soft Augmentation, Liu et al., CVPR
    2023), the share v of its heat in the crop ("heatmap"), or whether the crop shows it ("truth",
    for comparison only). The target is shifted, as logits, until its presence is that in the image
    times v ("factored"), or 0 ("empty"). Nothing of this was tuned.
    """

    label: str
    target: str
    data: ImageSet

    def loss(
        self, maps: Tensor, labels: Tensor, indices: Tensor, views: Views, epoch: float
    ) -> Tensor:
        self.batch = indices, views
        if self.label != "given" and epoch >= self.settings.start:
            labels = labels * self._of_label(indices, views)
        return super().loss(maps, labels, indices, views, epoch)

    def _of_label(self, indices: Tensor, views: Views) -> Tensor:
        if self.label == "heatmap":
            return visible_heat(self.bank, indices, views)
        if self.label == "truth":
            return in_view(visible_fraction(self.data.regions(indices), views)).float()
        area = (views.boxes[:, 2:] - views.boxes[:, :2]).prod(1, keepdim=True)
        return 1 - (1 - 1 / self.num_classes) * (1 - area).square()

    def _agreement(self, cells: Tensor, target: Tensor, seen: Tensor) -> Tensor:
        target = target * (self.target != "empty")
        if self.target == "factored":
            target = self._factored(target, self.pooling.presence(target, seen))
        return super()._agreement(cells, target, seen)

    def _factored(self, target: Tensor, presence: Tensor) -> Tensor:
        indices, views = self.batch
        heat, known = self.bank.read(indices, Views.whole(len(views)), self.bank.size)
        wanted = self.pooling.presence(heat, known) * visible_heat(self.bank, indices, views)
        shift = logit(wanted) - logit(presence)
        return (logit(target) + shift[..., None, None]).sigmoid()


def worth(dataset: str, profile: str) -> str:
    """Trains with what is known of the crop, and keeps the mAP on the final data."""
    cases = [
        (dataset, profile, method, label, target, scale, seed)
        for methods, label, target, scales in WORTH for method in methods
        for scale in scales for seed in SEEDS
    ]  # fmt: skip
    with ProcessPoolExecutor(_jobs(), get_context("spawn")) as pool:
        rows = list(tqdm(pool.map(_train_on_crops, *zip(*cases, strict=True)), total=len(cases)))
    return _keep_table("worth", dataset, profile, pd.DataFrame(rows))


def _train_on_crops(
    dataset: str, profile: str, method: str, label: str, target: str, scale: float, seed: int
) -> dict[str, Any]:
    """A row: the method trained with this label and target; a finished one is taken as it is."""
    about = {"dataset": dataset, "profile": profile, "method": method, "label": label,
             "target": target, "scale": scale, "seed": seed}  # fmt: skip
    file = paths.results() / "crop-worth" / f"{'-'.join(map(str, about.values()))}.json"
    if file.is_file():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    settings: Settings = {"scale_min": scale}
    if method == "an":  # with heatmaps, which only the label reads
        method, settings["weight"] = "scl", 0.0
    config = make_config(dataset, method, seed, profile, settings)
    data, report = load_splits(config, None)
    observed = draw_labels(data, config.draw, config.label_seed)
    model = build_network(config, len(data.classes)).to(memory_format=torch.channels_last)
    own = CropMethod(method, *observed.shape, config.settings, seed, observed, config.epochs)
    own.label, own.target, own.data = label, target, data
    optimizer = make_optimizer(model, config.lr, config.head_lr_factor, config.weight_decay)
    train(model, optimizer, own, data.images, observed, config)
    (scores,) = predict_scores(model, report.images, config.eval_side, [MEAN_POOLING])
    row = about | {"mAP": round(mean_average_precision(scores, report.labels), 4)}
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(row))
    return row


def league(dataset: str, *methods: str) -> str:
    """Keeps the league of a data set: what the search tried and chose, and the final runs.

    With some methods only, those that it had before stay as they are, because every method chooses
    for itself.
    """
    return _keep_league(f"league-{dataset}", League(dataset, methods))


# data set -> who trains the whole network: methods of the paper, and the best in the leagues
_WHOLE = {
    "voc2007": (*PAPER_METHODS, "softmax", "gpr", "gpr_scl", "ren_scl", "cells", "cells_scl"),
    "coco18": ("an", "scl", "en_scl", "full", "softmax", "ll_r", "ren_scl", "cells"),
}
_RATES = (1e-4, 2e-4)


def whole(dataset: str, *methods: str) -> str:
    """Keeps the league of those that train the whole network, see _WHOLE, or of some of them."""
    return _keep_league(
        f"full-training-{dataset}", _WholeNetwork(dataset, methods or _WHOLE[dataset])
    )


class _WholeNetwork(League):
    """A league where the whole network learns, with a smaller search: a run takes minutes.

    Held-out data choose the rate (and GPR's slope and offset), and the pooling in prediction. All
    else is the profile's for the methods of the paper, and what the league of frozen networks chose
    for the others.
    """

    def __init__(self, dataset: str, methods: Sequence[str]) -> None:
        super().__init__(dataset, methods)
        self.profile, self.parts = "cpu", range(1)
        if dataset == "coco18":  # a run takes 9 minutes
            self.seeds = SEEDS

    def _rounds(self) -> Iterator[tuple[str, list[RunConfig]]]:
        yield "search: rate", [self.config(m, s) for m in self.methods for s in self.tried(m)]
        final = [self.final_configs(m, self.chosen(m)) for m in self.methods]
        yield "final", [config for same in final for config in same]

    def tried(self, method: str, step: str = "") -> list[Settings]:
        usual = {} if method in PAPER_METHODS else _chosen_by_league(self.dataset)[method]
        robust = ROBUST if METHODS[method].term == "gpr" else ({},)
        return [usual | own | {"lr": rate} for own in robust for rate in _RATES]

    def chosen(self, method: str, step: str = "") -> Settings:
        def score(settings: Settings) -> float:
            return self.scores(method, settings)[own_pooling(method)]

        return max(self.tried(method), key=score)

    def chosen_pooling(self, method: str) -> tuple[Settings, str]:
        chosen = self.chosen(method)
        scores = self.scores(method, chosen)
        return chosen, max(scores, key=lambda name: scores[name])

    def config(self, method: str, settings: Settings, part: int = 0) -> RunConfig:
        return self._config(method, 0, settings | {"report": "val", "eval_every": 1000})


def _keep_league(name: str, made: League) -> str:
    """Makes the runs of a league and keeps them, beside the methods that its file has already."""
    if failed := run_league(made, _jobs()):
        raise UserError("; ".join(f"{task.name} failed, see {task.log}" for task in failed))
    content = leagues.collect(made)
    has_some = (HERE / f"{name}.json").is_file()
    return str(keep(name, _joined(read_kept(name), content) if has_some else content))


def _joined(kept: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A kept league in which the methods of a new one take the place of their earlier entries."""
    for key in ("dataset", "profile", "seeds"):
        if kept[key] != new[key]:
            raise UserError(f"the kept league has {key} {kept[key]}, this one {new[key]}")
    made, had = ({row["method"] for row in content["final"]} for content in (new, kept))
    stay, rows = had - made, {}  # the search of a method with SCL has a part of its term's, too
    for key in ("search", "final"):
        rows[key] = [row for row in kept[key] if row["method"] in stay]
        rows[key] += [row for row in new[key] if row["method"] not in stay]
    return new | rows


def _chosen_by_league(dataset: str) -> dict[str, Settings]:
    """The settings of every method, but for those of the training: these do not carry over.

    Nor do Softmax's whole images: without crops, a network that learns fits them too well. Of GR's
    published numbers those for VOC are better there, and frozen features chose the others.
    """
    gone = (*OF_TRAINING, "scale_min", *ROBUST[1])
    return {
        entry["method"]: {k: v for k, v in entry["settings"].items() if k not in gone}
        for entry in read_kept(f"league-{dataset}")["final"]
    }


def notebooks(*names: str) -> str:
    """Runs notebooks (by default all) again in place, and cleans them; one that fails stays."""
    for name in names or notebook_names():
        with tempfile.TemporaryDirectory() as folder:
            executed = execute(name, {}, Path(folder) / f"{name}.ipynb")
            notebook = nbformat.read(executed, as_version=4)
        _clean(notebook)
        with atomic_write(notebook_file(name)) as temporary:
            nbformat.write(notebook, str(temporary))
    return ", ".join(names or notebook_names())


def _clean(notebook: nbformat.NotebookNode) -> None:
    """Removes metadata that differ between runs and machines; keeps outputs and counts."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        by_hand = ("tags", "slideshow")
        cell.metadata = {k: v for k, v in cell.metadata.items() if v and k in by_hand}
        for out in cell.get("outputs", []):
            if "metadata" in out:
                out.metadata = {}
            png = out.get("data", {}).get("image/png", "")
            if len(png) > 30_000:
                smaller = base64.b64encode(_with_fewer_colours(base64.b64decode(png))).decode()
                out.data["image/png"] = min(png, smaller, key=len)
    describe_figures(notebook)


def _with_fewer_colours(png: bytes) -> bytes:
    """A figure with 256 colours; a picture then has a third of its size.

    The colours are chosen by coverage, not by frequency, else colour scales would show bands.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = {"method": Image.Quantize.MAXCOVERAGE, "kmeans": 3, "dither": Image.Dither.NONE}
    buffer = io.BytesIO()
    image.quantize(256, **palette).save(buffer, "png", optimize=True)
    return buffer.getvalue()


MAKERS = {
    "backbone": backbone, "photograph": photograph, "overview": overview, "runs": runs,
    "ablations": ablate, "recovery": recovery, "factored": factored, "worth": worth,
    "league": league, "whole": whole, "notebooks": notebooks,
}  # fmt: skip

if __name__ == "__main__":
    name, *arguments = sys.argv[1:] or [""]
    if name not in MAKERS:
        sys.exit(__doc__)
    print(MAKERS[name](*arguments))
