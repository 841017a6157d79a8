"""Cached files are made once, are whole or not there, and are made again when they must be."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import message_of, no_file_above

from spcl_lib import UserError
from spcl_lib.data import cache
from spcl_lib.data.image_set import list_image_files
from spcl_lib.data.images import read_image, try_image


@pytest.fixture
def folder(own_cache):
    return own_cache


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.bmp" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (10, 14, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def tries(monkeypatch):
    """The files that were tried, in no order."""
    tried = []

    def noted(file, side):
        tried.append(file)
        return try_image(file, side)

    monkeypatch.setattr(cache, "try_image", noted)
    return tried


def decode(files, side=8, name="split", damaged="stop"):
    """The set of these files, whose first class tells their numbers."""
    labels = torch.arange(len(files))[:, None] >= torch.arange(2)
    ids = tuple(map(str, range(len(files))))
    data = list_image_files(files, labels=labels, classes=("a", "b"), ids=ids)
    return cache.decode_image_set(data, side, name, damaged)


def kept(folder):
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p.name for p in found if not p.name.endswith(".lock"))


def counted(value):
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.full((3,), value)}

    return make, calls


# --- make_once ------------------------------------------------------------------------------------


def test_tensors_are_made_once_for_the_same_sources_and_others_wait():
    make, calls = counted(1.5)

    def slow():
        time.sleep(0.2)
        return make()

    work = [threading.Thread(target=cache.make_once, args=("name", slow, "a", 2)) for _ in "abcd"]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert cache.make_once("name", make, "a", 2)["x"].tolist() == [1.5] * 3 and len(calls) == 1
    cache.make_once("name", make, "a", 3)
    assert len(calls) == 2


def test_a_full_disk_is_named_and_leaves_nothing(files, folder):
    with no_file_above(50_000), pytest.raises(UserError, match="File too large.*SPCL_CACHE=DIR"):
        decode(files, 64)
    assert kept(folder) == []


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: content[:200] + bytes([content[200] ^ 8]) + content[201:],
    "another": lambda content: b"[1, 2]",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_named_set_aside_and_made_again(how, files, folder, capsys, tries):
    make, calls = counted(2.5)
    cache.make_once("name", make, 1)
    decode(files, 16)
    for file in list(folder.glob("*.pt")):
        damaged = DAMAGES[how](file.read_bytes())
        file.write_bytes(damaged)
        for _ in range(2):
            assert cache.make_once("name", make, 1)["x"].tolist() == [2.5] * 3
            np.testing.assert_array_equal(decode(files, 16).images, squares_of(files, 16))
        said = capsys.readouterr().out
        assert said.count("it does not count") == 1 and f"'{file}' is damaged" in said
        assert file.with_name(f"{file.name}.damaged").read_bytes() == damaged
    assert len(calls) == 2 and len(tries) == 10


def test_a_disk_that_damages_what_it_writes_is_named(folder, monkeypatch):
    """A run made the file again for ever."""
    answers = iter([FileNotFoundError(), cache.DamagedError("a wrong sum")])
    monkeypatch.setattr(cache, "load_saved", lambda *a, **k: (_ for _ in ()).throw(next(answers)))
    with pytest.raises(UserError, match="damaged as soon as it is written .*SPCL_CACHE=DIR"):
        cache.make_once("name", dict, 1)


# --- decoded images -------------------------------------------------------------------------------


def squares_of(files, side):
    return np.stack([read_image(file, side) for file in files])


def test_decoded_images_are_the_files_and_later_calls_read_the_cache(files, folder, tries):
    many = files * 20
    found = decode(many)
    before = found.images.clone()
    assert before.shape == (100, 3, 8, 8) and before.dtype == torch.uint8 and len(found) == 100
    np.testing.assert_array_equal(before, squares_of(many, 8))
    assert len(kept(folder)) == 1 and len(tries) == 100
    found.images.zero_()  # it does not reach the cache
    assert torch.equal(decode(many).images, before) and len(tries) == 100


@pytest.mark.parametrize("how", ["content", "order", "side", "code"])
def test_a_change_of_the_source_is_noticed(files, how, tries, monkeypatch):
    decode(files)
    side = 4 if how == "side" else 8
    if how == "content":  # of the same size: only the time of the change differs
        Image.fromarray(np.full((10, 14, 3), 7, np.uint8)).save(files[2])
        os.utime(files[2], ns=(10**18, 10**18))
    elif how == "order":
        files = files[::-1]
    elif how == "code":
        monkeypatch.setattr(cache.images, "VERSION", 99)
    np.testing.assert_array_equal(decode(files, side).images, squares_of(files, side))
    assert len(tries) == 10


def test_an_old_version_is_removed_and_other_splits_and_sides_stay(files, folder):
    for arguments in ((files, 8, "split"), (files, 4, "split"), (files, 8, "split-val")):
        decode(*arguments)
    (old,) = folder.glob("split-8px-*.pt")
    os.utime(files[0], ns=(10**18, 10**18))
    decode(files)
    assert len(kept(folder)) == 3 and not old.exists()


@pytest.mark.parametrize("limit", ["20", "0"])
def test_damaged_images_are_named_or_left_out_and_remembered(
    files, monkeypatch, limit, tries, capsys
):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    files[0].unlink()
    files[2].write_bytes(b"")
    files[3].write_text("404: not found")
    for _ in range(2):  # the second start knows it without trying again
        message = message_of(decode, files)
        assert message.startswith("3 of 5 images of split are damaged, such as ")
        assert f"'{files[0]}' is missing, " in message
        assert f"'{files[2]}' cannot be read: it is no image" in message
        assert "--set damaged=skip" in message
        found = decode(files, damaged="skip")
        assert found.ids == ("1", "4") and found.files == (files[1], files[4])
        np.testing.assert_array_equal(found.images[:], squares_of([files[1], files[4]], 8))
        assert len(tries) == 5
        assert "left out: 3 of 5 images of split" in capsys.readouterr().out
