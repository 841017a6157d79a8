"""`table` reads all labels of all images from two CSV files; errors name the line."""

import pytest
import torch
from small_folder import QUICK, save_noise, write_csv

from spcl_lib import UserError
from spcl_lib.data.draws import draw_labels
from spcl_lib.data.table import list_table
from spcl_lib.runs.settings import make_config, methods_of
from spcl_lib.runs.splits import identify_data, load_splits

LINES = {
    "train": ["a.png,dog|cat", "b.png,cat", "sub/c.png,bird", "d.png,", "e.png,dog"],
    "val": ["f.png,dog", "g.png,bird|cat"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    """A data root with five training images and two for the report."""
    folder = tmp_path / "root"
    for lines in LINES.values():
        for line in lines:
            save_noise(folder / line.partition(",")[0])
    for split, lines in LINES.items():
        write_csv(folder / f"{split}.csv", "path,labels", *lines)
    return folder


def test_labels_are_those_of_the_files_in_their_order(root):
    train, val = list_table(root)
    assert train.classes == val.classes == ("bird", "cat", "dog")
    assert train.ids == ("a.png", "b.png", "sub/c.png", "d.png", "e.png")
    assert train.labels.int().tolist() == [[0, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert val.labels.int().tolist() == [[0, 0, 1], [1, 1, 0]]


def test_training_leaves_out_what_has_no_label_and_the_report_keeps_it(root, capsys):
    write_csv(root / "val.csv", "path,labels", "f.png,", "g.png,cat")
    train, val = load_splits(make_config("table", "an", 0, "smoke"), root)
    assert train.ids == ("a.png", "b.png", "sub/c.png", "e.png") and len(val) == 2
    assert "training images without a positive label: 1 of 5" in capsys.readouterr().out


def test_choices_are_made_on_training_images_only(root):
    train, held = load_splits(make_config("table", "an", 0, "smoke", {"report": "val"}), root)
    assert set(train.ids) | set(held.ids) <= {line.partition(",")[0] for line in LINES["train"]}


def test_full_labels_are_known_so_that_full_is_possible():
    assert "full" in methods_of("table")


def test_its_content_is_known_and_the_folder_must_be_given(root, tmp_path):
    config = make_config("table", "an", 0, "smoke")
    before = identify_data(config, root).content
    write_csv(root / "train.csv", "path,labels", *LINES["train"][:-1], "e.png,cat")
    assert identify_data(config, root).content != before
    with pytest.raises(UserError, match="'table' needs --data-root DIR"):
        identify_data(config, None)


def test_a_run_goes_from_the_files_to_metrics(root, spcl):
    arguments = ("run", "--dataset", "table", "--profile", "smoke", "--method", "full")
    outcome = spcl(*arguments, "--data-root", root, **QUICK)
    assert outcome.status == 0, outcome.err
    assert "table full seed 0: mAP" in outcome.out


@pytest.mark.parametrize(
    ("file", "lines", "words"),
    [
        ("val.csv", ["a.png,dog"], "line 2.*must not be trained on"),
        ("val.csv", ["f.png,dgo"], "line 2: no image of train.csv has 'dgo'. Did you mean 'dog'"),
        ("val.csv", ["h.png,dog"], "line 2: image 'h.png' is not in"),
        ("train.csv", ["a.png,dog"], "has 1 labels; two or more are needed"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(root, file, lines, words):
    write_csv(root / file, "path,labels", *lines)
    with pytest.raises(UserError, match=words):
        list_table(root)


BOXED = ["a.png,dog|cat|dog,0 0 .5 1|.1 .1 .2 .2|.5 .5 1 1", "b.png,cat,0 0 1 1", "d.png,,"]


def test_boxes_are_read_and_the_draws_that_need_them_work(root):
    write_csv(root / "train.csv", "path,labels,boxes", *BOXED)
    write_csv(root / "val.csv", "path,labels", "f.png,dog")
    train, val = list_table(root)
    assert val.boxes is None and train.labels.int().tolist() == [[1, 1], [1, 0], [0, 0]]
    assert train.boxes.image.tolist() == [0, 0, 0, 1] and train.boxes.label.tolist() == [1, 0, 1, 0]
    assert torch.allclose(train.boxes.box[1], torch.tensor([0.1, 0.1, 0.2, 0.2]))
    # Size alone decides nothing here, but the cat of a.png is so small that it is hardly drawn.
    kept = [draw_labels(train.first(2), "size", seed)[0].tolist() for seed in range(20)]
    assert kept.count([False, True]) >= 17


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png,dog,0 0 1", "line 2: box '0 0 1'; expected x0 y0 x1 y1"),
        ("a.png,dog,0 0 1 2", "line 2: box '0 0 1 2'"),
        ("a.png,dog,0 0 nan 1", "line 2: box '0 0 nan 1'"),
        ("a.png,dog,1 0 0 1", "0 <= x0 < x1 <= 1"),
        ("a.png,dog|cat,0 0 1 1", "line 2: 2 labels and 1 boxes; give one for each"),
        ("a.png,dog", "line 2: 2 fields; expected path,labels,boxes"),
    ],
)
def test_a_wrong_box_is_named_with_its_line(root, line, words):
    write_csv(root / "train.csv", "path,labels,boxes", line, "b.png,cat,0 0 1 1")
    with pytest.raises(UserError, match=words):
        list_table(root)


def test_a_missing_file_is_named(root):
    (root / "val.csv").unlink()
    with pytest.raises(UserError, match="val.csv"):
        list_table(root)


def test_the_real_photographs_have_the_labels_that_their_page_names(real_data):
    folder = real_data / "coco18"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    train, val = list_table(folder)
    assert (len(train), len(val), len(train.classes)) == (6000, 3000, 18)
    assert torch.cat([train.labels, val.labels]).sum(1).float().mean() == pytest.approx(
        1.54, abs=0.05
    )
