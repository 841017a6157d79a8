"""C code is compiled once; a machine that cannot compile it is told apart, not stopped."""

import stat

import pytest

from spcl_lib.system import compiled

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C file; the cache is empty, and nothing is remembered from other tests."""
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "answer.c"
    file.write_text(SOURCE)
    compiled.load_compiled.cache_clear()
    yield file
    compiled.load_compiled.cache_clear()


def script(tmp_path, monkeypatch, text):
    """Makes a shell script the only compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "cc"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: str(file) if name == "cc" else None)


def test_a_library_is_compiled_once_and_again_for_another_source(source, tmp_path):
    library = compiled.load_compiled(source)
    if library is None:
        pytest.skip("this machine has no C compiler")
    assert library.answer() == 42
    (made,) = (tmp_path / "cache" / "compiled").glob("*.so")
    before = made.stat().st_mtime_ns
    compiled.load_compiled.cache_clear()
    assert compiled.load_compiled(source).answer() == 42 and made.stat().st_mtime_ns == before
    source.write_text(SOURCE.replace("42", "43"))
    compiled.load_compiled.cache_clear()
    assert compiled.load_compiled(source).answer() == 43
    assert len(list(made.parent.glob("*.so"))) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "unnoted"])
def test_a_damaged_library_is_compiled_again(damage, source, tmp_path):
    if compiled.load_compiled(source) is None:
        pytest.skip("this machine has no C compiler")
    (made,) = (tmp_path / "cache" / "compiled").glob("*.so")
    whole = made.read_bytes()
    made.unlink()  # the loaded one stays as it is
    at = whole.index(b"\x2a\x00\x00\x00")  # 42, in the code
    damaged = whole[:5000] if damage == "cut" else whole[:at] + b"\x2b" + whole[at + 1 :]
    made.write_bytes(whole if damage == "unnoted" else damaged)
    if damage == "unnoted":
        made.with_suffix(".sha256").unlink()
    compiled.load_compiled.cache_clear()
    compiled.load_compiled(source)
    assert made.read_bytes() == whole and made.with_suffix(".sha256").exists()


def test_without_a_compiler_there_is_no_library(source, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    assert compiled.load_compiled(source) is None


@pytest.mark.parametrize("text", ["exit 1", "echo nonsense > $last", "exec /does/not/exist"])
def test_a_compiler_that_fails_or_writes_nonsense_counts_as_missing(
    source, tmp_path, monkeypatch, text
):
    last = "for last; do :; done\n"  # the last argument is the file to write
    script(tmp_path, monkeypatch, last + text)
    assert compiled.load_compiled(source) is None
    assert not list((tmp_path / "cache" / "compiled").iterdir())


def test_a_cache_that_cannot_be_written_counts_as_no_compiler(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "file"))
    assert compiled.load_compiled(source) is None
