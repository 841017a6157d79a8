"""reproduce.sh: what it sets up, when it does so, and which arguments it passes on.

Every test works on a copy of the script in a folder of its own. The PATH holds only a shim for
Python and the few tools that the script needs. So no test uses the network or touches a real
environment.
"""

import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "bash env awk cat cksum cp dirname mkdir rm sed tail tr wc".split()

# One shim for all interpreters: it writes down its arguments, and pretends to install and to make
# environments (by copying itself into them).
SHIM = """#!/usr/bin/env bash
printf '%s\\n' "${0##*/} $*" >>"$SHIM_LOG"
case "$*" in
  "- venv ensurepip") [[ ${0##*/} != "${SHIM_TOO_OLD:-}" ]] ;;
  "- "*) [[ -n ${SHIM_COMPLETE:-} ]] || { echo "packages that it lacks: torch" >&2; exit 1; } ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*" -r "*)
    if [[ -n ${SHIM_PIP_FAILS:-} ]]; then echo "no such wheel"; exit 1; fi
    cp "${@: -1}" "$SHIM_LOG.pins" ;;
  "-P -m spcl_lib "*) exit "${SHIM_STATUS:-0}" ;;
esac
"""


@dataclass
class Box:
    """A copy of the project's top level, and a PATH of its own."""

    project: Path
    path: Path
    log: Path

    def run(self, *args, **env):
        """Runs the script in another folder than the project's."""
        home = self.path.parent
        env = {"PATH": str(self.path), "HOME": str(home), "SHIM_LOG": str(self.log)} | env
        command = [str(self.project / "reproduce.sh"), *args]
        return subprocess.run(
            command, cwd=home, env=env, capture_output=True, text=True, timeout=60
        )

    def calls(self):
        """What the shims did since the last time, but for the questions that they were asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if " - " not in line]


@pytest.fixture(params=["a project", "R&D"])
def box(request, tmp_path):
    project, path = tmp_path / request.param, tmp_path / "bin"
    project.mkdir()
    path.mkdir()
    for name in ("reproduce.sh", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    for name in TOOLS:
        (path / name).symlink_to(shutil.which(name))
    (path / "python3").write_text(SHIM)
    (path / "python3").chmod(0o755)
    return Box(project, path, tmp_path / "log")


def pins():
    """The pip section of environment.yml, read another way than the script's."""
    section = (ROOT / "environment.yml").read_text().split("- pip:\n")[1]
    return re.findall(r"^ +- ([^ #\n]+)", section, flags=re.MULTILINE)


def test_it_sets_up_once_with_the_pins_and_passes_the_arguments_on(box):
    done = box.run("--dataset", "scenes", "--set", "note=two words")
    assert done.returncode == 0, done.stderr
    venv, pip, editable, run = box.calls()
    assert venv == f"python3 -m venv {box.project}/.venv"
    assert pip.startswith("python -m pip install") and pip.endswith("/.venv/pins.txt")
    assert Path(f"{box.log}.pins").read_text().split("\n")[:-1] == pins()
    assert editable.endswith(f"-e {box.project}")
    assert run == "python -P -m spcl_lib reproduce --dataset scenes --set note=two words"
    assert box.run("--list").returncode == 0
    assert box.calls() == ["python -P -m spcl_lib reproduce --list"]
    with open(box.project / "environment.yml", "a") as file:
        file.write("      - another==1\n")
    box.run()
    assert len(box.calls()) == 3  # the packages again, into the same environment


def test_the_exit_status_is_that_of_the_program(box):
    assert box.run(SHIM_STATUS="3").returncode == 3


def test_a_failed_installation_is_shown_and_tried_again(box):
    failed = box.run(SHIM_PIP_FAILS="1")
    assert failed.returncode == 1 and "no such wheel" in failed.stderr
    assert str(box.project / ".setup.log") in failed.stderr
    assert not any("spcl_lib" in call for call in box.calls())
    assert box.run().returncode == 0 and any("reproduce" in call for call in box.calls())


def test_an_environment_of_somebody_else_is_left_alone(box):
    (box.project / ".venv").mkdir()
    refused = box.run()
    assert refused.returncode == 1 and "SPCL_PYTHON=" in refused.stderr


def test_an_active_environment_with_all_packages_is_used_as_it_is(box):
    (box.path / "python").symlink_to(box.path / "python3")
    active = {"CONDA_PREFIX": "/some/where"}
    assert box.run(**active, SHIM_COMPLETE="1").returncode == 0
    assert box.calls() == ["python -P -m spcl_lib reproduce"]
    assert box.run(**active).returncode == 0  # it lacks some: .venv is made
    assert len(box.calls()) == 4


def test_an_interpreter_can_be_named(box):
    named = {"SPCL_PYTHON": str(box.path / "python3")}
    assert box.run(**named, SHIM_COMPLETE="1").returncode == 0
    assert box.calls() == ["python3 -P -m spcl_lib reproduce"]
    refused = box.run(**named)
    assert refused.returncode == 1 and "packages that it lacks: torch" in refused.stderr


def test_an_old_python_is_passed_over_and_its_absence_told(box):
    refused = box.run(SHIM_TOO_OLD="python3")
    assert refused.returncode == 1 and "Python 3.11 or newer" in refused.stderr
    (box.path / "python3.12").symlink_to(box.path / "python3")
    assert box.run(SHIM_TOO_OLD="python3").returncode == 0


def test_help_sets_up_nothing_and_names_every_option(box):
    shown = box.run("--dataset", "scenes", "--help")
    assert shown.returncode == 0 and not box.calls()
    for option in ("--list", "--league", "--all", "--jobs", "--data-root", "test"):
        assert option in shown.stdout


def test_the_tests_run_in_the_project_with_both_kinds_of_checks(box):
    assert box.run("test", "-k", "views").returncode == 0
    last = box.calls()[-1]
    assert "-m pytest --nbval" in last and last.endswith("-k views")


def test_the_pins_are_exact_and_cover_what_the_project_needs():
    names = {re.split(r"[=<>]", pin)[0] for pin in pins()}
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"]]
    for extra in ("notebooks", "coco", "test"):
        needed += project["optional-dependencies"][extra]
    assert {re.split(r"[=<>\[]", name)[0] for name in needed} <= names


