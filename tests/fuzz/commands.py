"""Every command with every option, whose values are odd."""

import argparse
import contextlib
import os
import shutil

import papermill
import pytest
from attack import CLEAR, LOST, TRACEBACK, UNCLEAR, Outcome, World, call, where
from damages import ODD_WORDS
from hypothesis import strategies as st
from kinds import SETTINGS, Endless, living_in, make_finished, run_of
from nbclient import NotebookClient

from spcl_lib import __main__ as command_line
from spcl_lib.data import download
from spcl_lib.methods import METHODS
from spcl_lib.options import make_parser
from spcl_lib.reproduce import steps
from spcl_lib.runs import notebooks, schedule, settings
from spcl_lib.runs.profiles import PROFILES
from spcl_lib.system import paths

SETS = [text for k, v in SETTINGS.items() for text in ("--set", f"{k}={v}")]
PLACES = (
    "photos", "photos/cat/cat 0.png", "mine.txt", "photo.jpg", "pipe", "loop", "gone", "empty",
    "results", "predictions.csv", "no/such/folder", "a\nb", "caf\udce9", "x" * 300,
)  # fmt: skip
_READ = ("data_root", "images", "run", "runs", "config", "labels", "thresholds")
_WRITTEN = ("out", "heatmaps", "notebook", "save_thresholds")
NUMBERS = (
    "0", "-1", "1", "2", "nan", "inf", "-inf", "1e999", "1e300", "1e-300", "1e9", "1.5",
    "1000000", "10" * 12, "9" * 5000, "0x10", "1_0", "٣", "None", "true", "", " ",
)  # fmt: skip


def make_project(folder):
    """A world with a copy of the project's notebooks and page, and files that must not be lost."""
    world = make_finished(folder).folder
    shutil.copytree(paths.notebooks(), world / "project" / "notebooks")
    shutil.copy(paths.project() / "README.md", world / "project")
    for name in ("mine.txt", "photo.jpg"):
        (world / name).write_text("not to be lost\n")
    (world / "empty").mkdir()
    os.mkfifo(world / "pipe")
    (world / "loop").symlink_to(world / "loop")
    (world / "gone").symlink_to(world / "nowhere")
    return World(world)


def options_of():
    """Every command with its options, as the parser knows them."""
    parser = make_parser(command_line._COMMANDS, "")
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {
        name: [action for action in one._actions if action.dest != "help"]
        for name, one in commands.choices.items()
    }


def base_of(command, folder):
    """Arguments with which a command works, and takes little time."""
    photos = ["--dataset", "folder", "--profile", "smoke", "--data-root", str(folder / "photos")]
    few = ["--only", "an", "--seeds", "0", "--jobs", "1"]
    return {
        "run": [*photos, "--method", "an", "--set", "snapshots=2", *SETS],
        "reproduce": [*photos, *few, *SETS],
        "predict": ["--run", str(run_of(folder)), "--images", str(folder / "photos" / "dog"),
                    "--out", "out.csv"],
        "evaluate": ["--run", str(run_of(folder)), "--data-root", str(folder / "photos")],
        "audit": ["--run", str(run_of(folder)), "--data-root", str(folder / "photos"),
                  "--out", "audit"],
        "explore": ["--run", str(run_of(folder)), "--data-root", str(folder / "photos")],
        "compare": [str(run_of(folder)), "--data-root", str(folder / "photos")],
        "export": ["--run", str(run_of(folder)), "--format", "torchscript", "--out", "out.ts"],
        "download": ["--dataset", "voc2007", "--data-root", str(folder / "empty")],
    }[command]  # fmt: skip


@contextlib.contextmanager
def without_long_work(folder):
    """Trainings of other processes, notebooks and downloads are left out."""
    with living_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(paths, "project", lambda: folder / "project")
        for module in (schedule, steps):
            patch.setattr(module, "run_tasks", lambda tasks, jobs, title: [])
        patch.setattr(steps, "write_index", lambda found, runs: "page")
        patch.setattr(download, "_download_archive", _no_network)
        patch.setattr(papermill, "execute_notebook", _copy_notebook)
        patch.setattr(NotebookClient, "execute", lambda self: None)
        patch.setattr(notebooks, "reduce_colours", lambda png: png)
        yield


def _no_network(*given):
    raise OSError("no network")


def _copy_notebook(source, output, *given, **options):
    shutil.copyfile(source, output)


# --- odd values -----------------------------------------------------------------------------------


def _words():
    """What an argument of a process can be: no NUL; bytes that are no text are surrogates."""
    letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
    return st.sampled_from(ODD_WORDS) | st.text(letters, max_size=12)


def _leads_out(text):
    """Whether a path may lead out of the tests' folder; what is written there would be lost."""
    return text.startswith(("/", "~")) or ".." in text.split("/")


def _paths():
    words = _words().filter(lambda text: not _leads_out(text))
    return st.sampled_from((*PLACES, "~nouser/x")) | words


def _values(command, action):
    """Odd values of an option, and valid ones of other options."""
    if action.dest in (*_READ, *_WRITTEN):
        inner = _paths()
        if action.dest in _READ:
            return inner | st.sampled_from(("/dev/null", "/dev/zero", "~nouser/x"))
        return inner
    if action.dest == "set":
        names = st.sampled_from(sorted(settings._TYPES))
        known = sorted({w for words in settings._CHOICES.values() for w in words})
        values = st.sampled_from((*NUMBERS, *known, *PLACES)) | _words()
        pairs = st.tuples(names, values).map("=".join)
        return st.one_of(pairs, pairs, pairs, _words())
    if action.dest == "parameters":
        return st.sampled_from(('{"seed": 1}', '{"source": 5}', "[]", "null", "1", "[" * 50_000,
                                '{"x": 1}', '{"profile": null}')) | _words()  # fmt: skip
    names = (*METHODS, *PROFILES, "smoke", "cpu", "frozen", "paper", "weight", "lse:3", "top:0",
             "lse:nan", "03_crop_recovery", "auto")  # fmt: skip
    return st.sampled_from(NUMBERS) | st.sampled_from(names) | _words()


@st.composite
def odd_folders(draw, folder):
    """A command for which the folders of results, cache and data are odd."""
    command = draw(st.sampled_from(("run", "reproduce", "predict")))
    words = [command, *base_of(command, folder)]
    name = draw(st.sampled_from(("SPCL_RESULTS", "SPCL_CACHE", "SPCL_DATA", "SPCL_CACHE_GB")))
    value = st.sampled_from(NUMBERS) if name == "SPCL_CACHE_GB" else _paths()
    return [f"{name}={draw(value)}", *words]


@st.composite
def odd_commands(draw, command, folder):
    """The words of a command in which one or two options have odd values."""
    words = [command, *base_of(command, folder)]
    actions = st.sampled_from(options_of()[command])
    for action in draw(st.lists(actions, min_size=1, max_size=2)):
        count = draw(st.integers(0, 3)) if action.nargs in ("+", "*") else 1
        values = [draw(_values(command, action)) for _ in range(count * (action.nargs != 0))]
        if action.option_strings:
            words += [action.option_strings[-1], *values]
        else:
            words[1:2] = values
    return words


# --- verdicts -------------------------------------------------------------------------------------

# Files that a command may make or replace.
_MADE = ("results/", "cache/", "project/notebooks/", "project/README.md", "reference/")


def attack_command(world, words):
    """Runs a command in this process; gives the verdict and its reason."""
    folder = world.folder
    places = set(os.listdir(folder))
    try:
        with without_long_work(folder), pytest.MonkeyPatch.context() as patch:
            if words[0].startswith("SPCL_"):
                patch.setenv(*words[0].split("=", 1))
            command = words[words[0].startswith("SPCL_") :]
            return _judge(world, call(lambda: _status(command)), words)
    finally:
        for name in set(os.listdir(folder)) - places:
            file = folder / os.fsencode(name).decode("utf-8", "surrogateescape")
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        world.restore()


def _status(words):
    try:
        return command_line.main(words)
    except SystemExit as stop:  # --help
        return stop.code
    except Endless:
        return 0


def _judge(world: World, outcome: Outcome, words: list[str]):
    if outcome.error is not None:
        return TRACEBACK, where(outcome.error)
    if "Traceback" in outcome.said:
        return TRACEBACK, outcome.said[-600:]
    lines = [line for line in outcome.said.replace("\r", "\n").split("\n") if line.strip()]
    last = lines[-1] if lines else ""
    if outcome.value == 2:
        if not last.startswith("spcl: error: "):
            return UNCLEAR, f"its last line is no error: {last[:200]!r}"
        if len(last) > 2500:
            return UNCLEAR, f"a long line: {last[:300]!r}"
    elif outcome.value not in (0, 1):
        return UNCLEAR, f"status {outcome.value}: {last[:200]!r}"
    changed = world.changed()
    lost = {name for name in changed & world.sound.keys() if not name.startswith(_MADE)}
    lost |= {n for n in changed if n.startswith("results/") and n.endswith("weights.safetensors")
             and n in world.sound}  # fmt: skip
    half = {n for n in changed if n.endswith(".tmp")}
    if "--force" in words:  # predict may then replace any file
        lost = set()
    if lost - {"predictions.csv"} or half:
        return LOST, f"changed or left behind: {sorted(lost | half)}"
    return CLEAR, ""
