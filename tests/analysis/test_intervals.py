"""Intervals, gains and shares are checked by hand and against scipy."""

import math

import pytest
from fake_runs import runs_of
from scipy import stats

from spcl_lib.analysis.intervals import summary, t_ends, t_interval
from spcl_lib.analysis.runs import table_of


def test_three_seeds_have_4_3_standard_errors_to_each_side():
    found = t_interval([1.0, 2.0, 6.0])
    error = math.sqrt(7) / math.sqrt(3)
    assert found.mean == 3 and found.high - 3 == pytest.approx(4.303 * error, rel=1e-3)
    assert t_ends([1.0, 2.0, 6.0]) == pytest.approx((found.low, found.high))
    test = stats.ttest_1samp([1.0, 2.0, 6.0], 0).confidence_interval()
    assert found[1:] == pytest.approx((test.low, test.high))


@pytest.mark.parametrize(
    ("values", "verdict", "text"),
    [
        ([4.0, 4.5, 5.0], "ahead", "+4.5 (+3.3 to +5.7)"),
        ([-2.0, -2.5, -3.0], "behind", "-2.5 (-3.7 to -1.3)"),
        # Two standard errors, which the mean exceeds, called this settled.
        ([1.01, 1.01, 4.01], "not settled", "+2.0 (-2.3 to +6.3)"),
        ([2.0], "not settled", "+2.0"),
        ([], "not settled", "+nan"),
    ],
)
def test_a_difference_is_settled_where_the_interval_excludes_zero(values, verdict, text):
    found = t_interval(values)
    assert (found.verdict, str(found)) == (verdict, text)


def test_a_summary_by_hand():
    runs = runs_of(full=[90.0, 92.0, 94.0], scl=[75.0, 74.0, 79.0], an=[70.0, 72.0, 74.0])
    found = summary(table_of(runs))
    assert list(found["method"]) == ["an", "scl", "full"]  # the order of METHODS
    assert list(found["mAP"]) == pytest.approx([72, 76, 92]) and set(found["seeds"]) == {3}
    assert list(found["std"]) == pytest.approx([2, math.sqrt(7), 2])
    # paired gains of scl: 5, 2, 5
    assert list(found["gain"]) == pytest.approx([0, 4, 20])
    assert found["gain_high"][1] == pytest.approx(4 + 4.3027, abs=1e-3)
    assert list(found["share"]) == pytest.approx([0, 20, 100])
    assert found["share_low"][1] == pytest.approx(100 * (4 - 4.3027) / 20, abs=1e-2)


@pytest.mark.parametrize("scores", [{"an": [70.0]}, {"scl": [75.0], "full": [90.0]},
                                    {"an": [70.0], "full": [69.0]}])  # fmt: skip
def test_without_a_gap_nothing_is_closed(scores):
    assert summary(table_of(runs_of(**scores)))["share"].isna().all()
