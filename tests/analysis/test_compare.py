"""`compare` gives a row for all runs that differ by their seed, with paired intervals."""

import json

import pytest
from fake_runs import fake_run

from spcl_lib.analysis.compare import compare
from spcl_lib.runs.settings import make_config
from spcl_lib.system.errors import UserError


@pytest.fixture
def finish(tmp_path):
    """Writes a finished run with some mAP, and gives its folder."""

    def write(method, seed, score, **settings):
        config = make_config("scenes", method, seed, "cpu", settings)
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


def test_a_folder_of_runs_is_all_of_them_and_none_counts_twice(finish):
    run = finish("an", 0, 70.0)
    finish("an", 1, 72.0)
    table = compare([run / "metrics.json", run.parent])
    assert list(table["seeds"]) == [2]


def test_runs_on_other_images_are_refused(finish, tmp_path):
    with pytest.raises(UserError, match="different images: report is 'val' and 'test'"):
        compare([finish("an", 0, 70.0), finish("an", 1, 70.0, report="val")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty' holds no finished run"):
        compare([tmp_path / "empty"])


def test_the_command_prints_text_markdown_or_latex(spcl, finish):
    finish("an", 0, 70.0)
    folder = finish("en_scl", 0, 75.0).parent
    assert spcl("compare", folder).out.splitlines()[-1].split()[:3] == ["en_scl", "1", "75.0"]
    assert "| en_scl | 1       | 75.0    | +5.0" in spcl("compare", folder, "--markdown").out
    latex = spcl("compare", folder, "--latex").out
    assert r"en\_scl & 1 & 75.0 & +5.0" in latex and r"mAP \%" in latex
