"""reproduce.sh: what it sets up, when it does so, and which arguments it passes on.

Every test works on a copy of the script in a folder of its own. The PATH holds only shims (for
Python with pip, and for conda) and the few tools that the script needs. So no test uses the network
or touches a real environment.
"""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = "bash env awk cat cksum cp dirname flock mkdir mv rm sed sleep tail tr wc".split()

# One shim for all interpreters: it writes down its arguments, and pretends to install and to make
# environments (by copying itself into them). Real Python only lists the packages that are missing.
PYTHON_SHIM = f"""#!/usr/bin/env bash
printf '%s\\n' "python $*" >>"$SHIM_LOG"
case "$*" in
  *version_info[[]:3[]]*) echo "${{SHIM_VERSION:-3.11.7}}" ;;
  -c*version_info*) [[ -z ${{SHIM_VERSION:-}} ]] ;;
  -c*ensurepip*) [[ -z ${{SHIM_NO_VENV:-}} ]] ;;
  "- "*) exec "{sys.executable}" "$@" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*" -r "*)
    sleep "${{SHIM_SLEEP:-0}}"
    if [[ -n ${{SHIM_PIP_FAILS:-}} ]]; then echo "no such wheel"; exit 1; fi
    while [[ $1 != -r ]]; do shift; done
    cp "$2" "$SHIM_LOG.requirements" ;;
  "-P -m spcl_lib "*)
    env >"$SHIM_LOG.env"
    if [[ -n ${{SHIM_RUNS:-}} ]]; then exec sleep "$SHIM_RUNS"; fi
    exit "${{SHIM_STATUS:-0}}" ;;
esac
"""

CONDA_SHIM = """#!/usr/bin/env bash
printf '%s\\n' "${0##*/} $*" >>"$SHIM_LOG"
while [[ $1 != --prefix ]]; do shift; done
mkdir -p "$2/bin" && cp "${0%/*}/python3" "$2/bin/python"
"""


@dataclass
class Box:
    """A copy of the project's top level, and a PATH of its own."""

    project: Path
    path: Path
    log: Path

    def add(self, name, text):
        """Puts a program on the PATH."""
        file = self.path / name
        file.write_text(text)
        file.chmod(0o755)
        return file

    def start(self, *args, cwd=None, **env):
        """Starts the script in another folder than the project's."""
        home = self.path.parent
        env = {"PATH": str(self.path), "HOME": str(home), "SHIM_LOG": str(self.log)} | env
        command = [str(self.project / "reproduce.sh"), *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=cwd or home, env=env, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *args, **kwargs):
        """Runs the script to its end."""
        process = self.start(*args, **kwargs)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def calls(self):
        """What the shims did since the last time, but for the questions that they were asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        questions = ("python -c ", "python - ", "python -m pip --version")
        return [line for line in lines if not line.startswith(questions)]


@pytest.fixture
def box(tmp_path):
    project = tmp_path / "a project"  # a path with a space, always
    path = tmp_path / "bin"
    project.mkdir()
    path.mkdir()
    for name in ("reproduce.sh", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    for name in TOOLS:
        if found := shutil.which(name):
            (path / name).symlink_to(found)
    box = Box(project, path, tmp_path / "log")
    box.add("python3", PYTHON_SHIM)
    return box


def wait_for(file, process):
    """Waits until a running script has made a file."""
    deadline = time.monotonic() + 20
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


UNPINNED = ("timm", "export", "parquet", "tensorboard")  # extras that no test needs


def pins():
    """The pip section of environment.yml, read another way than the script's."""
    section = (ROOT / "environment.yml").read_text().split("- pip:\n")[1]
    return re.findall(r"^ +- ([^ #\n]+)", section, flags=re.MULTILINE)


# --- the two files that name packages ---


def test_every_pin_is_exact_and_nothing_is_named_twice():
    names = [pin.split("==")[0] for pin in pins()]
    assert all(re.fullmatch(r"[a-z0-9-]+==\d+(\.\d+)+", pin) for pin in pins())
    assert len(names) == len(set(names)) > 10


def test_every_dependency_of_the_results_and_their_tests_has_a_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = (packages for name, packages in extras.items() if name not in UNPINNED)
    wanted = set(project["dependencies"]).union(*needed)
    assert wanted <= {pin.split("==")[0] for pin in pins()}


def test_parser_keeps_to_its_section(box):
    (box.project / "environment.yml").write_text(
        "name: x  # a == b\nchannels:\n  - one\ndependencies:\n  - python=3.11 # why\n  - pip:\n"
        "      # - old==1\n\n      - new==2  # why\n      - other[extra]==3\n  - late=4\n"
    )

    def items(part):
        command = ["bash", "-c", f'source "{box.project}/reproduce.sh"; items {part}']
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert items("pip") == ["new==2", "other[extra]==3"]
    assert items("conda") == ["python=3.11", "late=4"]
    assert items("channels") == ["one"]


# --- help ---


@pytest.mark.parametrize(
    "args", [["--help"], ["-h"], ["--dataset", "scenes", "--help"], ["site", "-h"]]
)
def test_help_needs_no_set_up(box, args):
    result = box.run(*args)
    assert result.returncode == 0
    assert "Usage: ./reproduce.sh" in result.stdout
    assert result.stderr == ""
    assert box.calls() == []
    assert not (box.project / ".setup").exists()


# --- venv ---


def test_venv_holds_exactly_the_pins_and_the_run_gets_arguments_and_status(box):
    result = box.run("--only", "an scl", "--list", SHIM_STATUS="7", PYTHONPATH="/elsewhere")
    env = box.project / ".venv"
    assert result.returncode == 7
    assert box.calls() == [
        f"python -m venv {env}",
        f"python -m pip install --progress-bar off -r {box.project}/.setup/requirements.txt",
        f"python -m pip install --no-deps --no-build-isolation -e {box.project}",
        "python -P -m spcl_lib reproduce --only an scl --list",
    ]
    assert Path(f"{box.log}.requirements").read_text().split() == pins()
    seen = Path(f"{box.log}.env").read_text().splitlines()
    assert "PYTHONNOUSERSITE=1" in seen
    assert not any(line.startswith("PYTHONPATH=") for line in seen)
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 2  # what happens, and how long it took


UV_SHIM = """#!/usr/bin/env bash
printf '%s\\n' "uv $*" >>"$SHIM_LOG"
exit "${SHIM_UV_STATUS:-0}"
"""


def test_the_lock_has_every_pin_and_every_package_has_hashes():
    text = (ROOT / ".locked.txt").read_text()
    packages = [part.split(" ")[0] for part in re.split(r"\n(?=[a-z])", text)[1:]]
    assert set(pins()) <= set(packages), "make .locked.txt again: its first lines say how"
    assert all("--hash=sha256:" in part for part in re.split(r"\n(?=[a-z])", text)[1:])
    assert "://" not in text


def test_uv_installs_what_is_locked_and_pip_what_is_not(box):
    shutil.copy(ROOT / ".locked.txt", box.project)
    box.add("uv", UV_SHIM)
    python = box.project / ".venv" / "bin" / "python"
    assert box.run(SHIM_UV_STATUS="1").returncode == 1  # no hash, no package: pip is not tried
    assert not any("pip install --progress-bar" in call for call in box.calls())
    assert box.run().returncode == 0
    locked = f"{box.project}/.locked.txt"
    assert f"uv pip install --python {python} --require-hashes -r {locked}" in box.calls()
    with (box.project / "environment.yml").open("a") as file:
        file.write("      - extra==1.0\n")
    box.run()
    assert [call.split()[:2] for call in box.calls()][0] == ["python", "-m"]


def test_a_finished_set_up_costs_nothing_and_a_changed_list_repeats_the_packages_only(box):
    box.run()
    box.calls()
    again = box.run("--list")
    assert box.calls() == ["python -P -m spcl_lib reproduce --list"]
    assert again.stderr == ""
    with (box.project / "environment.yml").open("a") as file:
        file.write("      - extra==1.0\n")
    box.run()
    assert [call.split()[2] for call in box.calls()] == ["pip", "pip", "-m"]
    assert Path(f"{box.log}.requirements").read_text().split() == [*pins(), "extra==1.0"]


def test_a_list_that_was_changed_and_changed_back_leaves_no_doubt(box):
    box.run()
    first = (box.project / "environment.yml").read_text()
    (box.project / "environment.yml").write_text(first + "      - extra==1.0\n")
    assert box.run(SHIM_PIP_FAILS="1").returncode == 1
    (box.project / "environment.yml").write_text(first)
    box.calls()
    box.run()  # some packages may be the other list's
    assert any("pip install --progress-bar" in call for call in box.calls())


def test_a_moved_project_is_set_up_anew(box):
    box.run()
    box.calls()
    box.project = box.project.rename(box.project.with_name("moved"))
    box.run()
    assert f"python -m venv {box.project}/.venv" in box.calls()


def test_a_failed_installation_shows_the_log_and_is_repeated(box):
    failed = box.run(SHIM_PIP_FAILS="1")
    assert failed.returncode == 1
    assert "no such wheel" in failed.stderr
    assert str(box.project / ".setup" / "log.txt") in failed.stderr
    assert not any("spcl_lib" in call for call in box.calls())
    assert box.run().returncode == 0
    assert not any("-m venv" in call for call in box.calls())  # what is whole is kept


def test_a_set_up_killed_in_the_middle_is_repeated(box):
    process = box.start(SHIM_SLEEP="1")
    wait_for(box.project / ".venv" / ".spcl-base", process)
    process.kill()
    process.communicate(timeout=60)
    box.calls()
    assert box.run().returncode == 0
    assert any("pip install --progress-bar" in call for call in box.calls())


def test_half_a_venv_is_made_again(box):
    box.run()
    box.calls()
    (box.project / ".venv" / "bin" / "python").unlink()
    box.run()
    assert f"python -m venv {box.project}/.venv" in box.calls()


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock here")
def test_two_at_once_install_once(box):
    processes = [box.start(SHIM_SLEEP="1") for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("waiting" in err for _, err in results) == 1
    assert sum("-m venv" in call for call in box.calls()) == 1


@pytest.mark.parametrize("name", [".venv", ".env"])
def test_what_somebody_else_made_is_left_alone(box, name):
    if name == ".env":
        box.add("conda", CONDA_SHIM)
        (box.project / name).write_text("SECRET=1\n")  # a settings file of other tools
    else:
        (box.project / name).mkdir()
        (box.project / name / "pyvenv.cfg").touch()
    result = box.run()
    assert result.returncode == 1
    assert "not made by this script" in result.stderr
    assert box.calls() == []
    assert (box.project / name).exists()


def test_what_replaced_ours_is_left_alone_too(box):
    box.run()
    shutil.rmtree(box.project / ".venv")
    (box.project / ".venv").mkdir()
    assert "not made by this script" in box.run().stderr


# --- what is missing is said ---


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"SHIM_VERSION": "3.9.2"}, ["Python 3.11 or newer", "python3 is 3.9.2", "SPCL_PYTHON"]),
        ({"SHIM_NO_VENV": "1"}, ["python3 (3.11.7)", "apt install python3-venv"]),
        ({"SPCL_ENV": "conda"}, ["no conda was found"]),
        ({"SPCL_ENV": "poetry"}, ["poetry", "use conda or venv"]),
    ],
)
def test_a_missing_interpreter_is_explained(box, env, words):
    result = box.run(**env)
    assert result.returncode == 1
    assert all(word in result.stderr for word in words)
    assert not (box.project / ".venv").exists()


def test_no_python_at_all_is_explained(box):
    (box.path / "python3").unlink()
    result = box.run()
    assert result.returncode == 1
    assert "no python3 was found" in result.stderr


# --- conda ---


@pytest.mark.parametrize("tool", ["micromamba", "mamba", "conda"])
def test_conda_gives_the_interpreter_and_pip_the_pins(box, tool):
    box.add(tool, CONDA_SHIM)
    result = box.run("--list")
    env = box.project / ".env"
    assert result.returncode == 0, result.stderr
    create = "create --yes --prefix {} --override-channels --channel conda-forge python=3.11 pip"
    assert box.calls()[0] == f"{tool} {create.format(env)}"
    assert Path(f"{box.log}.requirements").read_text().split() == pins()
    assert not (box.project / ".venv").exists()
    box.run("--list")
    assert box.calls() == ["python -P -m spcl_lib reproduce --list"]


def test_a_conda_that_is_a_shell_function_is_found_and_venv_can_be_wanted_instead(box):
    exe = box.add("hidden", CONDA_SHIM)
    box.run(MAMBA_EXE=str(exe), SPCL_ENV="venv")
    assert (box.project / ".venv").exists() and not (box.project / ".env").exists()
    box.run(MAMBA_EXE=str(exe), SPCL_ENV="conda")
    assert (box.project / ".env" / ".spcl-stamp").exists()


# --- SPCL_PYTHON ---


def test_own_interpreter_is_used_as_it_is(box):
    own = box.add("own", PYTHON_SHIM)
    result = box.run("--only", "a b", "", cwd=box.path, SPCL_PYTHON="./own", SHIM_STATUS="3")
    assert result.returncode == 3, result.stderr
    assert box.calls() == ["python -P -m spcl_lib reproduce --only a b "]
    assert f"PYTHONPATH={box.project}" in Path(f"{box.log}.env").read_text().splitlines()
    assert not any((box.project / name).exists() for name in (".venv", ".env", ".setup/log.txt"))
    box.run("test", "-k", "x y", SPCL_PYTHON=str(own))
    assert box.calls() == ["python -m pytest --nbval --nbval-current-env -k x y"]
    box.run("site", "--out", "a b", SPCL_PYTHON=str(own))
    assert box.calls() == ["python -P -m spcl_lib site --out a b"]


def test_own_interpreter_that_cannot_do_is_refused(box):
    missing = box.run(SPCL_PYTHON="/no/such/python")
    assert (missing.returncode, "is not a program" in missing.stderr) == (1, True)
    bare = box.add("bare", f'#!/usr/bin/env bash\nexec "{sys.executable}" -S -I "$@"\n')
    lacking = box.run(SPCL_PYTHON=str(bare))
    assert lacking.returncode == 1
    assert "torch" in lacking.stderr and "Traceback" not in lacking.stderr
    assert "furo" not in lacking.stderr and "furo" in box.run("site", SPCL_PYTHON=str(bare)).stderr


def test_signals_reach_the_run(box):
    process = box.start(SPCL_PYTHON="python3", SHIM_RUNS="60")
    wait_for(Path(f"{box.log}.env"), process)
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == -15
