"""Every module belongs to a room, and imports go only from a room to the rooms below it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "spcl_lib"
# A module may import its own room and those below it; the lesson and the data know only the ground.
BELOW = {
    "front": {"reproduce", "viewer", "analysis", "runs", "lesson", "data", "system"},
    "reproduce": {"viewer", "analysis", "runs", "lesson", "data", "system"},
    "viewer": {"analysis", "runs", "lesson", "data", "system"},
    "analysis": {"runs", "lesson", "data", "system"},
    "runs": {"lesson", "data", "system"},
    "lesson": {"system"},
    "data": {"system"},
    "system": set(),
}
FRONT = ((), ("__main__",))
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts):
    """The room of a module, named by its parts below the package."""
    if parts in FRONT:
        return "front"
    return parts[0] if parts[0] in BELOW else "lesson"  # losses/ is part of the lesson


def parts_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(parts):
    place = PACKAGE.joinpath(*parts)
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imports_of(file):
    """Every module of the package that a file imports, also in functions and for type checkers."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == PACKAGE.name:
                parts = tuple(parts)
                yield parts if is_module(parts) else parts[:-1]


@pytest.mark.parametrize("file", FILES, ids=[".".join(parts_of(f)) or "face" for f in FILES])
def test_imports_run_one_way(file):
    room = room_of(parts_of(file))
    for parts in imports_of(file):
        other = room_of(parts)
        assert other == room or other in BELOW[room], f"{room} imports {'.'.join(parts)} ({other})"


def test_every_module_can_be_imported_where_there_is_no_posix():
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            assert not {"fcntl", "resource", "pwd", "termios"} & set(names), file


def test_no_modules_import_each_other_in_a_circle():
    graph = {parts_of(f): set(imports_of(f)) - {parts_of(f)} for f in FILES}
    graph = {k: v for k, v in graph.items() if k not in FRONT}
    while leaves := {k for k, v in graph.items() if not v & graph.keys()}:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"among these is a circle: {sorted('.'.join(k) for k in graph)}"


def test_the_face_loads_the_lesson_and_no_other_room():
    code = (
        "import sys, torch, safetensors.torch; before = set(sys.modules); "
        "from spcl_lib import Method; "
        "print(*set(sys.modules) - before)"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    ).stdout.split()
    ours = [tuple(name.split(".")[1:]) for name in loaded if name.split(".")[0] == "spcl_lib"]
    assert {room_of(parts) for parts in ours} == {"front", "lesson", "system"}
    for name in ("tqdm", "PIL", "torchvision", "matplotlib", "filelock"):
        assert name not in loaded, f"beside torch, the face loads {name}"


def test_the_page_that_draws_the_rooms_is_short_and_names_all_of_them():
    text = (PACKAGE / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    rooms = [f.name for f in PACKAGE.iterdir() if (f / "__init__.py").is_file()]
    assert all(f"{room}/" in text for room in rooms)
    front = [f.name for f in PACKAGE.glob("*.py") if f.name != "__init__.py"]
    assert all(name in text for name in front)
