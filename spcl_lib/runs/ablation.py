"""The crop-scale ablation: the same methods with the least area of the random crops varied.

With small crops, the one label is more often wrong for the crop; the paper claims that SCL then
recovers the right supervision.
"""

from collections.abc import Mapping, Sequence

from spcl_lib.config import RunConfig
from spcl_lib.runs.settings import make_config

CROP_SCALES = (1.0, 0.5, 0.25, 0.1, 0.05)
CROP_METHODS = ("an", "cl", "scl", "en_scl", "full")
RECOVERY_SCALE = 0.1  # crop recovery is measured on the runs with this scale
RECOVERY_METHODS = (*CROP_METHODS[:-1], "gr_scl", "ren_scl", "full")  # the league's best, too
FOLLOWED = 64  # number of images that these runs follow over the epochs

Settings = Mapping[str, object]
# What the league chose for them on validation data (see League.chosen_settings), with the mean.
# Rates are left out: they were chosen for the league, and all methods here have the profile's.
CHOSEN: dict[str, dict[str, Settings]] = {
    "scenes": {
        "gr_scl": {"weight": 0.3},
        "ren_scl": {"prior_weight": 0.0, "hidden_share": 1.0, "robustness": 1.0, "weight": 1.0},
    },
    "voc2007": {
        "gr_scl": {"weight": 0.3, "distance": "l2"},
        "ren_scl": {"prior_weight": 0.5, "hidden_share": 0.0, "robustness": 0.7, "weight": 0.3},
    },
}


def crop_scale_configs(
    dataset: str,
    profile: str = "cpu",
    seeds: Sequence[int] = (0, 1, 2),
    scales: Sequence[float] = CROP_SCALES,
    methods: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
) -> list[RunConfig]:
    """All runs, each once: every method, scale and seed.

    By default the methods are CROP_METHODS, and RECOVERY_METHODS at RECOVERY_SCALE. The league's
    best have the settings of CHOSEN. At the profile's own scale, the runs are those of the profile.
    """
    configs, chosen = [], CHOSEN.get(dataset, {})
    for scale in scales:
        varied, usual = {"scale_min": scale}, CROP_METHODS
        if scale == RECOVERY_SCALE:
            usual = RECOVERY_METHODS
            varied["snapshots"] = FOLLOWED
        for m in methods or usual:
            settings = varied | chosen.get(m, {}) | dict(overrides or {})
            configs += [make_config(dataset, m, seed, profile, settings) for seed in seeds]
    return list(dict.fromkeys(configs))  # a value may be given twice
