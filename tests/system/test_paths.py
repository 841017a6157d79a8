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


def test_a_folder_of_the_environment_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPCL_RESULTS", "~/mine")
    assert paths.results() == tmp_path / "mine"


@pytest.mark.parametrize("find", [paths.results, lambda: paths.data_root("~nouser/x"),
                                  lambda: paths.weights("resnet50", "~nouser/x")])  # fmt: skip
def test_the_home_folder_of_an_unknown_user_is_named(find, tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_RESULTS", "~nouser/x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'~nouser/x' is in no home folder"):
        find()
    (tmp_path / "~nouser" / "x").mkdir(parents=True)
    find()  # it is a folder of this name


def test_a_link_that_leads_to_itself_is_named(tmp_path, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(link)
    monkeypatch.setenv("SPCL_RESULTS", str(link))
    with pytest.raises(UserError, match=f"'{link}"), atomic_write(paths.results() / "x") as file:
        file.write_text("x")
    with pytest.raises(UserError, match=f"data root '{link}' does not exist"):
        paths.data_root(link)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some space"), (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "permissions"), (errno.EROFS, "permissions"),
        (errno.ENOTDIR, "a file where a folder is needed"), (errno.EEXIST, "a file where a folder"),
        (errno.ENAMETOOLONG, "shorter path"),
    ],
)  # fmt: skip
def test_it_says_which_path_why_and_what_to_do(number, advice):
    message = refused(number, named="/some/where")
    assert message.startswith(f"'/some/where': {os.strerror(number)}. ") and advice in message
    assert "SPCL_" not in message  # no variable sets this one


def test_a_path_that_the_system_does_not_name_is_named():
    file = paths.cache() / "scenes.pt"
    assert refused(errno.ENOSPC, file).startswith(f"'{file}': No space left")
    assert refused(errno.ENOSPC).startswith("the system refuses: No space left")


def test_a_temporary_is_named_by_what_it_is_for():
    file = paths.results() / "metrics.json"
    message = refused(errno.EACCES, file, str(file.with_name(".metrics.json.7.tmp")))
    assert message.startswith(f"'{file}': Permission denied")
    assert refused(errno.EACCES, file, "/else/where").startswith("'/else/where': ")


def test_what_only_happened_on_the_way_is_not_taken_for_the_reason():
    with (
        pytest.raises(RuntimeError, match="^the kernel died$"),
        files.explain_refusals(paths.results()),
    ):
        try:
            raise FileExistsError(errno.EEXIST, "is there")
        except FileExistsError:
            raise RuntimeError("the kernel died")  # noqa: B904


def test_it_names_the_variable_that_sets_the_folder(tmp_path):
    assert "the results: SPCL_RESULTS=DIR" in refused(errno.EACCES, paths.results() / "a" / "b")
    assert "the cache: SPCL_CACHE=DIR" in refused(errno.EACCES, paths.cache())
    assert str(paths.cache()) in refused(errno.EACCES, paths.cache() / "x")


def test_a_parent_of_the_folder_that_cannot_be_made_counts_as_the_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "file" / "more" / "cache"))
    with pytest.raises(UserError, match=r"file where a folder is needed.*SPCL_CACHE=DIR"):
        with lock_file(paths.cache() / "x"):
            raise AssertionError("not reached")
    with pytest.raises(UserError, match=r"file where a folder is needed.*SPCL_CACHE=DIR"):
        with atomic_write(paths.cache() / "x"):
            raise AssertionError("not reached")


def test_what_is_no_refusal_stays_what_it_is():
    with pytest.raises(FileNotFoundError), files.explain_refusals():
        open("/no/such/file")
    with pytest.raises(ValueError, match="^plain$"), files.explain_refusals():
        raise ValueError("plain")
    with pytest.raises(UserError, match="^of its own$"), files.explain_refusals():
        try:
            raise PermissionError(errno.EACCES, "no")
        except PermissionError as error:
            raise UserError("of its own") from error


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


def test_a_data_root_whose_name_is_too_long_does_not_exist():
    with pytest.raises(UserError, match="does not exist"):
        paths.data_root("x" * 5000)
