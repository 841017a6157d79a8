"""Files are written whole or not at all; locks clean up after killed writers."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from safetensors.torch import save_file

from spcl_lib import UserError
from spcl_lib.system import paths
from spcl_lib.system.files import atomic_write, holder_of, lock_file, lock_folder, write_json


def names_in(folder):
    return {file.name for file in folder.iterdir()}


def write_all(folder, *names):
    for name in names:
        (folder / name).write_text("x")


# --- atomic_write ---------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names_in(path.parent) == {"file"}


def test_an_error_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"file"}


def test_an_error_before_anything_is_written_keeps_the_old_file_too(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path):
        raise KeyboardInterrupt
    assert path.read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_umask_gives(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "weights.safetensors") as temporary:
            save_file({"x": torch.ones(2)}, temporary)
        with atomic_write(tmp_path / "private") as temporary:
            temporary.touch(mode=0o600)
    finally:
        os.umask(before)
    for name in ("weights.safetensors", "private"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_temporary_has_the_ending_that_a_library_asks_for(tmp_path):
    with atomic_write(tmp_path / "page.ipynb", ".ipynb") as temporary:
        assert temporary.suffix == ".ipynb" and temporary.parent == tmp_path
        temporary.touch()


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"mAP": 50.0})
    with pytest.raises(TypeError):
        write_json(path, {"mAP": object()})
    assert json.loads(path.read_text()) == {"mAP": 50.0}
    assert names_in(tmp_path) == {"metrics.json"}


# --- lock_file ------------------------------------------------------------------------------------


def test_a_lock_on_a_file_removes_what_killed_writers_of_this_file_left_and_nothing_else(tmp_path):
    left = (".a.ipynb.17.ipynb", ".a.ipynb.99999.tmp")
    others = ("a.ipynb", ".b.ipynb.17.tmp", ".a.ipynb.backup", ".aXipynb.17.tmp", ".tmp", "a.17")
    write_all(tmp_path, *left, *others)
    with lock_file(tmp_path / "a.ipynb"):
        assert names_in(tmp_path) == {*others, ".a.ipynb.lock"}


def test_a_name_with_signs_of_a_pattern_stands_for_itself(tmp_path):
    write_all(tmp_path, ".a[1].17.tmp", ".a1.17.tmp")
    with lock_file(tmp_path / "a[1]"):
        assert names_in(tmp_path) == {".a1.17.tmp", ".a[1].lock"}


def test_what_the_holder_of_a_lock_writes_is_left_alone(tmp_path):
    path = tmp_path / "new" / "file"
    with lock_file(path), atomic_write(path) as temporary, lock_file(path.with_name("other")):
        temporary.write_text("mine")
    assert path.read_text() == "mine"


def test_what_killed_writers_left_and_cannot_be_removed_stays(tmp_path):
    (tmp_path / ".file.17.tmp").mkdir()
    with lock_file(tmp_path / "file"):
        assert (tmp_path / ".file.17.tmp").is_dir()


def test_one_writer_at_a_time_holds_the_lock(tmp_path):
    path, events = tmp_path / "file", []

    def write():
        with lock_file(path):
            events.append("begin")
            with atomic_write(path) as temporary:
                temporary.write_text("x")
            events.append("end")

    with lock_file(path):
        threads = [threading.Thread(target=write) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert events == []
    for thread in threads:
        thread.join()
    assert events == ["begin", "end"] * 3


def test_an_error_frees_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), lock_file(tmp_path / "file"):
            raise RuntimeError


# --- lock_folder ----------------------------------------------------------------------------------


def test_a_folder_that_is_held_is_refused_after_the_seconds_with_what_its_holder_does(tmp_path):
    with lock_folder(tmp_path, 0, "training in"):
        with pytest.raises(UserError) as caught, lock_folder(tmp_path, 0.1, "training in"):
            raise AssertionError("not reached")
    name = f"process {os.getpid()}"
    assert str(caught.value) == f"{name} is training in '{tmp_path}'; wait for it or stop it"
    with lock_folder(tmp_path, 0, "training in"):
        pass


def test_the_holder_of_a_folder_is_named_while_it_holds_it(tmp_path):
    assert holder_of(tmp_path) is None and holder_of(tmp_path / "missing") is None
    with lock_folder(tmp_path, 0, "training in"):
        assert holder_of(tmp_path) == f"process {os.getpid()}"
        (tmp_path / ".lock").write_text("")  # as an older version leaves it
        assert holder_of(tmp_path) == "another process"
    assert holder_of(tmp_path) is None
    with lock_folder(tmp_path, 0, "training in"):  # the question does not keep the lock
        pass


def test_a_folder_that_becomes_free_within_the_seconds_is_taken(tmp_path):
    held, free = threading.Event(), threading.Event()

    def hold():
        with lock_folder(tmp_path, 0, "training in"):
            held.set()
            free.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.2, free.set).start()
    with lock_folder(tmp_path, 10, "training in"):
        assert free.is_set()
    thread.join()


def test_a_lock_on_a_folder_makes_it_and_removes_what_killed_writers_left_in_it(tmp_path):
    left = (".run.csv.99999.tmp", ".metrics.json.17.tmp", ".tmpAbCdEf")  # the last: safetensors
    kept = ("log.txt", "metrics.json", ".train.ipynb.17.ipynb", "notes.tmp")
    write_all(tmp_path, *left, *kept)
    with lock_folder(tmp_path, 0, "training in"):
        assert names_in(tmp_path) == {*kept, ".lock"}
    with lock_folder(tmp_path / "not" / "there", 0, "training in"):
        assert names_in(tmp_path / "not" / "there") == {".lock"}


def test_leftovers_below_a_folder_and_those_of_a_refused_one_stay(tmp_path):
    (tmp_path / "below").mkdir()
    write_all(tmp_path / "below", ".file.17.tmp")
    with lock_folder(tmp_path, 0, "training in"):
        write_all(tmp_path, ".file.17.tmp")
        with pytest.raises(UserError), lock_folder(tmp_path, 0, "training in"):
            raise AssertionError("not reached")
        assert (tmp_path / ".file.17.tmp").exists()
    assert (tmp_path / "below" / ".file.17.tmp").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from spcl_lib.system.files import atomic_write, lock_folder
folder = Path(sys.argv[1])
with lock_folder(folder, 0, "training in"), atomic_write(folder / "file") as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_process_frees_its_lock_and_the_next_one_tidies_up(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, cwd=paths.project()).returncode == -9
    assert any(name.endswith(".tmp") for name in names_in(tmp_path))
    with lock_folder(tmp_path, 0, "training in"):
        assert names_in(tmp_path) == {".lock"}
