"""Damage is found wherever it is; what is sound or older is read."""

import json
import random

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
from spcl_lib.system.weights import load_tensors, save_tensors


def write_saved(file):
    torch.save({"a": torch.arange(999.0), "b": [1, "text"]}, file)


def write_sealed(file):
    file.write_bytes(bytes(range(250)) * 40)
    seal(file)


def write_summed(file):
    content = {"mAP": 61.25, "classes": ["a", "b"], "time": 3}
    file.write_text(json.dumps(with_sum(content, {"time"})))


def write_tensors(file):
    save_tensors({"a": torch.arange(999.0), "n": torch.tensor(3)}, file)


KINDS = {
    "saved": (write_saved, load_saved), "sealed": (write_sealed, check_sealed),
    "summed": (write_summed, lambda file: read_summed(file, {"time"}) | {"time": 0}),
    "tensors": (write_tensors, load_tensors),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_to_the_content_stays_unseen(kind, tmp_path):
    write, read = KINDS[kind]
    file = tmp_path / "file"
    write(file)
    content, expected, rng = file.read_bytes(), str(read(file)), random.Random(5)
    damaged = [b"", content[: len(content) // 2], content[:-1], content[:9] + content[10:]]
    for at in rng.choices(range(12, len(content)), k=60):  # not in the name of JSON's checksum
        damaged.append(content[:at] + bytes([content[at] ^ 1 << rng.randrange(7)])
                       + content[at + 1 :])  # fmt: skip
    seen = 0
    for changed in damaged:
        file.write_bytes(changed)
        try:
            assert str(read(file)) == expected  # a byte that means nothing, or a time
        except AssertionError:
            raise
        except Exception:
            seen += 1
    assert seen > len(damaged) / 2


def test_the_reason_is_said(tmp_path):
    file = tmp_path / "file"
    torch.save([1], file)
    with pytest.raises(DamagedError, match="holds a list, not a dictionary"):
        load_saved(file)
    file.write_bytes(b"x" * 100)
    with pytest.raises(DamagedError, match="no checksum, or its end is missing"):
        check_sealed(file)
    write_sealed(file)
    with pytest.raises(DamagedError, match="it has 10,000 bytes; expected 7"):
        check_sealed(file, 7)
    for text in ("[1]", '{"crc32": "00000000"}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="holds a list|checksum is wrong"):
            read_summed(file)
    for read in (load_saved, check_sealed, read_summed):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "missing")


def test_of_a_large_file_some_blocks_are_compared_or_all(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", 10)
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))
    seal(file)
    compared, sum_of = [], checksums._sum_of
    monkeypatch.setattr(
        checksums, "_sum_of", lambda handle, n, size: compared.append(n) or sum_of(handle, n, size)
    )
    for _ in range(2):
        assert check_sealed(file, 1000) == 1000
    assert len(set(compared[:16])) == len(set(compared[16:])) == 16 and len(set(compared)) > 16
    check_sealed(file, completely=True)
    assert compared[32:] == list(range(100))


def test_what_varies_between_equal_runs_has_no_part_in_the_sum_and_older_files_are_read(tmp_path):
    file = tmp_path / "file"
    content = {"mAP": 61.25, "time": 3}
    sums = [with_sum(content | {"time": n}, {"time"})["crc32"] for n in (3, 4)]
    assert sums[0] == sums[1]
    file.write_text(json.dumps(content))
    assert read_summed(file) == content
