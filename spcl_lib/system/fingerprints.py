"""Fingerprints: short texts that identify the sources of a cached result.

The name of a cached file holds a fingerprint of everything that the file depends on, code
included. When any of this changes, the file is made again.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from spcl_lib.system.paths import PACKAGE


def fingerprint(sources: Sequence[object]) -> str:
    """Twelve characters that change when any source changes.

    A module of this package stands for its own code and for the code of all package modules that
    it imports, directly or indirectly. Comments and docstrings do not count.
    """
    digest = hashlib.sha256()
    for source in sources:
        is_module = isinstance(source, ModuleType)
        digest.update((code_behind(source.__name__) if is_module else repr(source)).encode())
    return digest.hexdigest()[:12]


def all_code() -> str:
    """The code of the whole package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return "\n".join(f"{f.relative_to(PACKAGE)}: {f.read_text()}" for f in files)


def code_behind(module: str, package: Path = PACKAGE) -> str:
    """The code of a module and of all package modules that it imports, in a fixed order.

    Args:
        module: its full name, such as "spcl_lib.data.scenes".
        package: folder of the package.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _file_of(name, package)
        if file is not None and name not in found:
            tree = ast.parse(file.read_bytes())
            waiting += _imports(tree, package.name)
            found[name] = _without_texts(tree)
    return "\n".join(f"{name}: {code}" for name, code in sorted(found.items()))


def _file_of(module: str, package: Path) -> Path | None:
    """The file of a module of the package; None for other names and for the package itself."""
    place = package.joinpath(*module.split(".")[1:])
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((f for f in files if f.is_file()), None) if place != package else None


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names of imports that may be modules of the package, also imports in functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{package}."))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_texts(tree: ast.Module) -> str:
    """The code as text, without comments, docstrings and line numbers."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
