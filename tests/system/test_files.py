"""Files are written whole or not at all; locks clean up; refusals of the system are clear."""

import errno
import os
import threading

import pytest
import torch
from refusals import no_file_above
from safetensors.torch import save_file

from spcl_lib import UserError
from spcl_lib.system import files, paths
from spcl_lib.system.files import (
    atomic_write,
    explain_refusals,
    lock_file,
    lock_folder,
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def write_all(folder, *names):
    for name in names:
        (folder / name).write_text("x")


def test_an_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and names_in(path.parent) == {path.name}


def test_a_file_has_the_mode_that_the_umask_gives(tmp_path):
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "weights.safetensors") as temporary:
        save_file({"x": torch.ones(2)}, temporary)  # which makes files for their owner only
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_lock_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    write_all(tmp_path, ".a.0a1b2c3d.tmp", "a", ".b.0a1b2c3d.tmp", ".a.backup", "a.tmp")
    with lock_file(tmp_path / "a"):
        assert names_in(tmp_path) == {"a", ".b.0a1b2c3d.tmp", ".a.backup", "a.tmp", ".a.lock"}
    write_all(tmp_path, ".tmpAbCdEf")  # of safetensors
    with lock_folder(tmp_path, "training in"):
        assert names_in(tmp_path) == {"a", ".a.backup", "a.tmp", ".a.lock", ".lock"}


def test_one_holder_at_a_time_and_the_next_one_says_that_it_waits(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    events = []

    def hold():
        with lock_file(tmp_path / "file"):
            events.extend(("begin", "end"))

    with lock_file(tmp_path / "file"):
        threads = [threading.Thread(target=hold) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.3)
        assert events == []
    for thread in threads:
        thread.join()
    assert events == ["begin", "end"] * 3
    assert capfd.readouterr().err.count("spcl: waits for another process, which is ") >= 3


@pytest.mark.parametrize("library", ["python", "torch", "safetensors"])
def test_every_library_that_writes_is_understood(library, tmp_path):
    """torch and safetensors hide the system's error in ones of their own."""
    path, large = tmp_path / "results" / "file", torch.zeros(100_000)
    path.parent.mkdir()
    path.write_text("old")
    with (
        no_file_above(50_000),
        pytest.raises(UserError, match=f"^'{path}'.*File too large.*SPCL_RESULTS=DIR"),
        atomic_write(path) as temporary,
    ):
        if library == "safetensors":
            save_file({"x": large}, temporary)
        else:
            with open(temporary, "wb") as handle:
                torch.save(large, handle) if library == "torch" else handle.write(b"x" * 60_000)
    assert path.read_text() == "old" and names_in(path.parent) == {"file"}


@pytest.mark.parametrize("writing", [lock_file, atomic_write])
def test_a_file_where_a_folder_is_needed_is_named_with_its_variable(writing, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "file" / "more" / "cache"))
    with pytest.raises(UserError, match=r"Not a directory.*SPCL_CACHE=DIR"):
        writing(paths.cache() / "x").__enter__()


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 9 GiB")):
        with pytest.raises(UserError, match="a smaller batch need less"), explain_refusals():
            raise error
    with pytest.raises(UserError, match="Permission denied: '/x'"), explain_refusals():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x")
    for error in (UserError("of its own"), RuntimeError("the kernel died")):
        with pytest.raises(type(error), match=f"^{error.args[0]}$"), explain_refusals(tmp_path):
            try:
                raise FileExistsError(errno.EEXIST, "is there")
            except FileExistsError:
                raise error  # noqa: B904
