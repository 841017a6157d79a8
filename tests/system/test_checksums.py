"""Damage in a file is found, whatever byte it is in."""

import pytest
import torch

from spcl_lib.system.checksums import DamagedError, load_saved


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
