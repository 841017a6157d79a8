"""Caches: made once, never torn, made anew when their source changes."""

import errno
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


def kept(folder):
    return sorted(p.name for p in folder.glob("*") if not p.name.endswith(".lock"))


# --- replacing ------------------------------------------------------------------------------------


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with cache.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), cache.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_swept_away_and_what_is_in_use_is_not(tmp_path):
    left = [".run.csv.99999.tmp", ".train.ipynb.99999.ipynb", ".tmpAbCdEf"]  # the last: safetensors
    for name in [*left, ".lock", "train.ipynb", "log.txt"]:
        (tmp_path / name).write_text("x")
    with cache.replacing(tmp_path / "other.ipynb", ".ipynb") as used:
        used.write_text("by papermill, which opens and closes it many times")
        cache.sweep(tmp_path)
        assert used.exists()
    assert {f.name for f in tmp_path.iterdir()} == {
        ".lock",
        "train.ipynb",
        "log.txt",
        "other.ipynb",
    }


def test_only_what_was_named_is_swept_away(tmp_path):
    for name in (".a.ipynb.1.ipynb", ".b.ipynb.1.ipynb"):
        (tmp_path / name).touch()
    cache.sweep(tmp_path, ".a.ipynb.*.ipynb")
    assert [f.name for f in tmp_path.iterdir()] == [".b.ipynb.1.ipynb"]


# --- once -----------------------------------------------------------------------------------------


def counted(value):
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.full((3,), value)}

    return make, calls


def test_tensors_are_made_once_for_the_same_sources():
    make, calls = counted(1.5)
    for _ in range(3):
        assert cache.once("name", make, "a", 2)["x"].tolist() == [1.5] * 3
    assert len(calls) == 1


def test_a_full_disk_is_named_and_leaves_nothing(folder):
    with no_file_above(50_000), pytest.raises(UserError, match="File too large.*SPCL_CACHE=DIR"):
        cache.once("name", lambda: {"x": torch.zeros(100_000)}, 1)
    assert kept(folder) == []


@pytest.mark.parametrize("other", [("a", 3), ("b", 2), ("a", 2, None), ("a", "2")])
def test_other_sources_are_another_result(other):
    first, _ = counted(1)
    second, calls = counted(2)
    cache.once("name", first, "a", 2)
    assert cache.once("name", second, *other)["x"].tolist() == [2] * 3
    assert len(calls) == 1


def test_a_changed_module_is_another_source(tmp_path):
    module = types.ModuleType("drawing")
    module.__file__ = str(tmp_path / "drawing.py")
    make, calls = counted(1)
    for text in ("side = 1", "side = 1", "side = 2"):
        (tmp_path / "drawing.py").write_text(text)
        cache.once("name", make, module)
    assert len(calls) == 2


def test_a_failure_while_making_leaves_nothing_and_the_next_call_works(folder):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.once("name", fail, 1)
    assert kept(folder) == []
    make, _ = counted(4)
    assert cache.once("name", make, 1)["x"].tolist() == [4] * 3


def test_others_wait_for_the_one_that_makes_it():
    make, calls = counted(1)

    def slow():
        time.sleep(0.2)
        return make()

    threads = [threading.Thread(target=cache.once, args=("name", slow, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# --- decoded --------------------------------------------------------------------------------------


def test_decoded_images_are_the_files_and_later_calls_read_the_cache(files, folder, monkeypatch):
    images = cache.decoded(files, 8, "split")
    assert images.shape == (5, 3, 8, 8) and images.dtype == torch.uint8
    for file, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(image, cache.read_image(file, 8))
    assert len(kept(folder)) == 1
    monkeypatch.setattr(cache, "read_image", None)  # would fail if it were called
    assert torch.equal(cache.decoded(files, 8, "split"), images)


def test_what_is_done_to_the_tensor_does_not_reach_the_cache(files):
    images = cache.decoded(files, 8, "split")
    before = images.clone()
    images.zero_()
    assert torch.equal(cache.decoded(files, 8, "split"), before)


@pytest.mark.parametrize("how", ["content", "order", "side"])
def test_a_change_of_the_source_is_noticed(files, how):
    cache.decoded(files, 8, "split")
    side = 8
    if how == "content":  # of the same size: only the time of the change differs
        size = files[2].stat().st_size
        Image.fromarray(np.full((10, 14, 3), 7, np.uint8)).save(files[2])
        os.utime(files[2], ns=(10**18, 10**18))
        assert files[2].stat().st_size == size
    elif how == "order":
        files = files[::-1]
    else:
        side = 4
    images = cache.decoded(files, side, "split")
    for file, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(image, cache.read_image(file, side))


def test_a_missing_file_is_named(files):
    files[3].unlink()
    with pytest.raises(UserError, match="3.bmp' is missing"):
        cache.decoded(files, 8, "split")


def test_a_full_disk_while_decoding_leaves_nothing_and_the_next_call_works(files, folder):
    two_images = 128 + 2 * 3 * 8 * 8
    with no_file_above(two_images), pytest.raises(UserError, match="File too large.*SPCL_CACHE"):
        cache.decoded(files, 8, "split")
    assert kept(folder) == []
    assert cache.decoded(files, 8, "split").shape == (5, 3, 8, 8)


def test_what_a_killed_process_left_is_cleared_away(files, folder):
    cache.decoded(files, 8, "split")
    (path,) = folder.glob("*.npy")
    path.rename(folder / f".{path.name}.99999.tmp")  # as if it was killed before the renaming
    cache.decoded(files, 8, "split")
    assert kept(folder) == [path.name]


# --- read_image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    file = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new("RGB", (9, 5), (200, 30, 30)).convert(mode).save(file)
    image = cache.read_image(file, 4)
    assert image.shape == (3, 4, 4) and image.dtype == np.uint8
    with Image.open(file) as plain:
        expected = plain.convert("RGB").resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(expected))


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter to the right: then the top half is
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = cache.read_image(tmp_path / "turned.jpg", 8)
    assert image[:, :3].min() > 200 and image[:, 5:].max() < 50


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 torn", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named_in_one_line(content, tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_bytes(content)
    with pytest.raises(UserError, match="broken.jpg' cannot be read") as caught:
        cache.read_image(file, 8)
    assert "\n" not in str(caught.value)
