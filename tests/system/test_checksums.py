"""Damage in a file is found, whatever byte it is in."""

import json
import os

import pytest
import torch

from spcl_lib.system import checksums
from spcl_lib.system.checksums import (
    DamagedError,
    check_sealed,
    load_saved,
    read_summed,
    seal,
    with_sum,
)
from spcl_lib.system.files import write_json


@pytest.fixture
def saved(tmp_path):
    """A file of `torch.save`, and what is in it."""
    content = {"x": torch.arange(50.0), "y": {"z": [torch.ones(3, dtype=torch.uint8), 0.5]}}
    torch.save(content, tmp_path / "file.pt")
    return tmp_path / "file.pt", content


def same(a, b):
    return torch.equal(a["x"], b["x"]) and torch.equal(a["y"]["z"][0], b["y"]["z"][0]) and (
        a["y"]["z"][1] == b["y"]["z"][1]
    )  # fmt: skip


def test_a_sound_file_is_read(saved):
    file, content = saved
    assert same(load_saved(file), content) and same(load_saved(file, mmap=True), content)


def test_a_flipped_bit_is_found_or_changes_nothing(saved):
    file, content = saved
    whole, found = file.read_bytes(), 0
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            assert same(load_saved(file), content), f"byte {at}"
        except DamagedError:
            found += 1
    assert found > 150  # of some 1,000; the others are unused bytes between the parts


@pytest.mark.parametrize("keep", [0, 1, 30, 1000, -1])
def test_a_torn_file_is_damaged(saved, keep):
    file, _ = saved
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DamagedError):
        load_saved(file)


def test_a_file_that_is_missing_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_saved(tmp_path / "file.pt")


def test_a_lack_of_memory_is_no_damage(saved, monkeypatch):
    def full(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(RuntimeError, match="allocate memory"):
        load_saved(saved[0])


# --- sealed files ---------------------------------------------------------------------------------


@pytest.fixture
def blocks(monkeypatch):
    """Blocks of 8 bytes, and two of them are compared at an opening; notes which are compared."""
    monkeypatch.setattr(checksums, "_BLOCK", 8)
    monkeypatch.setattr(checksums, "_SAMPLED", 2)
    compared, sum_of = [], checksums._sum_of

    def noted(handle, n, size):
        compared.append(n)
        return sum_of(handle, n, size)

    monkeypatch.setattr(checksums, "_sum_of", noted)
    return compared


@pytest.fixture
def sealed(tmp_path, blocks):
    file = tmp_path / "file.bin"
    file.write_bytes(bytes(range(100)))
    seal(file)
    blocks.clear()
    return file


def damage_in_secret(file, at):
    """Flips a bit and keeps the file's date, as a broken disk does."""
    before, content = file.stat().st_mtime_ns, bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)
    os.utime(file, ns=(before, before))


def test_a_sealed_file_keeps_its_content_and_is_sound(sealed, blocks):
    assert sealed.read_bytes()[:100] == bytes(range(100))
    assert check_sealed(sealed) == check_sealed(sealed, 100) == 100
    assert len(blocks) == 4  # two at each call, of 13
    assert check_sealed(sealed, completely=True) == 100 and sorted(blocks[4:]) == list(range(13))


def test_an_empty_file_can_be_sealed(tmp_path):
    (tmp_path / "file").touch()
    seal(tmp_path / "file")
    assert check_sealed(tmp_path / "file", 0) == 0


def test_any_flipped_bit_that_a_program_has_written_is_found(sealed):
    whole = sealed.read_bytes()
    for at in range(len(whole)):
        sealed.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError):
            check_sealed(sealed, 100)
    for keep in range(len(whole)):
        sealed.write_bytes(whole[:keep])
        with pytest.raises(DamagedError):
            check_sealed(sealed, 100)


def test_a_flipped_bit_in_an_untouched_file_is_found_by_the_complete_check(sealed):
    damage_in_secret(sealed, 50)
    with pytest.raises(DamagedError, match="bytes from 48 on"):
        check_sealed(sealed, completely=True)
    found = 0
    for _ in range(200):  # each call compares 2 of 13 blocks
        try:
            check_sealed(sealed)
        except DamagedError:
            found += 1
    assert 0 < found < 200


def test_a_file_that_was_only_touched_is_compared_once(sealed, blocks):
    os.utime(sealed, ns=(5, 5))
    check_sealed(sealed)
    assert len(blocks) == 13
    check_sealed(sealed)
    assert len(blocks) == 15


def test_a_file_without_a_seal_is_damaged(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 60)
    with pytest.raises(DamagedError, match="no checksum"):
        check_sealed(tmp_path / "file", 60)


# --- JSON -----------------------------------------------------------------------------------------


@pytest.fixture
def summed(tmp_path):
    """A JSON file with a checksum; the key "when" does not count."""
    content = {"a": 81.60000000000001, "b": [1, None, {"c": "\u00e9"}], "when": "today"}
    write_json(tmp_path / "x.json", with_sum(content, ["when"]))
    assert read_summed(tmp_path / "x.json", ["when"]) == content
    return tmp_path / "x.json"


@pytest.mark.parametrize(
    ("old", "new"), [("81.6", "81.4"), ("null", "0"), ('"b"', '"d"'), ('crc32": ', 'crc32": 1')]
)
def test_another_value_in_a_json_file_is_damage(summed, old, new):
    summed.write_text(summed.read_text().replace(old, new))
    with pytest.raises(ValueError):
        read_summed(summed, ["when"])


def test_a_checksum_in_another_place_is_damage(summed):
    """Two lines that were exchanged: without the checksum, it would count as an older file."""
    content = json.loads(summed.read_text())
    content["b"][2]["crc32"] = content.pop("crc32")
    summed.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not in its place"):
        read_summed(summed, ["when"])


def test_what_does_not_count_may_differ_and_an_older_file_has_no_checksum(summed):
    summed.write_text(summed.read_text().replace("today", "tomorrow"))
    assert read_summed(summed, ["when"])["when"] == "tomorrow"
    summed.write_text('{"a": 5}')
    assert read_summed(summed) == {"a": 5}


@pytest.mark.parametrize("text", ["", "5", "[1]", "[" * 50_000, '{"a":' * 50_000, "\xff"])
def test_what_is_no_dictionary_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError):
        read_summed(tmp_path / "x.json")
