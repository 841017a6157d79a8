"""Paired differences over seeds, and the one rule for when a difference is settled.

Runs with the same seed have the same first weights and the same order of images, so differences
are paired by seed. One is settled if the t interval of its mean at 95 % excludes zero. This says
nothing of other labels or other test images: all seeds share these.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd
from scipy import stats

_SCALE = ["study", "dataset", "profile"]  # runs that share the two ends of the scale


class Interval(NamedTuple):
    """A mean with both ends of its 95 % interval; NaN ends where there is one value."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether a method is "ahead" by this difference, "behind", or "not settled"."""
        return "ahead" if self.low > 0 else "behind" if self.high < 0 else "not settled"

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def t_interval(values: Iterable[float]) -> Interval:
    """The mean of some values and its t interval at 95 %; NaN where values are too few."""
    found = pd.Series(list(values), dtype=float).dropna()
    half = stats.t.ppf(0.975, max(1, len(found) - 1)) * found.std() / math.sqrt(max(1, len(found)))
    return Interval(float(found.mean()), float(found.mean() - half), float(found.mean() + half))


def t_ends(values: Iterable[float]) -> tuple[float, float]:
    """Both ends of the t interval, as seaborn's `errorbar=` asks for them."""
    return t_interval(values)[1:]


def gain(table: pd.DataFrame, method: str, other: str = "an") -> Interval:
    """The mAP of `method` less that of `other`, over the seeds that both have.

    The rows of the table must be of one data set, profile and pooling: none may have a seed twice.
    """
    scores = table.pivot(index="seed", columns="method", values="mAP")
    scores = scores.reindex(columns=dict.fromkeys((method, other)))  # which may be one
    return t_interval(scores[method] - scores[other])


def with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Adds `gain` and `share` to every row of a table; see `runs`.

    The gain is over AN with the mean and the same seed. The share, in percent, is the gain divided
    by the gap: from AN with the mean to the best Full of any pooling, both as means over seeds. Its
    interval takes this gap as exact. It is NaN where there is no gap.
    """
    parts = [_with_shares(part) for _, part in table.groupby(_SCALE, sort=False)]
    return pd.concat(parts) if parts else table.assign(gain=math.nan, share=math.nan)


def _with_shares(part: pd.DataFrame) -> pd.DataFrame:
    lowest = part[(part["method"] == "an") & (part["pooling"] == "mean")]
    lowest = lowest.set_index("seed")["mAP"]
    highest = part[part["method"] == "full"].groupby("pooling")["mAP"].mean().max()
    gains, gap = part["mAP"] - part["seed"].map(lowest), highest - lowest.mean()
    return part.assign(gain=gains, share=100 * gains / gap if gap > 0 else math.nan)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row for every data set, profile, pooling and method, in the order of the table.

    It has mAP and its standard deviation over seeds, the number of seeds, and `gain` and `share`
    (see `with_shares`), each with `_low` and `_high` of its interval.
    """
    groups = with_shares(table).groupby([*_SCALE, "pooling", "method"], sort=False)
    found = groups.agg(mAP=("mAP", "mean"), std=("mAP", "std"), seeds=("seed", "nunique"))
    for name in ("gain", "share"):
        ends = [t_interval(part[name]) for _, part in groups]
        found[[name, f"{name}_low", f"{name}_high"]] = ends
    return found.reset_index()
