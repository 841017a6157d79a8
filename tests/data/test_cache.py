"""Cached files are made once, are whole or not there, and are made again when they must be."""

import errno
import json
import os
import threading
import time
import types

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import no_file_above

from spcl_lib import UserError
from spcl_lib.data import cache
from spcl_lib.data.images import LazyImages, read_image, try_stored


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
        return try_stored(file, side)

    monkeypatch.setattr(cache, "try_stored", noted)
    return tried


def kept(folder):
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(str(p.relative_to(folder)) for p in found if not p.name.endswith(".lock"))


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
    assert cache.make_once("name", slow, "a", 2)["x"].tolist() == [1.5] * 3 and len(calls) == 1
    for number, other in enumerate([("a", 3), ("b", 2), ("a", 2, None), ("a", "2")], 2):
        cache.make_once("name", slow, *other)
        assert len(calls) == number


def test_a_full_disk_is_named_and_leaves_nothing(folder):
    with no_file_above(50_000), pytest.raises(UserError, match="File too large.*SPCL_CACHE=DIR"):
        cache.make_once("name", lambda: {"x": torch.zeros(100_000)}, 1)
    assert kept(folder) == []


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "random": lambda content: bytes(range(256)) * (len(content) // 256 + 1),
    "flipped": lambda content: content[:200] + bytes([content[200] ^ 8]) + content[201:],
    "flipped late": lambda content: content[:-40] + bytes([content[-40] ^ 8]) + content[-39:],
    "another": lambda content: b"[1, 2]",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_named_set_aside_and_made_again(how, files, folder, capsys, tries):
    make, calls = counted(2.5)
    cache.make_once("name", make, 1)
    cache.decode_images(files, 16, "split")
    for file in (next(folder.glob("*.pt")), next(folder.rglob("*.images"))):
        damaged = DAMAGES[how](file.read_bytes())
        file.write_bytes(damaged)
        for _ in range(2):
            assert cache.make_once("name", make, 1)["x"].tolist() == [2.5] * 3
            images = cache.decode_images(files, 16, "split").images
            np.testing.assert_array_equal(images, squares_of(files, 16))
        said = capsys.readouterr().out
        assert said.count("it is set aside") == 1 and f"'{file}'" in said and "made again" in said
        assert file.with_name(f"{file.name}.damaged").read_bytes() == damaged
    assert len(calls) == 2 and len(tries) == 10


def test_a_disk_that_damages_every_file_is_named_and_nothing_goes_on_for_ever(monkeypatch):
    def write(temporary):
        temporary.write_bytes(b"damaged by the disk")

    with pytest.raises(UserError, match="is damaged as soon as it is written.*SPCL_CACHE=DIR"):
        cache.make_file(cache.paths.cache() / "x.pt", cache.load_saved, write)


# --- decode_images --------------------------------------------------------------------------------


def squares_of(files, side):
    return np.stack([read_image(file, side) for file in files])


def break_three(files):
    """Three of the five files: missing, empty, no image. Gives the numbers of the others."""
    files[0].unlink()
    files[2].write_bytes(b"")
    files[3].write_text("404: not found")
    return [1, 4]


def test_decoded_images_are_the_files_and_later_calls_read_the_cache(files, folder, tries):
    many = files * 20
    found = cache.decode_images(many, 8, "split")
    before = found.images.clone()
    assert before.shape == (100, 3, 8, 8) and before.dtype == torch.uint8
    assert found.kept.tolist() == list(range(100)) and found.stored.tolist() == [[1, 10, 14]] * 100
    np.testing.assert_array_equal(before, squares_of(many, 8))
    assert len(kept(folder)) == 1 and len(tries) == 100
    found.images.zero_()  # it does not reach the cache
    assert torch.equal(cache.decode_images(many, 8, "split").images, before)
    assert len(tries) == 100


@pytest.mark.parametrize("how", ["content", "order", "side", "code"])
def test_a_change_of_the_source_is_noticed(files, how, tries, monkeypatch):
    cache.decode_images(files, 8, "split")
    side = 4 if how == "side" else 8
    if how == "content":  # of the same size: only the time of the change differs
        Image.fromarray(np.full((10, 14, 3), 7, np.uint8)).save(files[2])
        os.utime(files[2], ns=(10**18, 10**18))
    elif how == "order":
        files = files[::-1]
    elif how == "code":
        monkeypatch.setattr(cache.image_files, "VERSION", 99)
    images = cache.decode_images(files, side, "split").images
    np.testing.assert_array_equal(images, squares_of(files, side))
    assert len(tries) == 10


def test_an_old_version_is_removed_and_other_splits_and_sides_stay(files, folder):
    for arguments in ((files, 8, "split"), (files, 4, "split"), (files, 8, "split-val")):
        cache.decode_images(*arguments)
    (old,) = folder.glob("split-8px-*/*.images")
    half = old.with_name(f".{old.name}.99999.tmp")  # of a process that was killed
    half.write_bytes(b"half")
    os.utime(files[0], ns=(10**18, 10**18))
    cache.decode_images(files, 8, "split")
    assert len(kept(folder)) == 3 and not old.exists() and not half.exists()


@pytest.mark.parametrize("limit", ["20", "0"])
def test_damaged_images_are_named_or_left_out_and_remembered(
    files, monkeypatch, limit, tries, capsys
):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    whole = break_three(files)
    for _ in range(2):  # the second start knows it without trying again
        with pytest.raises(UserError) as caught:
            cache.decode_images(files, 8, "split")
        message = str(caught.value)
        assert message.startswith("3 of 5 images of split are damaged: ")
        assert f"'{files[0]}' is missing, " in message
        assert f"'{files[2]}' cannot be read: it is empty, " in message
        assert "--set damaged=skip" in message and "\n" not in message
        found = cache.decode_images(files, 8, "split", "skip")
        assert found.kept.tolist() == whole and len(found.stored) == 2
        np.testing.assert_array_equal(found.images[:], squares_of([files[i] for i in whole], 8))
        assert len(tries) == 5
        assert "left out 3 of 5 images of split that cannot be read: 0.bmp, 2.bmp, 3.bmp" in (
            capsys.readouterr().out
        )


def test_a_message_names_five_files_and_a_mended_file_is_noticed(files, tmp_path):
    gone = [tmp_path / f"gone {i}.jpg" for i in range(1200)]
    with pytest.raises(UserError) as caught:
        cache.decode_images(files + gone, 8, "split")
    assert "1,200 of 1,205 images" in str(caught.value)
    assert str(caught.value).count(".jpg") == 5 and "gone 4.jpg' is missing, ..." in str(caught)
    gone[1199].write_bytes(files[0].read_bytes())
    found = cache.decode_images(files + gone, 8, "split", "skip")
    assert found.kept.tolist() == [0, 1, 2, 3, 4, 1204]


@pytest.mark.parametrize("damaged", ["stop", "skip"])
def test_a_split_without_an_intact_image_is_an_error(files, damaged):
    for file in files:
        file.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match="5 of 5 images") as caught:
            cache.decode_images(files, 8, "split", damaged)
        assert ("damaged=skip" in str(caught.value)) == (damaged == "stop")
    with pytest.raises(UserError, match="split has no images"):
        cache.decode_images([], 8, "split")


# --- too large, or a full disk --------------------------------------------------------------------


def test_above_the_limit_images_are_read_from_their_files(files, folder, monkeypatch, capsys):
    monkeypatch.setenv("SPCL_CACHE_GB", "9.5e-7")  # five images of 8 x 8 pixels are 960 bytes
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    images = cache.decode_images(files, 8, "split").images
    assert isinstance(images, LazyImages) and images.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(images[:], squares_of(files, 8))
    said = capsys.readouterr().out
    assert "split" in said and "0.00096 MB" in said and "SPCL_CACHE_GB=9.5e-07" in said
    monkeypatch.undo()
    monkeypatch.setenv("SPCL_CACHE", str(folder))
    assert isinstance(cache.decode_images(files, 8, "split").images, torch.Tensor)


def test_a_disk_with_too_little_space_is_known_before_anything_is_written(
    files, folder, tries, monkeypatch
):
    usage = types.SimpleNamespace(free=959)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError) as caught:
        cache.decode_images(files, 8, "split")
    for text in (str(folder), "split", "need 0.00096 MB", "0.000959 MB are free", "SPCL_CACHE"):
        assert text in str(caught.value)
    assert kept(folder) == [] and tries == []
    usage.free = 960
    cache.decode_images(files, 8, "split")


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [(errno.ENOSPC, UserError, "No space left on device.*SPCL_CACHE"),
     (errno.EIO, OSError, "Input/output")],
)  # fmt: skip
def test_a_disk_that_fails_while_decoding_is_named_and_nothing_is_left(
    files, folder, monkeypatch, number, kind, said
):
    def fail(*given):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache, "seal", fail)
    with pytest.raises(kind, match=said):
        cache.decode_images(files, 8, "split")
    assert kept(folder) == []


def test_values_are_packed_among_tensors():
    value = [{"ä": [1, None, "猫"]}, 0.5]
    assert cache.unpack(cache.pack(value)) == json.loads(json.dumps(value)) == value
