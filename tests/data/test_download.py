"""`python -m spcl_lib download` gets all or nothing. A fake server replaces the network."""

import email.message
import hashlib
import io
import tarfile
import urllib.error

import pytest
import torch
from small_voc import voc_ids, write_lists

from spcl_lib.data import download

REAL = download._ARCHIVES


def files_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


class Answer(io.BytesIO):
    """What urlopen returns."""

    def info(self):
        return email.message.Message()


class Server:
    """Answers every address with the same archive, or fails; notes the addresses."""

    def __init__(self):
        self.asked, self.failure, self.archive, self.has_https = [], None, b"", True

    def __call__(self, request):
        self.asked.append(request.full_url)
        if request.full_url.startswith("https:") and not self.has_https:
            raise urllib.error.URLError("Connection refused")
        if self.failure:
            raise self.failure
        return Answer(self.archive)


def archive_of(folder, *more):
    """A tar of a folder, and of further members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, "VOCdevkit")
        for member in more:
            archive.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Offers both years; their SHA-256 is what the package expects."""
    server = Server()
    for year in (2007, 2012):
        write_lists(tmp_path / "source" / f"VOC{year}")
    server.archive = archive_of(tmp_path / "source")
    monkeypatch.setattr(torch.hub, "urlopen", server)
    expect(monkeypatch, server.archive)
    return server


def expect(monkeypatch, archive):
    """Makes the package expect the SHA-256 of this archive."""
    sha256 = hashlib.sha256(archive).hexdigest()
    known = {year: (name, sha256) for year, (name, _) in download._ARCHIVES.items()}
    monkeypatch.setattr(download, "_ARCHIVES", known)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_the_data_arrive_where_they_are_read_and_nothing_else_stays(spcl, server, root, year):
    outcome = spcl("download", "--dataset", f"voc{year}", "--data-root", root)
    folder = root / "VOCdevkit" / f"VOC{year}"
    assert outcome.status == 0 and outcome.out == f"{folder}\n"
    (address,) = server.asked
    assert address.startswith("https://") and f"voc{year}/VOCtrainval_" in address
    assert (folder / "ImageSets" / "Main" / "train.txt").read_text().split() == voc_ids()["train"]
    assert [p.name for p in root.iterdir() if p.suffix != ".lock"] == ["VOCdevkit"]
    assert not any(name.endswith(".tar") for name in files_in(root))
    assert spcl("download", "--dataset", f"voc{year}", "--data-root", root).status == 0
    assert len(server.asked) == 1  # what is there is not fetched again


def test_without_https_the_archive_comes_by_http(spcl, server, root):
    server.has_https = False
    assert spcl("download", "--dataset", "voc2007", "--data-root", root).status == 0
    assert [address.partition(":")[0] for address in server.asked] == ["https", "http"]


def test_a_data_set_of_thousands_of_characters_is_named_in_part(spcl, tmp_path):
    outcome = spcl("download", "--dataset", "9" * 5000, "--data-root", tmp_path / "none")
    assert outcome.status == 2 and "none' does not exist" in outcome.err
    assert len(outcome.err) < 1500


def test_another_archive_than_the_known_one_is_not_unpacked(spcl, server, root, monkeypatch):
    monkeypatch.setattr(download, "_ARCHIVES", REAL)
    monkeypatch.setattr(tarfile, "open", lambda *given: pytest.fail("it was opened"))
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
    assert outcome.status == 2 and "invalid hash value" in outcome.err
    assert files_in(root) == []


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="needs Python 3.11.4")
def test_an_archive_writes_nothing_outside_its_folder(spcl, server, root, monkeypatch, tmp_path):
    server.archive = archive_of(tmp_path / "source", tarfile.TarInfo("../outside"))
    expect(monkeypatch, server.archive)
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
    assert outcome.status == 2 and "outside" in outcome.err
    assert files_in(tmp_path / "data") == []


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError("Temporary failure in name resolution"),
        urllib.error.HTTPError("https://x", 503, "Service Unavailable", None, None),
        OSError(28, "No space left on device"),
        tarfile.ReadError("unexpected end of data"),
    ],
)
def test_a_failed_download_says_so_and_leaves_nothing(spcl, server, root, failure):
    server.failure = failure
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
    assert outcome.status == 2
    (line,) = outcome.err.splitlines()
    assert str(failure) in line and str(root / "VOCdevkit" / "VOC2007") in line
    assert files_in(root) == [] and not (root / "VOCdevkit").exists()
    server.failure = None  # the network is back
    assert spcl("download", "--dataset", "voc2007", "--data-root", root).status == 0


def test_a_download_that_is_stopped_leaves_nothing(spcl, server, root):
    server.failure = KeyboardInterrupt()
    outcome = spcl("download", "--dataset", "voc2007", "--data-root", root)
    assert outcome.status == 130 and files_in(root) == []


def test_other_data_sets_are_refused(spcl, tmp_path):
    outcome = spcl("download", "--dataset", "coco2017", "--data-root", tmp_path)
    assert outcome.status == 2 and "Valid: voc2007, voc2012" in outcome.err


def test_who_lacks_the_data_is_told_where_to_put_them_and_how_to_fetch_them(spcl, tmp_path):
    outcome = spcl("run", "--dataset", "voc2012", "--method", "an", "--data-root", tmp_path)
    assert outcome.status == 2
    assert str(tmp_path / "VOCdevkit" / "VOC2012") in outcome.err
    assert f"download --dataset voc2012 --data-root {tmp_path}" in outcome.err
