"""Made-up contents of metrics.json, for tests of tables and verdicts."""

import json

from spcl_lib.data import scenes, voc
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import run_folder

CLASSES = {"scenes": scenes.CLASSES, "voc2007": voc.CLASSES}
FOLLOWED = {"snapshots": 64}
# Roughly what a prototype gave; far enough apart that every verdict is settled.
MEANS = {"an": 76.6, "cl": 78.7, "scl": 80.9, "en": 79.6, "en_cl": 80.1, "en_scl": 82.5,
         "full": 91.1}  # fmt: skip


def fake_run(method, seed, score, dataset="scenes", profile="cpu"):
    """One run with exactly the mAP `score`; all else follows from it."""
    f1 = {"CF1": score - 10, "OF1": score - 10}
    return {
        "mAP": score, "AP": dict.fromkeys(CLASSES[dataset], score), "at_0.5": f1, "top_3": f1,
        "dataset": dataset, "profile": profile, "method": method, "seed": seed, "epochs": 16,
        "train_seconds": 40.0 + seed, "train_images": 1000, "report_images": 2000,
        "classes": list(CLASSES[dataset]),
        "history": [{"epoch": e, "loss": 0.5 / e} for e in range(1, 17)],
        "config": make_config(dataset, method, seed, profile, FOLLOWED).flat(),
        "finished": "2025-11-22",
        "machine": {"commit": "abc1234", "python": "3.11.7", "torch": "2.11.0", "device": "a CPU"},
    }  # fmt: skip


def fake_runs(methods=tuple(MEANS), seeds=(0, 1, 2)):
    """A whole table: every method with a small spread over seeds."""
    return [
        fake_run(m, s, MEANS[m] + 0.21 * s + 0.037 * i * s)
        for i, m in enumerate(methods)
        for s in seeds
    ]


def runs_of(**scores):
    """Runs of scenes from method=[mAP of seed 0, of seed 1, ...]."""
    return [
        fake_run(method, seed, score)
        for method, by_seed in scores.items()
        for seed, score in enumerate(by_seed)
    ]


def write_results(runs):
    """Puts runs where finished runs are (SPCL_RESULTS)."""
    for run in runs:
        config = make_config(run["dataset"], run["method"], run["seed"], run["profile"])
        folder = run_folder(config)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(run))
