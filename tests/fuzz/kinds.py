"""The kinds of files that the project reads, each with a sound example and its reader."""

import contextlib
import csv
import importlib.util
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from attack import Kind, World
from fake_runs import fake_runs
from PIL import Image
from small_coco import write_coco
from small_folder import QUICK, make_folder, save_noise, write_csv
from small_imagenet import make_imagenet
from small_voc import voc_ids, write_annotations, write_lists

from spcl_lib import Predictor
from spcl_lib.analysis import league
from spcl_lib.analysis import runs as tables
from spcl_lib.analysis.intervals import summary
from spcl_lib.data.coco import list_coco
from spcl_lib.data.folders import list_folder_splits, list_table
from spcl_lib.data.imagenet import list_imagenet
from spcl_lib.data.images import try_image
from spcl_lib.data.voc import list_voc
from spcl_lib.reproduce import manifest, steps
from spcl_lib.runs import checkpoint, features, run, store
from spcl_lib.runs.predict import predict_files
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.snapshots import load_snapshots
from spcl_lib.runs.thresholds import read_thresholds, write_thresholds
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import explain_refusals
from spcl_lib.system.weights import load_weights, save_tensors

SIDE = 16
SETTINGS = QUICK | {
    "epochs": 2, "batch": 4, "start": 1, "ramp": 1.0, "bank_size": 4, "eval_every": 1,
}  # fmt: skip
METHODS = ("an", "en", "en_scl")
MOST_STEPS = 100
MACHINE = {"device": "A processor", "threads": 1, "torch": "2", "commit": "abc1234"}
COUNTED = {
    "mAP",
    "AP",
    "classes_without_positive",
    "top1_accuracy",
    "at_0.5",
    "top_3",
    "mAP_by_pooling",
    "dataset",
    "profile",
    "method",
    "seed",
    "epochs",
    "train_images",
    "report_images",
    "report_labels",
    "threshold",
    "at_threshold",
    "classes",
    "history",
    "config",
}  # of the metrics; not the times
REFERENCES = Path(__file__).parents[2] / "notebooks" / "reference"


class Stopped(BaseException):
    """As sudden as a kill."""


class Endless(BaseException):
    """A valid training that would take too long for a test."""


def bounded(train):
    """The training loop, which refuses trainings that are valid but long."""

    def work(model, optimizer, method, images, labels, config, *given):
        if config.epochs * math.ceil(len(images) / config.batch) > MOST_STEPS:
            raise Endless
        return train(model, optimizer, method, images, labels, config, *given)

    return work


def tiny_backbone():
    """The backbone of `old/make.py`, whose weights take less than a kilobyte."""
    spec = importlib.util.spec_from_file_location("make", Path(__file__).parents[1] / "old/make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    return make.tiny_backbone


def photos_config(method="en_scl", **changes):
    return make_config("folder", method, 0, "smoke", SETTINGS | changes)


# --- worlds ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def living_in(folder: Path) -> Iterator[Path]:
    """Results, caches and references of the block are those of a world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_RESULTS", str(folder / "results"))
        patch.setenv("SPCL_CACHE", str(folder / "cache"))
        patch.setattr(paths, "reference", lambda: folder / "reference")
        run._loaded.clear()  # the splits of this process's last run
        yield folder


def stop_after(patch, owner, name, count):
    """The process dies after so many calls of a function."""
    work, calls = getattr(owner, name), []

    def work_and_die(*given):
        done = work(*given)
        calls.append(1)
        if len(calls) == count:
            raise Stopped
        return done

    patch.setattr(owner, name, work_and_die)


def make_stopped(folder):
    """Photographs, and a run that was stopped in its second epoch."""
    root = make_folder(folder / "photos")
    with living_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
        stop_after(patch, checkpoint.Checkpoint, "save", 4)
        with contextlib.suppress(Stopped):
            run.run(photos_config(snapshots=2), root)
    return World(folder)


def make_finished(folder):
    """Photographs, finished runs on them, and what else may lie in the folder of results."""
    root = make_folder(folder / "photos")
    with living_in(folder):
        for method in METHODS:
            run.run(photos_config(method, snapshots=2), root)
        with contextlib.suppress(Stopped), pytest.MonkeyPatch.context() as patch:
            stop_after(patch, run, "choose_threshold", 1)
            run.run(photos_config("an", snapshots=2), root, force=True)
        predictor = Predictor.load(run_of(folder))
        for ending in ("csv", "json"):
            predict_files(predictor, root / "dog", folder / f"predictions.{ending}")
        limits = torch.tensor([0.25, 0.75])
        write_thresholds(folder / "limits", limits, predictor.classes, predictor.scores_of())
        manifest.note_notebook(a_task(), {"finished": True, "key": "0", "seconds": 1.0})
    return World(folder)


def make_features(folder):
    """Photographs and a computation of their features that was stopped."""
    root = make_folder(folder / "photos")
    with living_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_BATCH", 4)
        run.run(photos_config(trained="head"), root)
        shutil.rmtree(folder / "results")
        sound = next((folder / "cache").glob("features-*-12-*.bin"))
        sound.rename(folder / "sound.bin")
        stop_after(patch, features, "normalise", 3)  # once for the shape, then for two chunks
        with contextlib.suppress(Stopped):
            run.run(photos_config(trained="head"), root)
        shutil.rmtree(folder / "results")
        (folder / "sound.bin").rename(sound)
    return World(folder)


def make_photos(folder):
    """Photographs with labels in lists, and a table with boxes."""
    root, table = make_folder(folder / "photos"), make_folder(folder / "table")
    names = [f"{c}/{c} {i}.png" for c, count in (("cat", 10), ("dog", 5)) for i in range(count)]
    write_csv(root / "single.csv", "path,label", *(f"{n},{n[:3]}" for n in names[:12]))
    write_csv(root / "full.csv", "path,labels", f"{names[12]},cat|dog", f"{names[13]},dog",
              f"{names[14]},")  # fmt: skip
    rows = [f"{n},{n[:3]}|dog,0 0 0.5 0.5|0.1 0.2 0.9 1" for n in names]
    write_csv(table / "train.csv", "path,labels,boxes", *rows[:9])
    write_csv(table / "val.csv", "path,labels,boxes", *rows[9:], "")
    return World(folder)


def make_voc(folder):
    main = folder / "VOCdevkit" / "VOC2007"
    write_lists(main)
    objects = {i: [("cat", 2, 3, 12, 9), ("dog", 1, 1, 24, 18)] for i in voc_ids()["train"]}
    write_annotations(main, objects)
    with living_in(folder):
        list_voc(folder, "train", 2007, boxes=True)
    return World(folder)


def make_coco(folder):
    write_coco(folder)
    return World(folder)


def make_classes(folder):
    make_imagenet(folder)
    return World(folder)


def make_images(folder):
    for ending in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        save_noise(folder / f"noise.{ending}")
    Image.new("P", (9, 7), 3).save(folder / "palette.png", transparency=3)
    Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9)).save(folder / "16bit.png")
    return World(folder)


def make_weights(folder):
    folder.mkdir()
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    torch.save(model.state_dict(), folder / "weights.pth")
    save_tensors(model.state_dict(), folder / "weights.safetensors")
    return World(folder)


def make_references(folder):
    """The files that are kept under version control; those of runs are made up, to be small."""
    with living_in(folder):
        (folder / "reference").mkdir(parents=True)
        tables.keep("scenes-cpu", {"runs": fake_runs(seeds=(0, 1))})
    for name in ("league-scenes", "ablations-voc2007-frozen"):
        shutil.copy(REFERENCES / f"{name}.json", folder / "reference")
    return World(folder)


# --- readers --------------------------------------------------------------------------------------


def run_of(folder, method="en_scl"):
    """The folder of a finished run in a world."""
    return next(folder.glob(f"results/*/{method}-seed0-*/config.json")).parent


def outcome_of(folder, config):
    """Metrics and files of a run, without its times and without what damage has put aside."""
    metrics = {k: v for k, v in run.run(config, folder / "photos").items() if k in COUNTED}
    left = (".lock", "metrics.json", "log.txt")
    files = {
        file.name: file.read_bytes()
        for file in store.run_folder(run.identify_data(config, folder / "photos")).iterdir()
        if file.is_file() and file.name not in left and file.suffix != ".damaged"
    }
    return json.loads(json.dumps(metrics)), files


def scores_of(folder):
    predictor = Predictor.load(run_of(folder))
    images = torch.arange(2 * 3 * SIDE * SIDE).view(2, 3, SIDE, SIDE).to(torch.uint8)
    scores = predictor(images)
    assert scores.shape == (2, len(predictor.classes)) and scores.isfinite().all()
    assert predictor.threshold is None or 0 <= predictor.threshold <= 1
    return scores.numpy().tobytes(), predictor.classes, predictor.threshold


def heatmaps_of(folder):
    config = run.identify_data(photos_config(snapshots=2), folder / "photos")
    loaded = store.Run.of(config, folder / "photos").load()
    heatmaps, seen = loaded.bank.stored(slice(0, 15))
    assert heatmaps.shape == (12, 2, 4, 4) and heatmaps.isfinite().all()
    return heatmaps.float().numpy().tobytes(), seen.numpy().tobytes()


def snapshots_of(folder):
    kept = load_snapshots(run_of(folder))
    heatmaps, seen = kept.bank(len(kept)).stored(slice(None))
    assert kept.maps.dtype == torch.uint8 and kept.maps.ndim == 5
    return kept.maps.numpy().tobytes(), heatmaps.numpy().tobytes(), seen.numpy().tobytes()


def texts_of(runs):
    """Everything that is said about runs."""
    return summary(tables.table_of(runs)).to_string()


def own_table(folder):
    changed = SETTINGS | {"snapshots": 2}
    runs = tables.load_runs("results", "folder", "smoke", changed, folder / "photos")
    notes = {"train_seconds": 1.0, "finished": "", "machine": MACHINE}  # they have no checksum
    return texts_of([one | notes for one in runs])


def summary_of(folder):
    """The rows without the times, which have no checksum."""
    with open(store.write_summary(), newline="") as handle:
        return [row | {"train_seconds": ""} for row in csv.DictReader(handle)]


def settings_of(folder):
    file = run_of(folder) / "config.json"
    own = store.Run.find(file)
    # The settings are valid, but may fit neither data nor memory.
    with contextlib.suppress(Endless, UserError), explain_refusals():
        run.run(own.config, own.data_root)


def predictions_of(folder, name, starts):
    file = folder / name
    content = file.read_bytes()
    predict_files(Predictor.load(run_of(folder)), folder / "photos" / "dog", file)
    assert not content or content.startswith(starts), "a file of other content was replaced"
    return file.read_bytes()


def thresholds_of(folder):
    predictor = Predictor.load(run_of(folder))
    found = read_thresholds(folder / "limits", predictor.classes, predictor.scores_of())
    assert found.shape == (2,) and (found >= 0).all() and (found <= 1).all()


def repeat_of(folder):
    config = photos_config("an", snapshots=2)
    run.run(config, folder / "photos", force=True)
    return outcome_of(folder, config)


def a_task():
    return steps.NotebookTask("02_results", "02_results", {})


def notes_of(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "write_index", lambda found, runs: "page")
        steps._write_index()
        manifest.is_current(a_task(), manifest.read_manifest())
        manifest.note_notebook(a_task(), {"finished": False})
        return manifest.read_manifest()


def described(data):
    """An image set, after a check that it is one."""
    count, classes = len(data), len(data.classes)
    assert data.labels.shape == (count, classes) and data.labels.dtype == torch.bool
    assert len(set(data.ids)) == count and len(set(data.classes)) == classes >= 2
    assert all(isinstance(name, str) and name for name in (*data.classes, *data.ids))
    parts = [data.labels.tolist(), data.classes, data.ids, data.content()]
    if data.boxes is not None:
        box = data.boxes.box
        assert box.isfinite().all() and (box >= 0).all() and (box <= 1).all()
        assert (box[:, :2] <= box[:, 2:]).all()
    if data.boxes is not None or data.masks is not None:
        regions = (data.masks or data.boxes).regions(torch.arange(count), classes, 8)
        parts += [regions.sum().item()]
    return parts


def weights_of(file):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    load_weights(model, file, "the network")
    assert all(v.dtype != torch.complex64 for v in model.state_dict().values())
    return [v.numpy().tobytes() for v in model.state_dict().values()]


def picture_of(file):
    image = try_image(file, SIDE)
    assert isinstance(image, str) or (image.shape, image.dtype) == ((3, SIDE, SIDE), np.uint8)
    if isinstance(image, str):
        assert "\n" not in image and len(image) < 500


def league_of(folder):
    content = tables.read_kept("league-scenes")
    parts = [
        summary(league.league_table(content)), league.poolings(content),
        league.held_out_scores(content),
    ]  # fmt: skip
    return "\n".join(map(str, parts))


def ablations_of(folder):
    return tables.ablation_table(tables.read_kept("ablations-voc2007-frozen")).to_string()


# --- all kinds ------------------------------------------------------------------------------------


def make_kinds(folder: Path) -> list[Kind]:
    """Makes the worlds below a folder, and all kinds of files in them."""
    stopped, finished = make_stopped(folder / "stopped"), make_finished(folder / "finished")
    heads = make_features(folder / "heads")
    lists, voc = make_photos(folder / "lists"), make_voc(folder / "voc")
    coco, classes = make_coco(folder / "coco"), make_classes(folder / "classes")
    pictures, weights = make_images(folder / "images"), make_weights(folder / "weights")
    kept = make_references(folder / "references")
    kinds: list[Kind] = []

    def add(name, world, pattern, read, form, must, *writes):
        file = next(file for file in sorted(world.folder.glob(pattern)) if file.is_file())
        inside = file.relative_to(world.folder).as_posix()

        def work():
            with living_in(world.folder):
                return read(world.folder)

        kinds.append(Kind(name, world, inside, work, form, must, writes))

    def resumed(place):
        return outcome_of(place, photos_config(snapshots=2))

    def trained(place):
        return outcome_of(place, photos_config(trained="head"))

    made = ("results/", "cache/")
    one = "results/*/en_scl-seed0-*/"
    add("checkpoint", stopped, "results/*/*/checkpoint.pt", resumed, "bytes", "same", *made)
    add("previous checkpoint", stopped, "results/*/*/checkpoint.previous.pt", resumed, "bytes",
        "same", *made)  # fmt: skip
    add("decoded images", stopped, "cache/folder-train-*.npy", resumed, "bytes", "same", *made)
    add("record of images", stopped, "cache/folder-train-*.json", resumed, "json", "same", *made)
    add("features", heads, "cache/features-*-3-*.bin", trained, "bytes", "same", *made)
    add("weights", finished, one + "weights.safetensors", scores_of, "safetensors", "same")
    add("bank", finished, one + "bank.safetensors", heatmaps_of, "safetensors", "same", "cache/")
    add("snapshots", finished, one + "snapshots.safetensors", snapshots_of, "safetensors", "same")
    add("metrics, run again", finished, one + "metrics.json", resumed, "json", "same", *made)
    add("metrics, predict", finished, one + "metrics.json", scores_of, "json", "same")
    add("metrics, table", finished, one + "metrics.json", own_table, "json", "said")
    add("metrics, summary", finished, one + "metrics.json", summary_of, "json", "said", "results/")
    add("config.json", finished, one + "config.json", settings_of, "json", "valid", *made)
    add("checkpoint of a repeat", finished, "results/*/an-*/repeat/checkpoint.pt", repeat_of,
        "bytes", "same", *made)  # fmt: skip
    add("manifest.json", finished, "results/manifest.json", notes_of, "json", "said", "results/man")
    add("predictions.csv", finished, "predictions.csv",
        lambda place: predictions_of(place, "predictions.csv", b"path,"), "text",
        "same")  # fmt: skip
    add("predictions.json", finished, "predictions.json",
        lambda place: predictions_of(place, "predictions.json", b'[\n{"path"'), "json",
        "same")  # fmt: skip
    add("thresholds", finished, "limits", thresholds_of, "json", "valid")

    add("reference of runs", kept, "reference/scenes-cpu.json",
        lambda place: texts_of(tables.load_runs("reference", "scenes", "cpu")), "json",
        "valid")  # fmt: skip
    add("reference of a league", kept, "reference/league*.json", league_of, "json", "valid")
    add("reference of ablations", kept, "reference/abl*.json", ablations_of, "json", "valid")

    def photos(place):
        parts = list_folder_splits(place / "photos", "single.csv", "full.csv")
        return [described(part) for part in parts]

    def objects(place):
        return described(list_voc(place, "train", 2007, boxes=True))

    def imagenet(place):
        return [described(part) for part in list_imagenet(place)]

    def state(place):
        return weights_of(place / "weights.pth")

    voc2007 = "VOCdevkit/VOC2007/"
    main = voc2007 + "ImageSets/Main/"
    add("labels.csv", lists, "photos/single.csv", photos, "text", "valid")
    add("full labels", lists, "photos/full.csv", photos, "text", "valid")
    add("table", lists, "table/train.csv",
        lambda place: [described(part) for part in list_table(place / "table")], "text",
        "valid")  # fmt: skip
    add("list of VOC", voc, main + "train.txt", objects, "text", "valid", "cache/")
    add("class list of VOC", voc, main + "cat_train.txt", objects, "text", "valid", "cache/")
    add("annotation of VOC", voc, voc2007 + "Annotations/*.xml", objects, "text", "valid", "cache/")
    add("boxes in the cache", voc, "cache/voc2007-boxes-*.pt", objects, "bytes", "same", "cache/")
    add("COCO's json", coco, "coco/annotations/*.json",
        lambda place: described(list_coco(place, "train", 2017)), "json", "valid",
        "cache/")  # fmt: skip
    add("ImageNet's classes", classes, "imagenet/imagenet_class_index.json", imagenet, "json",
        "valid")  # fmt: skip
    add("ReaL's labels", classes, "imagenet/real.json", imagenet, "json", "valid")
    add("weights.pth", weights, "weights.pth", state, "bytes", "same")
    add("state dict", weights, "weights.pth", state, "pt", "valid")
    add("weights of others", weights, "weights.safetensors",
        lambda place: weights_of(place / "weights.safetensors"), "safetensors",
        "valid")  # fmt: skip
    for name in sorted(pictures.sound):
        add(f"image {name}", pictures, name, lambda p, n=name: picture_of(p / n), "bytes",
            "valid")  # fmt: skip
    return kinds
