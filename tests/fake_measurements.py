"""Made-up measurements, for tests of sentences, tables and figures."""

from spcl_lib.analysis.recovery import FALL, NOT_THERE, QUESTION_GROUPS
from spcl_lib.analysis.visibility import LIMITS, VISIBILITY
from spcl_lib.runs.ablation import CROP_SCALES

AUROC = {"an": 50.0, "cl": 52.0, "scl_whole": 55.0, "scl": 90.0, "en_scl_whole": 54.0,
         "en_scl": 92.0}  # fmt: skip
GAINS = {"an": 0.0, "cl": 2.0, "scl": 4.0, "en_scl": 9.0, "full": 15.0}


def fake_measurements(sources=tuple(AUROC), methods=tuple(GAINS), seeds=(0, 1, 2), **scores):
    """Measurements in which `scores` are the AUROC of sources; everything has a small spread."""
    auroc = AUROC | scores
    return {
        "about": about(methods, seeds),
        "wrongness": [wrongness(seed, scale) for seed in seeds for scale in CROP_SCALES],
        "sources": [
            {"source": s, "seed": seed, "group": g, "least": least,
             "AP": auroc[s] - 20 + 0.2 * seed, "AP_wrong": auroc[s] - 30 + 0.2 * seed,
             "AUROC": auroc[s] + 0.1 * seed,
             "chance": 20.0, "ECE": 30.0 - auroc[s] / 10 + 0.1 * seed}
            for s in sources for seed in seeds for g in QUESTION_GROUPS for least in LIMITS
        ],
        "reliability": [
            {"source": s, "seed": seed, "group": g, "score": [0.05, 0.5, None], "share":
             [0.1, 0.7, None], "count": [30, 10, 0]}
            for s in sources for seed in seeds for g in QUESTION_GROUPS
        ],
        "visibility": [
            {"source": s, "seed": seed, "group": g, "visibility": v, "target": 0.1 + 0.1 * i,
             "count": 9}
            for s in sources for seed in seeds for g in QUESTION_GROUPS[:2]
            for i, v in enumerate((NOT_THERE, *VISIBILITY))
            if (g, v) != ("labelled", NOT_THERE)
        ],
        "decisions": [
            row for m in methods if m in ("cl", "scl", "en_scl") for seed in seeds
            for row in decisions(m, seed)
        ],
        "localisation": [row for m in methods for seed in seeds for row in localisation(m, seed)],
        "crop_scale": [
            {"method": m, "scale_min": s, "seed": seed,
             "mAP": 70 + GAINS[m] * (1 if m == "full" else 1 - s) + 0.3 * seed + 0.01 * seed * s}
            for m in methods for s in CROP_SCALES for seed in seeds
        ],
    }  # fmt: skip


def about(methods, seeds):
    return {
        "dataset": "scenes", "profile": "cpu", "scale_min": 0.1, "settings": {},
        "methods": list(methods), "seeds": list(seeds), "missing": [], "command": "python -m x",
        "epochs": 4, "followed": 8, "train_images": 1000, "report_images": 2000, "views": 4,
        "least": 0.1, "fall": FALL, "device": "A processor", "torch": "2.11.0",
        "commits": ["abc1234"], "finished": ["2026-11-22"],
    }  # fmt: skip


def wrongness(seed, scale):
    gone = 20 * (1 - scale) + 0.1 * seed
    shares = dict(zip(VISIBILITY, (gone, gone / 4, gone, 100 - 2.25 * gone), strict=True))
    return {"seed": seed, "scale_min": scale} | shares | {"wrong": 1.25 * gone}


def decisions(method, seed):
    right = {"cl": 0.0, "scl": 60.0, "en_scl": 70.0}[method]
    row = {"method": method, "seed": seed, "fall": FALL, "spoiled": 4.0, "wrong": 50, "right": 150}
    rows = [
        row | {"epoch": e, "images": images, "corrected": right * e / 4 + 0.1 * seed}
        for e, images in ((4, "all"), (2, "followed"), (3, "followed"), (4, "followed"))
    ]
    more = {"epoch": 4, "images": "all", "fall": 1.0, "spoiled": 20.0, "corrected": right + 10.0}
    return [*rows, row | more]


def localisation(method, seed):
    kinds = [("network", "train"), ("network", "report")]
    if method.endswith("scl"):
        kinds.insert(0, ("heatmaps", "train"))
    return [
        {"method": method, "seed": seed, "split": split, "maps": maps, "group": group,
         "pointing": 50 + GAINS[method] + 0.1 * seed, "pointing_chance": 12.0,
         "iou": 30 + GAINS[method] / 2 + 0.1 * seed, "iou_everywhere": 4.0, "threshold": 0.5,
         "pairs": 300}
        for maps, split in kinds
        for group in (("all", "labelled", "unlabelled") if split == "train" else ("all",))
    ]  # fmt: skip
