"""Fingerprints change with the code of a module and of the package modules that it imports."""

import ast
import shutil

import pytest

from spcl_lib.data import scenes
from spcl_lib.system import fingerprints
from spcl_lib.system.fingerprints import code_behind, fingerprint
from spcl_lib.system.paths import PACKAGE

USERS_OF_THE_MODEL = ("spcl_lib.methods", "spcl_lib.analysis.measurements")


@pytest.fixture
def package(tmp_path):
    """A copy of the package that a test may change."""
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=ignored)


def replace_in(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("module", USERS_OF_THE_MODEL)
def test_a_change_of_the_presence_changes_the_code_behind_its_users(module, package):
    before = code_behind(module, package)
    replace_in(package / "pooling.py", "_EPSILON = 1 / 512", "_EPSILON = 1 / 256")
    after = code_behind(module, package)
    assert after != before
    replace_in(
        package / "pooling.py",
        "return presence if seen is None else",
        "return -presence if seen is None else",
    )
    assert code_behind(module, package) not in (before, after)


@pytest.mark.parametrize("module", USERS_OF_THE_MODEL)
def test_texts_and_lines_do_not_count(module, package):
    before, file = code_behind(module, package), package / "pooling.py"
    tree = ast.parse(file.read_text())
    presence = next(n for n in ast.walk(tree) if getattr(n, "name", "") == "presence")
    for documented in (tree, presence):
        replace_in(file, ast.get_docstring(documented, clean=False), "Another text.")
    replace_in(file, "maps.flatten(2)  # (B, C, G * G)", "maps.flatten(2)  # new")
    assert code_behind(module, package) == before


def test_a_module_that_is_not_imported_does_not_count(package):
    before = code_behind("spcl_lib.data.scenes", package)
    (package / "model.py").write_text("changed = True\n")
    (package / "data" / "folder.py").write_text("changed = True\n")
    assert code_behind("spcl_lib.data.scenes", package) == before


# --- what counts as an import ---------------------------------------------------------------------


def write_package(folder, **modules):
    """A package of these modules; "room_inner" is the module inner in the room."""
    (folder / "room").mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name.replace('room_', 'room/')}.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "import pack.room.inner",
        "import pack.room.inner as other",
        "from pack.room import inner",
        "from pack.room.inner import value",
        "def work():\n    from pack.room.inner import value",
        "from pack.between import value",
    ],
)
def test_every_way_to_import_counts(text, tmp_path):
    inner, between = "value = 1", "from pack.room.inner import value"
    package = write_package(tmp_path / "pack", user=text, room_inner=inner, between=between)
    before = code_behind("pack.user", package)
    write_package(package, room_inner="value = 2")
    assert code_behind("pack.user", package) != before


def test_what_a_room_says_of_itself_counts_and_the_face_of_the_package_does_not(tmp_path):
    package = write_package(tmp_path / "pack", user="from pack.room import inner", room_inner="")
    write_package(package, __init__="", room___init__="value = 1")
    before = code_behind("pack.user", package)
    write_package(package, __init__="from pack import user")
    assert code_behind("pack.user", package) == before
    write_package(package, room___init__="value = 2")
    assert code_behind("pack.user", package) != before


def test_modules_that_import_each_other_come_to_an_end(tmp_path):
    package = write_package(tmp_path / "pack", a="import pack.b", b="import pack.a")
    first, second = code_behind("pack.a", package), code_behind("pack.b", package)
    assert first == second and "pack.a" in first


def test_packages_of_others_do_not_count(tmp_path):
    text = "import os\nfrom packages import value\nfrom torch import nn"
    package = write_package(tmp_path / "pack", user=text)
    assert code_behind("pack.user", package).count("\n") == 0


# --- fingerprint ----------------------------------------------------------------------------------


def test_a_fingerprint_has_twelve_characters_and_changes_with_every_source():
    lists = ([], [1], ["1"], [1, 2], [2, 1], [None], [1.0])
    prints = [fingerprint(sources) for sources in lists]
    assert len(set(prints)) == len(prints)
    assert {len(text) for text in prints} == {12}
    assert fingerprint([1, 2]) == fingerprint((1, 2)) == prints[3]


def test_a_module_stands_for_the_code_behind_it(monkeypatch):
    before = fingerprint([scenes, 1])
    assert fingerprint([scenes, 1]) == before
    monkeypatch.setattr(fingerprints, "code_behind", lambda name: f"new code of {name}")
    assert fingerprint([scenes, 1]) != before


def test_all_code_holds_every_module():
    text = fingerprints.all_code()
    assert all(f"{file.relative_to(PACKAGE)}: " in text for file in PACKAGE.rglob("*.py"))
