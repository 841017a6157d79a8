"""Files are written whole or not at all; locks clean up after killed writers."""

import errno
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from spcl_lib import UserError
from spcl_lib.system import files, paths
from spcl_lib.system.files import (
    atomic_write,
    explain_refusals,
    lock_file,
    lock_folder,
    read_list,
    remove_stale,
    write_json,
)


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def write_all(folder, *names):
    for name in names:
        (folder / name).write_text("x")


# --- atomic_write ---------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "page.ipynb"
    with atomic_write(path, ".ipynb") as temporary:
        assert temporary.suffix == ".ipynb" and temporary.parent == path.parent
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and names_in(path.parent) == {"page.ipynb"}


@pytest.mark.parametrize("wrote", [False, True])
def test_an_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path, wrote):
    path = tmp_path / "metrics.json"
    write_json(path, {"mAP": 50.0})
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        if wrote:
            temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(TypeError):
        write_json(path, {"mAP": object()})
    assert json.loads(path.read_text()) == {"mAP": 50.0} and names_in(tmp_path) == {path.name}


def test_two_writers_of_one_file_in_one_process_do_not_share_their_temporary_file(tmp_path):
    """They were told apart by the number of the process alone."""
    path = tmp_path / "file"
    with atomic_write(path) as one, atomic_write(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one" and names_in(tmp_path) == {"file"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_umask_gives(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "weights.safetensors") as temporary:
            save_file({"x": torch.ones(2)}, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == mode


# --- locks ----------------------------------------------------------------------------------------


def test_a_lock_on_a_file_removes_what_killed_writers_of_this_file_left_and_nothing_else(tmp_path):
    left = (".a[1].17-0a.ipynb", ".a[1].99999.tmp")
    others = ("a[1]", ".b.17.tmp", ".a[1].backup", ".a1.17.tmp", ".tmp", "a.17")
    write_all(tmp_path, *left, *others)
    with lock_file(tmp_path / "a[1]"):
        assert names_in(tmp_path) == {*others, ".a[1].lock"}


def test_a_lock_on_a_folder_removes_what_killed_writers_left_in_it(tmp_path):
    left = (".run.csv.99999-0a.tmp", ".metrics.json.17.tmp", ".tmpAbCdEf")  # the last: safetensors
    kept = ("log.txt", "metrics.json", ".train.ipynb.17.ipynb", "notes.tmp")
    write_all(tmp_path, *left, *kept)
    with lock_folder(tmp_path, "training in"):
        assert names_in(tmp_path) == {*kept, ".lock"}


def test_a_holder_that_fails_before_it_wrote_anything_leaves_no_folder(tmp_path):
    """A failed run left a folder with nothing but `.lock` in it."""
    folder = tmp_path / "not" / "there"
    with pytest.raises(RuntimeError), lock_folder(folder, "training in"):
        assert names_in(folder) == {".lock"}
        raise RuntimeError
    assert not folder.exists()


@pytest.mark.parametrize("lock", [lambda place: lock_file(place / "file"),
                                  lambda place: lock_folder(place, "training in")],
                         ids=["file", "folder"])  # fmt: skip
def test_one_holder_at_a_time_and_the_next_one_says_for_whom_it_waits(
    lock, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    (tmp_path / "kept").touch()
    events = []

    def hold():
        with lock(tmp_path):
            events.append("begin")
            events.append("end")

    with lock(tmp_path):
        threads = [threading.Thread(target=hold) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.3)
        assert events == []
    for thread in threads:
        thread.join()
    assert events == ["begin", "end"] * 3
    what = f"spcl: waits for process {os.getpid()}, which is "
    assert capfd.readouterr().err.count(what) >= 3


KILLED = """
import os, signal, sys
from pathlib import Path
from spcl_lib.system.files import atomic_write, lock_folder
folder = Path(sys.argv[1])
with lock_folder(folder, "training in"), atomic_write(folder / "file") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_frees_its_lock_and_the_next_one_tidies_up(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, cwd=paths.project()).returncode == -9
    assert any(name.endswith(".tmp") for name in names_in(tmp_path))
    remove_stale(tmp_path, ".file")
    assert not any(name.endswith(".tmp") for name in names_in(tmp_path))
    with atomic_write(tmp_path / "other") as mine, lock_folder(tmp_path / "below", "x"):
        mine.touch()
        remove_stale(tmp_path, ".other")
        assert mine.exists()  # its process lives


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_of_the_system_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path))
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail_like_torch():
        try:
            raise full
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed") from None

    def fail_like_safetensors():
        raise ValueError("I/O error: No space left on device (os error 28)")

    def fail():
        raise full

    for work in (fail, fail_like_torch, fail_like_safetensors):
        with pytest.raises(UserError) as error, explain_refusals(tmp_path / "a"):
            work()
        assert str(error.value) == (
            f"'{tmp_path / 'a'}': No space left on device. Free some space, or choose another "
            f"folder for the cache: SPCL_CACHE=DIR ('{tmp_path}')"
        )
    with pytest.raises(UserError, match="a smaller batch need less"), explain_refusals():
        raise RuntimeError("CUDA out of memory")
    with pytest.raises(UserError, match="Its permissions"), explain_refusals():
        raise PermissionError(errno.EACCES, "denied", "/x")
    with pytest.raises(KeyError), explain_refusals(tmp_path):
        raise KeyError("another error")


def test_a_list_is_a_regular_file_of_a_length_that_can_be_read(tmp_path, make_pipe):
    make_pipe(tmp_path / "pipe")
    with open(tmp_path / "long", "wb") as handle:
        handle.truncate(2**31 + 1)
    write_all(tmp_path, "list")
    assert read_list(tmp_path / "list") == b"x"
    for name, said in (("pipe", "no regular file"), ("long", "more than 2 GiB")):
        with pytest.raises(OSError, match=said):
            read_list(tmp_path / name)
