"""A bank that does not fit into memory or on disk is refused; the message says what would fit."""

import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from spcl_lib import HeatmapBank, UserError, Views
from spcl_lib.methods import Method, MethodSettings, place_of_averages
from spcl_lib.system import memory


def refusal(make, *arguments, **options):
    with pytest.raises(UserError) as caught:
        make(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def number(pattern, text):
    return int(re.search(pattern, text)[1].replace(",", ""))


def test_a_bank_that_no_machine_holds_is_refused_without_touching_anything(tmp_path):
    assert "1,961,960.0 GB of memory" in refusal(HeatmapBank, 10**10, 1000, 14)
    file = tmp_path / "new" / "bank.bin"
    said = refusal(HeatmapBank, 10**10, 1000, 14, path=file)
    assert f"GB of disk at '{file}'" in said and "path)" not in said
    assert not file.parent.exists()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_what_the_refusal_says_would_fit_does_fit_and_one_more_does_not(dtype, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3_000_000)
    said = refusal(HeatmapBank, 1000, 20, 14, dtype=dtype)
    images, size = number(r"at most ([\d,]+) images", said), number(r"at most (\d+) cells", said)
    assert "HeatmapBank's path" in said
    HeatmapBank(images, 20, 14, dtype=dtype)
    HeatmapBank(1000, 20, size, dtype=dtype)
    refusal(HeatmapBank, images + 1, 20, 14, dtype=dtype)
    refusal(HeatmapBank, 1000, 20, size + 1, dtype=dtype)


def test_a_file_counts_its_own_place_and_not_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 8 * 8)  # for the seen cells
    assert HeatmapBank(10, 4, 8, path=tmp_path / "bank.bin").heatmaps.shape == (10, 4, 8, 8)
    file = tmp_path / "full.bin"
    file.write_bytes(bytes(2**20))
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: SimpleNamespace(free=5))
    assert memory.available_disk(tmp_path / "not" / "there") == 5
    assert memory.available_disk(file) >= 5 + 2**20  # it is overwritten


@pytest.mark.parametrize("name", ["cl", "scl", "en", "en_scl"])
def test_a_method_needs_its_averages_once_for_a_checkpoint_holds_no_copy(name, monkeypatch):
    side = 14 if "scl" in name else 1
    work = 24 * 20 * 1000 if name.startswith("en") else 0
    needed = 1000 * (20 + 1) * side**2 + work
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    said = refusal(Method, name, 1000, 20, MethodSettings(bank_size=14))
    assert ("bank_size" in said) == (side > 1)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    Method(name, 1000, 20, MethodSettings(bank_size=14))


@pytest.mark.parametrize("name", ["scl", "en_scl"])
def test_averages_that_do_not_fit_into_memory_go_into_a_file(name, tmp_path, monkeypatch):
    file, heatmaps = tmp_path / "heatmaps.bin", 1000 * 20 * 14**2
    work = (24 * 20 * 1000 if name.startswith("en") else 0) + 1000 * 14**2  # and the seen cells
    disk = 4 * heatmaps  # the file, two checkpoints and one that is written
    monkeypatch.setattr(memory, "available_memory", lambda: work)
    monkeypatch.setattr(memory, "available_disk", lambda path: disk)
    settings = MethodSettings(bank_size=14)
    assert place_of_averages(name, 1000, 20, settings, file) == file
    method = Method(name, 1000, 20, settings, file=file)
    assert file.stat().st_size == heatmaps
    method.bank.update(torch.tensor([3]), Views.whole(1), torch.ones(1, 20, 14, 14))
    assert file.read_bytes()[3 * 20 * 14**2] == 255
    monkeypatch.setattr(memory, "available_disk", lambda path: disk - 1)
    said = refusal(Method, name, 1000, 20, settings, file=file)
    assert f"GB of disk at '{file}' (for 4 copies: checkpoints and results)" in said
    monkeypatch.setattr(memory, "available_disk", lambda path: disk)
    monkeypatch.setattr(memory, "available_memory", lambda: work - 1)
    assert "GB of memory" in refusal(Method, name, 1000, 20, settings, file=file)


def test_averages_above_a_limit_go_into_a_file(tmp_path, monkeypatch):
    file, size = tmp_path / "heatmaps.bin", 1000 * (20 + 1) * MethodSettings().bank_size ** 2
    for limit, place in (("", None), (f"{size / 1e9}", None), (f"{(size - 1) / 1e9}", file)):
        monkeypatch.setenv("SPCL_BANK_GB", limit)
        assert place_of_averages("scl", 1000, 20, MethodSettings(), file) == place
        assert place_of_averages("an", 10**9, 1000, MethodSettings(), file) is None
    monkeypatch.setenv("SPCL_BANK_GB", "much")
    with pytest.raises(UserError, match="SPCL_BANK_GB must be .* got 'much'"):
        place_of_averages("scl", 1000, 20, MethodSettings())


@pytest.mark.parametrize("name", ["an", "full"])
def test_methods_without_averages_need_nothing(name, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 0)
    assert Method(name, 10**9, 1000).bank is None


# --- what is left ---------------------------------------------------------------------------------


def test_memory_that_is_left_is_less_than_the_machine_has():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < memory.available_memory() <= total


def test_windows_tells_neither_memory_nor_blocks(tmp_path, monkeypatch):
    """There `os` has no sysconf, and a file's status no number of blocks."""
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_of_containers", lambda: [])
    assert memory.available_memory() == sys.maxsize
    assert memory._held(SimpleNamespace(st_size=17)) == 17


def test_the_limit_of_a_container_counts_less_what_it_holds(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\nfile 3000000\n")
    assert memory._left_below(tmp_path) == [3_500_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._left_below(tmp_path) == []
    assert memory._left_below(tmp_path / "none") == []
    monkeypatch.setattr(memory, "_of_containers", lambda: [3_500_000])
    assert memory.available_memory() == 3_500_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
@pytest.mark.parametrize("keeps", [True, False])
def test_a_step_uses_the_memory_that_the_last_one_freed(keeps):
    code = f"""
import resource
from spcl_lib.system.memory import keep_freed_memory
if {keeps}:
    keep_freed_memory()
import torch
def touched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB: {{1 << 14}} pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(touched() for _ in range(8)))
"""
    # Without the large pages, which some systems never give.
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 2000) is keeps
