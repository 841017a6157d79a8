"""The places of files, and one clear message if the system refuses to write there."""

import errno
import os

import pytest
import torch
from refusals import no_file_above
from safetensors.torch import save_file

from spcl_lib import UserError
from spcl_lib.system import files, paths
from spcl_lib.system.files import atomic_write, lock_file


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


def refused(number, path=None, named=None):
    """The message for an error of the system."""
    with pytest.raises(UserError) as caught, files.explain_refusals(path):
        raise OSError(number, os.strerror(number), named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("find", [paths.results, lambda: paths.data_root("~nouser/x"),
                                  lambda: paths.weights("resnet50", "~nouser/x")])  # fmt: skip
def test_a_home_folder_is_found_and_that_of_an_unknown_user_is_named(find, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPCL_RESULTS", "~/mine")
    assert paths.results() == tmp_path / "mine"
    monkeypatch.setenv("SPCL_RESULTS", "~nouser/x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'~nouser/x' is in no home folder"):
        find()
    (tmp_path / "~nouser" / "x").mkdir(parents=True)
    find()  # it is a folder of this name


def test_a_data_root_that_is_none_is_named(tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(link)
    monkeypatch.setenv("SPCL_RESULTS", str(link))
    with pytest.raises(UserError, match=f"'{link}"), atomic_write(paths.results() / "x") as file:
        file.write_text("x")
    for root in (link, "x" * 5000):
        with pytest.raises(UserError, match=f"data root '{root}' does not exist"):
            paths.data_root(root)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some space"), (errno.EACCES, "permissions"),
     (errno.ENOTDIR, "a file where a folder is needed"), (errno.ENAMETOOLONG, "shorter path")],
)  # fmt: skip
def test_a_refusal_says_which_path_why_and_what_to_do(number, advice):
    message = refused(number, named="/some/where")
    assert message.startswith(f"'/some/where': {os.strerror(number)}. ") and advice in message
    assert "SPCL_" not in message  # no variable sets this one
    file = paths.results() / "metrics.json"
    message = refused(number, file, str(file.with_name(".metrics.json.7.tmp")))
    assert message.startswith(f"'{file}': ") and "the results: SPCL_RESULTS=DIR" in message
    assert "the cache: SPCL_CACHE=DIR" in refused(number, paths.cache())
    assert refused(number).startswith("the system refuses: ")


def test_a_parent_of_the_folder_that_cannot_be_made_counts_as_the_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "file" / "more" / "cache"))
    for writing in (lock_file, atomic_write):
        with pytest.raises(UserError, match=r"file where a folder is needed.*SPCL_CACHE=DIR"):
            with writing(paths.cache() / "x"):
                raise AssertionError("not reached")


def test_what_is_no_refusal_stays_what_it_is():
    with pytest.raises(FileNotFoundError), files.explain_refusals():
        open("/no/such/file")
    with pytest.raises(UserError, match="^of its own$"), files.explain_refusals():
        try:
            raise PermissionError(errno.EACCES, "no")
        except PermissionError as error:
            raise UserError("of its own") from error
    with pytest.raises(RuntimeError, match="^the kernel died$"), files.explain_refusals():
        try:
            raise FileExistsError(errno.EEXIST, "is there")
        except FileExistsError:
            raise RuntimeError("the kernel died")  # noqa: B904


@pytest.mark.parametrize("library", ["python", "torch", "safetensors"])
def test_every_library_that_writes_is_understood(library, tmp_path):
    """torch and safetensors hide the system's error in ones of their own."""
    path, large = tmp_path / "file", torch.zeros(100_000)
    path.write_text("old")
    with (
        no_file_above(50_000),
        pytest.raises(UserError, match=f"^'{path}': File too large"),
        atomic_write(path) as temporary,
    ):
        if library == "safetensors":
            save_file({"x": large}, temporary)
        else:
            with open(temporary, "wb") as handle:
                torch.save(large, handle) if library == "torch" else handle.write(b"x" * 60_000)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
