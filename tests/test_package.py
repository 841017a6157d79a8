"""The package as a wheel gives it: complete, and of use in an empty folder without a checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from small_folder import set_options

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = PROJECT / "notebooks"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy, because setuptools writes into the folder that it builds."""
    copy, out = (tmp_path_factory.mktemp(name) for name in ("project", "wheel"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    for name in ("spcl_lib", "notebooks"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("spcl-*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder of packages with the wheel's content."""
    folder = tmp_path_factory.mktemp("site")
    wheel.extractall(folder)
    return folder


@pytest.fixture
def installed(site, shared_cache, tmp_path):
    """Calls `python -m spcl_lib` of the wheel in an empty folder, at home in another."""
    (tmp_path / "empty").mkdir()
    own = {"PYTHONPATH": str(site), "SPCL_CACHE": str(shared_cache)}
    own |= dict.fromkeys(("HOME", "USERPROFILE"), str(tmp_path / "home"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SPCL_")}

    def call(*arguments):
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=tmp_path / "empty", env=kept | own, capture_output=True, text=True
        )

    return call


def test_the_wheel_holds_every_module_notebook_and_reference(wheel):
    kinds = (".py", ".md", ".js", ".css", ".html")
    package = [f for f in (PROJECT / "spcl_lib").rglob("*") if f.suffix in kinds]
    wanted = {f.relative_to(PROJECT).as_posix() for f in package}
    wanted |= {f"spcl_lib/{f.relative_to(PROJECT).as_posix()}" for f in files_of(NOTEBOOKS)}
    assert wanted == {n for n in wheel.namelist() if n.startswith("spcl_lib/")}


def test_it_has_one_version(wheel, installed):
    (file,) = (n for n in wheel.namelist() if n.endswith("/METADATA"))
    lines = wheel.read(file).decode().splitlines()
    version = next(line for line in lines if line.startswith("Version: ")).split()[1]
    assert f"version: {version}\n" in (PROJECT / "CITATION.cff").read_text()
    assert f"\n## {version}" in (PROJECT / "spcl_lib" / "CHANGELOG.md").read_text()
    said = installed("spcl_lib", "--version")
    assert said.returncode == 0 and said.stdout.startswith(f"spcl {version}, torch "), said.stderr


def test_a_wheel_runs_and_keeps_its_results_in_the_home_folder(installed, site, tmp_path, tiny):
    before = files_of(site)
    run = ("run", "--dataset", "scenes", "--profile", "smoke", "--method", "an")
    said = installed("spcl_lib", *run, *set_options(tiny))
    assert said.returncode == 0, said.stderr
    (file,) = (tmp_path / "home" / "spcl" / "results").glob("*/*/metrics.json")
    assert json.loads(file.read_text())["machine"]["commit"] is None
    assert files_of(site) == before


def files_of(folder):
    return {f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"}
