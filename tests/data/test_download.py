"""`python -m spcl_lib download` gets all or nothing. A fake torchvision replaces the network."""

import tarfile
import urllib.error
from pathlib import Path

import pytest
import torchvision
from small_voc import voc_ids, write_lists


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


@pytest.fixture
def acted(monkeypatch):
    """torchvision's VOCDetection, which writes an archive and unpacks it, then fails if told."""

    class Calls(list):
        failure = None

    calls = Calls()

    def VOCDetection(root, year, image_set, download):
        calls.append((Path(root).name, year, image_set, download))
        folder = Path(root) / "VOCdevkit" / f"VOC{year}"
        (folder / "JPEGImages").mkdir(parents=True)
        (Path(root) / "VOCtrainval.tar").write_bytes(b"archive")
        if calls.failure:
            raise calls.failure
        write_lists(folder)

    monkeypatch.setattr(torchvision.datasets, "VOCDetection", VOCDetection)
    return calls


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_the_data_arrive_where_they_are_read_and_nothing_else_stays(spcl, acted, tmp_path, year):
    root = tmp_path / "data"
    root.mkdir()
    outcome = spcl("download", "--dataset", f"voc{year}", "--data-root", root)
    folder = root / "VOCdevkit" / f"VOC{year}"
    assert outcome.status == 0 and outcome.out == f"{folder}\n"
    assert acted == [(f".voc{year}.download", year, "trainval", True)]
    assert (folder / "ImageSets" / "Main" / "train.txt").read_text().split() == voc_ids()["train"]
    assert [p.name for p in root.iterdir() if p.suffix != ".lock"] == ["VOCdevkit"]
    assert "VOCtrainval.tar" not in files_in(root)
    assert spcl("download", "--dataset", f"voc{year}", "--data-root", root).status == 0
    assert len(acted) == 1  # what is there is not fetched again


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Temporary failure in name resolution"),
        RuntimeError("File not found or corrupted."),
        OSError(28, "No space left on device"),
        tarfile.ReadError("unexpected end of data"),
    ],
)
def test_a_failed_download_says_so_and_leaves_nothing(spcl, acted, tmp_path, failure):
    acted.failure = failure
    root = tmp_path / "data"
    root.mkdir()
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert str(failure) in line and str(root / "VOCdevkit" / "VOC2007") in line
    assert files_in(root) == [] and not (root / "VOCdevkit").exists()
    acted.failure = None  # the network is back
    assert spcl("download", "--dataset", "voc2007", "--data-root", root).status == 0


def test_a_download_that_is_stopped_leaves_nothing(spcl, acted, tmp_path):
    acted.failure = KeyboardInterrupt()
    (tmp_path / "data").mkdir()
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", tmp_path / "data")
    assert outcome.status == 130 and files_in(tmp_path / "data") == []


def test_other_data_sets_are_refused(spcl, tmp_path):
    outcome = spcl("download", "--dataset", "coco2017", "--data-root", tmp_path)
    assert outcome.status == 2 and "Valid: voc2007, voc2012" in outcome.err


def test_who_lacks_the_data_is_told_where_to_put_them_and_how_to_fetch_them(spcl, tmp_path):
    outcome = spcl("run", "--dataset", "voc2012", "--method", "an", "--data-root", tmp_path)
    assert outcome.status == 2
    assert str(tmp_path / "VOCdevkit" / "VOC2012") in outcome.err
    assert f"download --dataset voc2012 --data-root {tmp_path}" in outcome.err
