"""Whatever moment a crash comes at, nothing is lost: the run goes on to the same bits."""

import builtins
import io
import os
import random
import shutil
import signal
import time

import pytest
from small_folder import set_options
from test_resume import run_in, what_counts
from two_ranks import run_command

from spcl_lib.runs import checkpoint, store
from spcl_lib.runs.settings import make_config

KILLS = 10
MOST_STARTS = 60
CUTS = 12


def test_killed_ten_times_at_random_moments_it_goes_on_to_the_same_bits(
    results, shared_cache, tmp_path, tiny, monkeypatch
):
    settings = tiny | {"eval_every": 2}  # 18 steps, with a checkpoint after each
    config = make_config("scenes", "en_scl", 1, "smoke", settings)
    command = ["run", "--profile", "smoke", "--method", "en_scl", "--seed", "1"]
    command += set_options(settings)

    def start(place, seconds, *words):
        places = {"SPCL_RESULTS": str(place), "SPCL_CACHE": str(shared_cache)}
        return run_command(words, places, seconds)

    assert start(tmp_path / "first", None, *command) == 0  # loads torch, and fills the cache
    began = time.monotonic()
    assert start(tmp_path / "whole", None, *command) == 0
    duration = time.monotonic() - began
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "whole"))
    expected = what_counts(store.run_folder(config))

    killed = tmp_path / "killed"
    monkeypatch.setenv("SPCL_RESULTS", str(killed))
    folder, rng = store.run_folder(config), random.Random(12)
    kills, repeat = 0, []
    for _ in range(MOST_STARTS):
        status = start(killed, rng.uniform(0, duration), *command, *repeat)
        if status == 0:
            assert what_counts(folder) == expected
            repeat = ["--force"]  # the next process makes the run again, and may be killed, too
        else:
            assert status == -signal.SIGKILL
            kills += 1
            is_replaced = (folder / store.REPEAT / "metrics.json").exists()
            assert not repeat or is_replaced or store.Run.of(config).metrics is not None
        if kills == KILLS:
            break
    assert kills == KILLS
    assert start(killed, None, *command, *repeat) == 0
    assert what_counts(folder) == expected
    left = {file.name for file in killed.rglob("*") if file.is_file()}
    assert not {name for name in left if name.endswith(".tmp") or "checkpoint" in name}


class Disk:
    """Copies the folder of results as a power cut would leave it, at some of the system's calls.

    What no process has asked the system to write to the disk (fsync) may be lost: of some such
    files only the first half is left.
    """

    def __init__(self, results, patch):
        self.results, self.calls, self.copies, self.cuts = results, 0, [], set()
        old = [file.stat() for file in results.rglob("*")]
        self.safe = {(status.st_ino, status.st_size) for status in old}  # they are on the disk
        self.rng = random.Random(3)
        for owner, name in (
            (os, "replace"), (os, "unlink"), (os, "fsync"), (os, "mkdir"), (os, "rmdir"),
            (builtins, "open"), (io, "open"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, function):
        def call(*given, **options):
            if self._concerns(given[0]):
                self.calls += 1
                if self.calls in self.cuts:
                    self.cuts.remove(self.calls)
                    self._cut()
            done = function(*given, **options)
            if isinstance(given[0], int):
                status = os.fstat(given[0])
                self.safe.add((status.st_ino, status.st_size))
            return done

        return call

    def _concerns(self, file):
        return isinstance(file, int) or str(file).startswith(str(self.results))

    def _cut(self):
        copy = self.results.with_name(f"cut-{self.calls}")
        shutil.copytree(self.results, copy)
        self.copies.append(copy)
        for file in self.results.rglob("*"):
            status = file.stat()
            is_safe = (status.st_ino, status.st_size) in self.safe
            if file.is_file() and not is_safe and self.rng.random() < 0.5:
                os.truncate(copy / file.relative_to(self.results), status.st_size // 2)


@pytest.mark.parametrize("repeated", [False, True], ids=["the first time", "a repeat"])
def test_after_a_power_cut_it_goes_on_to_the_same_bits(
    repeated, results, tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SECONDS", 0.0)
    config = make_config("scenes", "scl", 0, "smoke", tiny | {"train_images": 24})  # 9 steps
    expected = run_in(tmp_path / "whole", config, monkeypatch)
    if repeated:
        shutil.copytree(tmp_path / "whole", tmp_path / "watched")
    everything = watch(tmp_path / "counted", config, monkeypatch, (), repeated).calls
    cuts = set(random.Random(2).sample(range(1, everything + 1), CUTS - 2))
    cuts |= {everything - 1, everything - 8}  # most files are written at the end
    disk = watch(tmp_path / "watched", config, monkeypatch, cuts, repeated)
    assert len(disk.copies) >= CUTS - 2
    for copy in disk.copies:
        monkeypatch.setenv("SPCL_RESULTS", str(copy))
        is_replaced = (store.run_folder(config) / store.REPEAT / "metrics.json").exists()
        assert not repeated or is_replaced or store.Run.of(config).metrics is not None
        assert run_in(copy, config, monkeypatch, force=repeated) == expected, copy.name


def watch(results, config, monkeypatch, cuts, force):
    with monkeypatch.context() as patch:
        disk = Disk(results, patch)
        disk.cuts = set(cuts)
        run_in(results, config, monkeypatch, force=force)
    return disk
