"""Intervals, gains and shares are checked by hand; so is `compare`."""

import json
import math
import shutil
from pathlib import Path

import pytest
from fake_runs import fake_run, runs_of

from spcl_lib.analysis.compare import compare
from spcl_lib.analysis.intervals import summary, t_ends, t_interval
from spcl_lib.analysis.runs import table_of
from spcl_lib.runs.settings import make_config
from spcl_lib.system.errors import UserError


def test_three_seeds_have_4_3_standard_errors_to_each_side():
    found = t_interval([1.0, 2.0, 6.0])
    error = math.sqrt(7) / math.sqrt(3)
    assert found.mean == 3 and found.high - 3 == pytest.approx(4.303 * error, rel=1e-3)
    assert t_ends([1.0, 2.0, math.nan, 6.0]) == pytest.approx((found.low, found.high))


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


# --- compare --------------------------------------------------------------------------------------


@pytest.fixture
def finish(tmp_path):
    """Writes a finished run with some mAP, and gives its folder."""

    def write(method, seed, score, **settings):
        config = make_config("scenes", method, seed, "cpu").replace(**settings)
        metrics = fake_run(method, seed, score) | {"config": config.flat()}
        metrics["at_threshold"] = {"OF1": score - 1, "CF1": score - 2}
        folder = tmp_path / "runs" / f"{method}-{seed}-{len(settings)}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return write


def test_seeds_are_paired_by_their_number(finish):
    runs = [finish("an", seed, score) for seed, score in ((0, 70.0), (1, 80.0), (3, 60.0))]
    runs += [finish("cl", seed, score) for seed, score in ((3, 63.0), (1, 84.0), (2, 99.0))]
    first, second = compare(runs).to_dict("records")
    assert first == {"runs": "an", "seeds": 3, "mAP %": "70.0 ± 10.0", "difference (95 %)": "",
                     "OF1": "69.0", "CF1": "68.0"}  # fmt: skip
    # of the seeds 1 and 3: +4 and +3, and 12.7 standard errors of 0.5
    assert second["runs"] == "cl" and second["difference (95 %)"] == "+3.5 (-2.9 to +9.9)"


def test_a_folder_of_runs_is_all_of_them_and_none_counts_twice(finish, tmp_path, monkeypatch):
    run = finish("an", 0, 70.0)
    finish("an", 1, 72.0)
    table = compare([run / "metrics.json", run.parent])
    assert list(table["seeds"]) == [2]
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "runs"))  # they are elsewhere
    assert compare([Path("results")]).equals(table)


def test_runs_on_other_images_are_refused(finish, tmp_path):
    with pytest.raises(UserError, match="different data: report is 'val' and 'test'"):
        compare([finish("an", 0, 70.0), finish("an", 1, 70.0, report="val")])
    with pytest.raises(UserError, match="different data: content is '0123' and ''"):
        compare([finish("an", 2, 70.0), finish("an", 3, 70.0, content="0123")])
    shutil.copytree(tmp_path / "runs" / "an-0-0", tmp_path / "copy")
    with pytest.raises(UserError, match="copy' is there twice"):
        compare([tmp_path / "runs" / "an-0-0", tmp_path / "copy"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty' holds no finished run"):
        compare([tmp_path / "empty"])


def test_the_command_prints_text_or_latex(spcl, finish):
    finish("an", 0, 70.0)
    folder = finish("en_scl", 0, 75.0).parent
    assert spcl("compare", folder).out.splitlines()[-1].split()[:3] == ["en_scl", "1", "75.0"]
    latex = spcl("compare", folder, "--latex").out
    assert r"en\_scl & 1 & 75.0 & +5.0" in latex and r"mAP \%" in latex
