"""Made-up contents of metrics.json, for tests of tables and verdicts."""

import json

import numpy as np

from spcl_lib.data import scenes, voc
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder
from spcl_lib.system import paths

CLASSES = {"scenes": scenes.CLASSES, "voc2007": voc.CLASSES}
# Roughly what a prototype gave; far enough apart that every verdict is settled.
MEANS = {"an": 76.6, "cl": 78.7, "scl": 80.9, "en": 79.6, "en_cl": 80.1, "en_scl": 82.5,
         "full": 91.1}  # fmt: skip


def fake_run(method, seed, score, dataset="scenes", profile="cpu", epochs=16):
    """One run with exactly the mAP `score`; all else follows from it."""
    rng = np.random.default_rng(seed)
    classes = CLASSES[dataset]
    spread = np.linspace(-12, 8, len(classes)) + rng.normal(0, 1, len(classes))
    ap = score + spread - spread.mean()
    config = make_config(dataset, method, seed, profile)
    history = [{"epoch": e, "loss": 0.5 / e} for e in range(1, epochs + 1)]
    for row in history[3::4]:
        row["mAP"] = score - 30 * (1 - row["epoch"] / epochs)
    return {
        "mAP": score, "AP": dict(zip(classes, ap.tolist(), strict=True)),
        "classes_without_positive": 0, "at_0.5": at(score - 10), "top_3": at(score - 20),
        "dataset": dataset, "profile": profile, "method": method, "seed": seed,
        "epochs": epochs, "train_seconds": 40.0 + seed, "wall_seconds": 50.0,
        "train_images": 1000, "report_images": 2000, "classes": list(classes),
        "history": history,
        "config": config.flat(), "finished": "2025-11-22",
        "machine": {"spcl": "0.1.0", "commit": "abc1234", "python": "3.11.7", "torch": "2.11.0",
                    "torchvision": "0.26.0", "device": "A processor, 2 cores", "threads": 1},
    }  # fmt: skip


def at(value):
    """Precision, recall and F1."""
    return dict.fromkeys(("CP", "CR", "CF1", "OP", "OR", "OF1"), value)


def fake_runs(dataset="scenes", profile="cpu", methods=tuple(MEANS), seeds=(0, 1, 2)):
    """A whole table: every method with a small spread over seeds."""
    return [
        fake_run(m, s, MEANS[m] + 0.21 * s + 0.037 * i * s, dataset, profile)
        for i, m in enumerate(methods)
        for s in seeds
    ]


def runs_of(**scores):
    """Runs of scenes from method=[mAP of seed 0, of seed 1, ...]; None for a missing seed."""
    return [
        fake_run(method, seed, score)
        for method, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
        if score is not None
    ]


def write_results(runs):
    """Puts runs where finished runs are (SPCL_RESULTS)."""
    for run in runs:
        config = make_config(run["dataset"], run["method"], run["seed"], run["profile"])
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(run))


def write_reference(runs):
    """Puts runs where reference results are."""
    run = runs[0]
    paths.reference().mkdir(parents=True, exist_ok=True)
    file = paths.reference() / f"{run['dataset']}-{run['profile']}.json"
    file.write_text(json.dumps({"runs": runs}))
