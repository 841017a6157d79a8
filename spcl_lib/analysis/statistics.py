"""Means over seeds, their spread as text, and the rule for when a difference is settled."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]  # one line of a table: names and values
Rows = list[Row]


def mean(values: Iterable[float]) -> float:
    """The mean; NaN if there is no value."""
    values = list(values)
    return statistics.fmean(values) if values else math.nan


def deviation(values: Iterable[float]) -> float:
    """The standard deviation (ddof = 1); NaN for fewer than two values."""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else math.nan


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation for a figure, where the deviation of one value is 0."""
    return mean(values), 0.0 if len(values) == 1 else deviation(values)


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation as text; the mean alone for one value, "-" for none."""
    return spread_text(mean(values), deviation(values), sign) or "-"


def spread_text(mean: float, deviation: float, sign: str = "") -> str:
    """Mean ± standard deviation as text, without NaN values; sign="+" shows the sign."""
    if math.isnan(mean):
        return ""
    text = f"{mean:{sign}.1f}"
    return text if math.isnan(deviation) else f"{text} ± {deviation:.1f}"


def percent(share: float) -> str:
    """A share as text, as in "5 %"."""
    return f"{100 * share:g} %"


DIFFERENCE_RULE = (
    "A difference is the mean over seeds of differences paired by seed, with their standard "
    "deviation. It counts as settled if it is larger than two standard errors (2 x standard "
    "deviation / square root of the number of seeds): a rough rule, no test."
)


def sign_of_difference(differences: Sequence[float]) -> int:
    """1 if differences over seeds are above 0 by DIFFERENCE_RULE, -1 if below, 0 if not settled.

    One seed settles nothing.
    """
    count, middle = len(differences), mean(differences)
    if count < 2 or abs(middle) <= 2 * deviation(differences) / math.sqrt(count):
        return 0
    return 1 if middle > 0 else -1


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list in Markdown."""
    return "\n".join(f"* {sentence}" for sentence in sentences)
