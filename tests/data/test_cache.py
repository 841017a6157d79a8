"""Cached files are made once, written completely, and made again when their source changes."""

import errno
import io
import json
import os
import shutil
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import no_file_above

from spcl_lib import UserError
from spcl_lib.data import cache, scenes
from spcl_lib.data.images import LazyImages, read_image, try_image
from spcl_lib.system import fingerprints


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


# --- make_once ------------------------------------------------------------------------------------


def counted(value):
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.full((3,), value)}

    return make, calls


def test_tensors_are_made_once_for_the_same_sources():
    make, calls = counted(1.5)
    for _ in range(3):
        assert cache.make_once("name", make, "a", 2)["x"].tolist() == [1.5] * 3
    assert len(calls) == 1


def test_a_full_disk_is_named_and_leaves_nothing(folder):
    with no_file_above(50_000), pytest.raises(UserError, match="File too large.*SPCL_CACHE=DIR"):
        cache.make_once("name", lambda: {"x": torch.zeros(100_000)}, 1)
    assert kept(folder) == []


@pytest.mark.parametrize("other", [("a", 3), ("b", 2), ("a", 2, None), ("a", "2")])
def test_other_sources_are_another_result(other):
    first, _ = counted(1)
    second, calls = counted(2)
    cache.make_once("name", first, "a", 2)
    assert cache.make_once("name", second, *other)["x"].tolist() == [2] * 3
    assert len(calls) == 1


def test_a_module_whose_code_changed_is_another_source(monkeypatch):
    make, calls = counted(1)
    for code in ("side = 1", "side = 1", "side = 2"):
        monkeypatch.setattr(fingerprints, "code_behind", lambda name, code=code: f"{name}: {code}")
        cache.make_once("name", make, scenes)
    assert len(calls) == 2


def test_a_failure_while_making_leaves_nothing_and_the_next_call_works(folder):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.make_once("name", fail, 1)
    assert kept(folder) == []
    make, _ = counted(4)
    assert cache.make_once("name", make, 1)["x"].tolist() == [4] * 3


def test_others_wait_for_the_one_that_makes_it():
    make, calls = counted(1)

    def slow():
        time.sleep(0.2)
        return make()

    threads = [threading.Thread(target=cache.make_once, args=("name", slow, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# --- damaged files of the cache -------------------------------------------------------------------

DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "random": lambda content: bytes(range(256)) * (len(content) // 256 + 1),
    "flipped": lambda content: content[:200] + bytes([content[200] ^ 8]) + content[201:],
    "flipped late": lambda content: content[:-40] + bytes([content[-40] ^ 8]) + content[-39:],
    "another": lambda content: b"[1, 2]",
}


def damage(file, how):
    file.write_bytes(DAMAGES[how](file.read_bytes()))


def said_of(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_tensors_are_made_again_with_a_word(how, folder, capsys):
    make, calls = counted(2.5)
    cache.make_once("name", make, 1)
    (file,) = folder.glob("*.pt")
    damage(file, how)
    for _ in range(2):
        assert cache.make_once("name", make, 1)["x"].tolist() == [2.5] * 3
    assert len(calls) == 2
    (said,) = said_of(capsys)
    assert f"'{file}'" in said and "made again" in said


@pytest.mark.parametrize("kind", ["npy", "json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_images_of_the_cache_are_decoded_again_with_a_word(
    how, kind, files, folder, capsys, tries
):
    whole = break_three(files)
    cache.decode_images(files, 16, "split", "skip")
    (file,) = folder.glob(f"*.{kind}")
    content = file.read_bytes()
    if kind == "json" and how.startswith("flipped"):  # another image would be left out
        damaged = content.replace(b'"0": ', b'"1": ')
        assert damaged != content
        file.write_bytes(damaged)
    else:
        damage(file, how)
    for _ in range(2):
        images, numbers = cache.decode_images(files, 16, "split", "skip")
        np.testing.assert_array_equal(images, squares_of([files[i] for i in whole], 16))
        assert numbers.tolist() == whole
    assert len(tries) == 10
    (said,) = said_of(capsys)
    assert "made again" in said


def test_a_damaged_record_of_images_that_are_not_cached_is_made_again(
    files, folder, monkeypatch, tries
):
    monkeypatch.setenv("SPCL_CACHE_GB", "0")
    cache.decode_images(files, 8, "split")
    (record,) = folder.glob("*.json")
    record.write_text("{")
    for _ in range(2):
        cache.decode_images(files, 8, "split")
    assert len(tries) == 10


def test_a_cache_of_before_there_were_checksums_is_used(files, folder, tries, capsys):
    whole = break_three(files)
    images = cache.decode_images(files, 8, "split", "skip")[0].clone()
    (file,), (record,) = folder.glob("*.npy"), folder.glob("*.json")
    np.save(file, images.numpy())
    record.write_text(json.dumps(json.loads(record.read_text())["flaws"]))
    again, numbers = cache.decode_images(files, 8, "split", "skip")
    assert torch.equal(again, images) and numbers.tolist() == whole and len(tries) == 5
    assert said_of(capsys) == []
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(cache.decode_images(files, 8, "split", "skip")[0], images)
    assert len(tries) == 10 and len(said_of(capsys)) == 1


def test_the_complete_check_removes_what_is_damaged_and_keeps_the_rest(files, folder, capsys):
    cache.decode_images(files, 8, "sound")
    cache.decode_images(files, 8, "damaged")
    cache.make_once("name", counted(1)[0], 1)
    (folder / "features-old.bin").write_bytes(b"x" * 10)
    (damaged,) = folder.glob("damaged-*.npy")
    before = damaged.stat().st_mtime_ns
    damage(damaged, "flipped")
    os.utime(damaged, ns=(before, before))
    others = set(kept(folder)) - {damaged.name}
    cache.check_cache()
    assert set(kept(folder)) == others
    out = capsys.readouterr().out
    assert f"'{damaged}' is damaged" in out
    assert f"the cache '{folder}': 4 files" in out
    assert "damaged: 1; too old to have checksums: 1" in out
    images, _ = cache.decode_images(files, 8, "damaged")
    np.testing.assert_array_equal(images, squares_of(files, 8))


# --- decode_images --------------------------------------------------------------------------------


def squares_of(files, side):
    return np.stack([read_image(file, side) for file in files])


def break_three(files):
    """Three of the five files: missing, empty, no image. Gives the numbers of the others."""
    files[0].unlink()
    files[2].write_bytes(b"")
    files[3].write_text("404: not found")
    return [1, 4]


@pytest.fixture
def tries(monkeypatch):
    """The files that were tried, in no order."""
    tried = []

    def noted(file, side):
        tried.append(file)
        return try_image(file, side)

    monkeypatch.setattr(cache, "try_image", noted)
    return tried


def test_decoded_images_are_the_files_and_later_calls_read_the_cache(files, folder, tries):
    images, all_of_them = cache.decode_images(files, 8, "split")
    assert images.shape == (5, 3, 8, 8) and images.dtype == torch.uint8
    assert all_of_them.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(images, squares_of(files, 8))
    assert [name.rpartition(".")[2] for name in kept(folder)] == ["json", "npy"]
    assert sorted(tries) == files
    assert torch.equal(cache.decode_images(files, 8, "split")[0], images)
    assert len(tries) == 5


def test_order_is_kept_however_long_each_image_takes(files, monkeypatch):
    many = files * 20

    def slow(file, side):
        time.sleep(0.02 if file == files[0] else 0)
        return try_image(file, side)

    monkeypatch.setattr(cache, "try_image", slow)
    images, _ = cache.decode_images(many, 4, "split")
    np.testing.assert_array_equal(images, squares_of(many, 4))


def test_what_is_done_to_the_tensor_does_not_reach_the_cache(files):
    images, _ = cache.decode_images(files, 8, "split")
    before = images.clone()
    images.zero_()
    assert torch.equal(cache.decode_images(files, 8, "split")[0], before)


@pytest.mark.parametrize("how", ["content", "order", "side"])
def test_a_change_of_the_source_is_noticed(files, how):
    cache.decode_images(files, 8, "split")
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
    images, _ = cache.decode_images(files, side, "split")
    np.testing.assert_array_equal(images, squares_of(files, side))


def test_an_old_version_is_removed_and_other_splits_sides_and_folders_stay(files, folder, tmp_path):
    cache.decode_images(files, 8, "split")
    (old,) = folder.glob("*.npy")
    (tmp_path / "elsewhere").mkdir()
    copies = [Path(shutil.copy2(file, tmp_path / "elsewhere")) for file in files]
    for arguments in ((files, 4, "split"), (files, 8, "split-val"), (copies, 8, "split")):
        cache.decode_images(*arguments)
    others = set(kept(folder)) - {old.name, old.with_suffix(".json").name}
    assert len(others) == 6
    os.utime(files[0], ns=(10**18, 10**18))
    cache.decode_images(files, 8, "split")
    assert others < set(kept(folder)) and len(kept(folder)) == 8
    assert not old.exists()


@pytest.mark.parametrize("version", [None, "a0123456789b", "70123456789b"])
def test_what_a_killed_process_left_is_cleared_away(version, files, folder):
    cache.decode_images(files, 8, "split")
    (path,) = folder.glob("*.npy")
    own = path.name.split(".")[1]
    left = path.name.replace(own, version or own)  # perhaps of other files or of other code
    path.rename(folder / f".{left}.99999.tmp")  # as if it was killed before the renaming
    cache.decode_images(files, 8, "split")
    assert kept(folder) == [path.with_suffix(".json").name, path.name]


def test_a_change_of_the_code_that_decodes_makes_the_images_anew(files, tries, monkeypatch):
    cache.decode_images(files, 8, "split")
    monkeypatch.setattr(fingerprints, "code_behind", lambda name: f"another {name}")
    cache.decode_images(files, 8, "split")
    assert len(tries) == 10


def test_no_files_are_a_clear_error():
    with pytest.raises(UserError, match="split has no images"):
        cache.decode_images([], 8, "split")


# --- damaged images -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["20", "0"])
def test_all_damaged_images_are_in_one_message_that_says_how_to_go_on(
    files, monkeypatch, limit, tries
):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    break_three(files)
    for _ in range(2):  # the second start knows it without trying again
        with pytest.raises(UserError) as caught:
            cache.decode_images(files, 8, "split")
        message = str(caught.value)
        assert message.startswith("3 of 5 images of split are damaged: ")
        assert f"'{files[0]}' is missing, " in message
        assert f"'{files[2]}' cannot be read: it is empty, " in message
        assert f"'{files[3]}' cannot be read: it is no image" in message
        assert "--set damaged=skip" in message and "\n" not in message
        assert len(tries) == 5


@pytest.mark.parametrize("limit", ["20", "0"])
def test_damaged_images_are_left_out_counted_and_remembered(
    files, monkeypatch, limit, tries, capsys
):
    monkeypatch.setenv("SPCL_CACHE_GB", limit)
    whole = break_three(files)
    for _ in range(2):
        images, numbers = cache.decode_images(files, 8, "split", "skip")
        assert numbers.tolist() == whole
        np.testing.assert_array_equal(images[:], squares_of([files[i] for i in whole], 8))
        assert len(tries) == 5
        said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
        assert said == [
            "spcl: left out 3 of 5 images of split that cannot be read: 0.bmp, 2.bmp, 3.bmp"
        ]


def test_after_stopping_skipping_starts_at_once_and_so_does_the_reverse(files, tries):
    whole = break_three(files)
    with pytest.raises(UserError):
        cache.decode_images(files, 8, "split", "stop")
    assert cache.decode_images(files, 8, "split", "skip")[1].tolist() == whole
    with pytest.raises(UserError):
        cache.decode_images(files, 8, "split", "stop")
    assert len(tries) == 5


def test_a_message_names_five_files_and_counts_all(files, tmp_path, capsys):
    gone = [tmp_path / f"gone {i}.jpg" for i in range(1200)]
    with pytest.raises(UserError) as caught:
        cache.decode_images(files + gone, 8, "split")
    assert "1,200 of 1,205 images" in str(caught.value)
    assert str(caught.value).count(".jpg") == 5 and "gone 4.jpg' is missing, ..." in str(caught)
    cache.decode_images(files + gone, 8, "split", "skip")
    assert "gone 4.jpg, ...\n" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", ["stop", "skip"])
def test_a_split_without_an_intact_image_is_an_error(files, damaged):
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match="5 of 5 images") as caught:
        cache.decode_images(files, 8, "split", damaged)
    assert ("damaged=skip" in str(caught.value)) == (damaged == "stop")


def test_a_mended_file_is_noticed(files):
    whole = files[3].read_bytes()
    break_three(files)
    assert len(cache.decode_images(files, 8, "split", "skip")[0]) == 2
    files[0].write_bytes(whole)
    assert cache.decode_images(files, 8, "split", "skip")[1].tolist() == [0, 1, 4]
    files[3].write_bytes(whole)
    assert cache.decode_images(files, 8, "split", "skip")[1].tolist() == [0, 1, 3, 4]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_damaged_until_it_may(files):
    files[1].chmod(0)
    with pytest.raises(UserError, match="1.bmp' cannot be read: Permission denied"):
        cache.decode_images(files, 8, "split")
    files[1].chmod(0o600)
    assert len(cache.decode_images(files, 8, "split")[0]) == 5


# --- too large, or a full disk --------------------------------------------------------------------


def test_above_the_limit_images_are_read_from_their_files(files, folder, monkeypatch, capsys):
    monkeypatch.setenv("SPCL_CACHE_GB", "9.5e-7")  # five images of 8 x 8 pixels are 960 bytes
    images, _ = cache.decode_images(files, 8, "split")
    assert isinstance(images, LazyImages) and images.shape == (5, 3, 8, 8)
    np.testing.assert_array_equal(images[:], squares_of(files, 8))
    assert not list(folder.glob("*.npy"))
    (said,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spcl")]
    assert "split" in said and "0.00096 MB" in said and "SPCL_CACHE_GB=9.5e-07" in said
    monkeypatch.setenv("SPCL_CACHE_GB", "9.7e-7")
    assert isinstance(cache.decode_images(files, 8, "split")[0], torch.Tensor)


@pytest.mark.parametrize("value", ["much", "-1", "nan"])
def test_a_limit_that_is_no_size_is_named(files, monkeypatch, value):
    monkeypatch.setenv("SPCL_CACHE_GB", value)
    with pytest.raises(UserError, match=f"SPCL_CACHE_GB must be .* got '{value}'"):
        cache.decode_images(files, 8, "split")


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


@pytest.mark.parametrize("full_after", [1, 3, 6])  # the header, some images, all of them
def test_a_disk_that_fills_up_while_decoding_is_named_and_nothing_is_left(
    files, folder, monkeypatch, full_after
):
    class Full(io.FileIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            if self.writes > full_after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def opened(path, mode="r"):
        return Full(path, mode) if mode == "wb" else open(path, mode)

    monkeypatch.setattr(cache, "open", opened, raising=False)
    with pytest.raises(UserError, match="No space left on device.*SPCL_CACHE") as caught:
        cache.decode_images(files, 8, "split")
    assert str(folder) in str(caught.value)
    assert kept(folder) == []
    monkeypatch.delattr(cache, "open")
    assert cache.decode_images(files, 8, "split")[0].shape == (5, 3, 8, 8)


def test_space_for_the_images_is_not_asked_for_twice(files, monkeypatch):
    """After the images are written the disk may have less space left than they take."""
    free = iter([960, 0, 0, 0])
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=next(free))
    )
    assert len(cache.decode_images(files, 8, "split")[0]) == 5


def test_images_that_are_not_cached_need_no_space(files, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE_GB", "0")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=0))
    assert len(cache.decode_images(files, 8, "split")[0]) == 5


def test_other_errors_of_the_disk_are_not_called_a_full_disk(files, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cache.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        cache.decode_images(files, 8, "split")
