"""What one run of every profile costs, for people."""

from __future__ import annotations

_NEVER = "estimated, never run by us"
# (data set, profile) -> time and memory of one run. "Measured": on one core, two runs side by side
# on two cores, bfloat16. The estimates for a CPU are voc2007's, scaled by the number of images.
COSTS: dict[tuple[str, str], str] = {
    ("scenes", "cpu"): "30 s and 0.8 GB (measured), once 1 to 2 min of pretraining",
    ("voc2007", "cpu"): "6 min and 2.1 GB (measured)",
    ("voc2012", "cpu"): f"14 min and 2.3 GB ({_NEVER})",
    ("coco2014", "cpu"): f"4 h and 4 GB, 14 GB of cache ({_NEVER})",
    ("coco2017", "cpu"): f"6 h and 5 GB, 14 GB of cache ({_NEVER})",
    ("imagenet", "cpu"): "60 h for AN; heatmaps of all images would take 251 GB: "
    f"--set train_images=20000 needs 9 GB and an hour ({_NEVER})",
    ("folder", "cpu"): "3 min and 1.4 GB for 1,000 images (estimated from voc2007)",
    ("voc2007", "paper"): f"10 min and 8 GB of GPU memory ({_NEVER})",
    ("voc2012", "paper"): f"15 min and 8 GB of GPU memory ({_NEVER})",
    ("coco2014", "paper"): f"2 h and 8 GB of GPU memory, 5 GB of memory ({_NEVER})",
    ("coco2017", "paper"): f"3 h and 8 GB of GPU memory, 6 GB of memory ({_NEVER})",
    ("imagenet", "paper"): f"a day for AN; heatmaps of all images do not fit ({_NEVER})",
    ("folder", "paper"): f"1 min for 1,000 images and 8 GB of GPU memory ({_NEVER})",
}
_SMOKE_COST = "seconds to a minute"  # of every data set


def cost(dataset: str, profile: str) -> str:
    """Expected time and memory of one run."""
    if profile == "long":
        return f"twice that of profile cpu, which is {COSTS[dataset, 'cpu']}"
    return COSTS.get((dataset, profile), _SMOKE_COST)
