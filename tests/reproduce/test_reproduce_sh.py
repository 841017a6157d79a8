"""reproduce.sh: which environment it takes or makes, and which arguments it passes on.

Every test works on a copy of the script in a folder of its own. The PATH holds only a shim for
Python and the few tools that the script needs: no network, no real environment.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "bash env cat cksum cp dirname mkdir rm sed tail tee".split()
# One shim for all interpreters: it writes down its arguments, and pretends to install and to make
# environments (by copying itself into them).
PYTHON = f"""#!/usr/bin/env bash
printf '%s\\n' "python $*" >>"$SHIM_LOG"
case "$*" in
  *find_spec*) shift; exec "{sys.executable}" -c "$@" ;;
  -c*version_info*) [[ -z ${{SHIM_OLD:-}} ]] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*" -r "*)
    if [[ -n ${{SHIM_PIP_FAILS:-}} ]]; then echo "no such wheel"; exit 1; fi
    while [[ $1 != -r ]]; do shift; done
    cp "$2" "$SHIM_LOG.requirements" ;;
  "-m spcl_lib "*) env >"$SHIM_LOG.env"; exit "${{SHIM_STATUS:-0}}" ;;
esac
"""
# An interpreter without any package.
BARE = f'#!/usr/bin/env bash\nexec "{sys.executable}" -S -I "$@"\n'
UV = """#!/usr/bin/env bash
printf '%s\\n' "uv $*" >>"$SHIM_LOG"
if [[ $1 == venv ]]; then mkdir -p "$5/bin" && cp "${0%/*}/python3" "$5/bin/python"; fi
"""


@dataclass
class Box:
    """A copy of the project's top level, and a PATH of its own."""

    project: Path
    path: Path
    log: Path

    def add(self, name, text):
        """Puts a program on the PATH, or at another place."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def run(self, *args, cwd=None, **env):
        """Runs the script in another folder than the project's."""
        home = self.path.parent
        env = {"PATH": str(self.path), "HOME": str(home), "SHIM_LOG": str(self.log)} | env
        command = [str(self.project / "reproduce.sh"), *args]
        return subprocess.run(
            command, cwd=cwd or home, env=env, capture_output=True, text=True, timeout=60
        )

    def calls(self):
        """What the shims did since the last time, but for the questions that they were asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if re.match(r"uv |python -m |python -P ", line)]


@pytest.fixture
def box(tmp_path):
    project = tmp_path / "a & b"  # bash 5.2 puts what it replaced in the place of an &
    (tmp_path / "bin").mkdir()
    project.mkdir()
    for name in ("reproduce.sh", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    for name in TOOLS:
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    box = Box(project, tmp_path / "bin", tmp_path / "log")
    box.add("python3", PYTHON)
    return box


def pins():
    """The pip section of environment.yml, read another way than the script's."""
    section = (ROOT / "environment.yml").read_text().split("- pip:\n")[1]
    return re.findall(r"^ +- ([^ #\n]+)", section, flags=re.MULTILINE)


def test_every_pin_is_exact_and_everything_that_is_needed_has_one():
    names = [pin.split("==")[0] for pin in pins()]
    assert all(re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", pin) for pin in pins())
    assert len(names) == len(set(names)) > 10
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {*project["dependencies"], *extras["notebooks"], *extras["test"]} <= set(names)


def test_venv_holds_exactly_the_pins_and_the_run_gets_arguments_and_status(box):
    result = box.run("--only", "an scl", "--list", SHIM_STATUS="7", PYTHONPATH="/elsewhere")
    env, pip = box.project / ".venv", "python -m pip install --progress-bar off"
    assert result.returncode == 7, result.stderr
    assert box.calls() == [
        f"python -m venv {env}",
        f"{pip} -r {box.project}/.setup/requirements.txt",
        f"{pip} --no-deps --no-build-isolation -e {box.project}",
        "python -m spcl_lib reproduce --only an scl --list",
    ]
    assert Path(f"{box.log}.requirements").read_text().split() == pins()
    seen = Path(f"{box.log}.env").read_text().splitlines()
    safe = {"PYTHONNOUSERSITE=1", "PYTHONSAFEPATH=1", f"PYTHONPATH={box.project}"}
    assert safe <= set(seen)


def test_uv_is_preferred(box):
    box.add("uv", UV)
    assert box.run().returncode == 0
    venv, pins_installed, project_installed, run = box.calls()
    assert venv.startswith("uv venv ") and pins_installed.startswith("uv pip install --python")
    assert project_installed.endswith(f"-e {box.project}") and run.endswith("reproduce")


def test_a_finished_set_up_costs_nothing_until_the_list_changes(box):
    box.run()
    box.calls()
    assert box.run("--list").stderr == ""
    assert box.calls() == ["python -m spcl_lib reproduce --list"]
    with (box.project / "environment.yml").open("a") as file:
        file.write("      - extra==1.0\n")
    box.run()
    assert Path(f"{box.log}.requirements").read_text().split() == [*pins(), "extra==1.0"]


def test_a_failed_installation_shows_the_log_and_is_repeated(box):
    failed = box.run(SHIM_PIP_FAILS="1")
    assert failed.returncode == 1 and "no such wheel" in failed.stderr
    assert not any("spcl_lib" in call for call in box.calls())
    assert box.run().returncode == 0
    assert any("pip install" in call for call in box.calls())


def test_without_a_python_that_is_new_enough_it_says_what_to_install(box):
    result = box.run(SHIM_OLD="1")
    assert result.returncode == 1 and "Python 3.11 or newer" in result.stderr
    assert not (box.project / ".venv").exists()


def test_an_active_environment_is_taken_if_it_has_the_packages(box):
    active = str(box.add("active/bin/python", PYTHON).parents[1])
    assert box.run("--help").stdout.startswith("Usage: ./reproduce.sh") and box.calls() == []
    assert box.run("test", "-k", "x y", VIRTUAL_ENV=active).returncode == 0
    assert box.calls() == [
        "python -m pytest -n 2 --dist loadscope --nbval --nbval-current-env -k x y"
    ]
    assert not (box.project / ".venv").exists()
    box.add("active/bin/python", BARE)
    assert box.run(CONDA_PREFIX=active).returncode == 0
    assert (box.project / ".venv").exists()


def test_spcl_python_is_used_as_it_is_or_refused_with_what_it_lacks(box):
    box.add("own", PYTHON)
    result = box.run("--only", "a b", cwd=box.path, SPCL_PYTHON="./own", SHIM_STATUS="3")
    assert result.returncode == 3, result.stderr
    assert box.calls() == ["python -m spcl_lib reproduce --only a b"]
    lacking = box.run(SPCL_PYTHON=str(box.add("bare", BARE)))
    assert lacking.returncode == 1 and "lacks torch" in lacking.stderr
    assert not (box.project / ".venv").exists()
