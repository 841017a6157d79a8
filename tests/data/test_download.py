"""`python -m spcl_lib download` gets all or nothing. A file replaces the server."""

import hashlib
import shutil
import tarfile

import pytest
from small_voc import voc_ids, write_lists
from torchvision.datasets import utils
from torchvision.datasets.voc import DATASET_YEAR_DICT


@pytest.fixture
def archive(monkeypatch, tmp_path):
    """The archive of both years, which the package expects."""
    file = tmp_path / "VOCtrainval.tar"
    for year in (2007, 2012):
        write_lists(tmp_path / "source" / f"VOC{year}")
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "source", "VOCdevkit")
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    for known in DATASET_YEAR_DICT.values():
        monkeypatch.setitem(known, "url", file.as_uri())
        monkeypatch.setitem(known, "md5", md5)
    monkeypatch.setattr(utils, "_urlretrieve", lambda url, place: shutil.copy(file, place))
    return file


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def test_the_data_arrive_where_they_are_read_and_nothing_else_stays(spcl, archive, root):
    partial = root / ".voc2012.download"
    partial.mkdir(parents=True)  # of a process that was killed
    (partial / "half").write_bytes(b"half")
    outcome = spcl("download", "--dataset", "voc2012", "--data-root", root)
    folder = root / "VOCdevkit" / "VOC2012"
    assert outcome.status == 0 and outcome.out.splitlines()[-1] == str(folder)
    assert (folder / "ImageSets" / "Main" / "train.txt").read_text().split() == voc_ids()["train"]
    assert [p.name for p in root.iterdir() if p.suffix != ".lock"] == ["VOCdevkit"]
    archive.unlink()  # what is there is not fetched again
    assert spcl("download", "--dataset", "voc2012", "--data-root", root).status == 0


def test_a_failed_download_says_so_and_leaves_nothing(spcl, archive, root):
    for content in (archive.read_bytes()[:-1000], None):
        archive.write_bytes(content) if content else archive.unlink()
        outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
        assert outcome.status == 2
        assert "the download of voc2007 failed" in outcome.err.splitlines()[-1]
        assert not [p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_who_lacks_the_data_is_told_where_to_put_them_and_how_to_fetch_them(spcl, tmp_path):
    outcome = spcl("run", "--dataset", "voc2012", "--method", "an", "--data-root", tmp_path)
    assert outcome.status == 2
    assert str(tmp_path / "VOCdevkit" / "VOC2012") in outcome.err
    assert f"download --dataset voc2012 --data-root {tmp_path}" in outcome.err
