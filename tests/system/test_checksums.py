"""Damage is found wherever it is; what is sound or older is read."""

import json
import random

import pytest
import torch

from spcl_lib.system.checksums import load_saved, read_summed, with_sum
from spcl_lib.system.weights import load_tensors, save_tensors

CONTENT = {"mAP": 61.25, "classes": ["a", "b"], "time": 3}
KINDS = {
    "saved": (lambda f: torch.save({"a": torch.arange(999.0), "b": [1, "text"]}, f), load_saved),
    "summed": (lambda f: f.write_text(json.dumps(with_sum(CONTENT, {"time"}))),
               lambda f: read_summed(f, {"time"}) | {"time": 0}),
    "tensors": (lambda f: save_tensors({"a": torch.arange(999.0), "n": torch.tensor(3)}, f),
                load_tensors),
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


def test_what_varies_between_equal_runs_has_no_part_in_the_sum_and_older_files_are_read(tmp_path):
    file = tmp_path / "file"
    sums = [with_sum(CONTENT | {"time": n}, {"time"})["crc32"] for n in (3, 4)]
    assert sums[0] == sums[1]
    file.write_text(json.dumps(CONTENT))
    assert read_summed(file) == CONTENT
