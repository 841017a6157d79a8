"""results/manifest.json lists the runs with their commit, versions, data and time."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from spcl_lib.reproduce.plan import Experiment, NotebookTask
from spcl_lib.runs.settings import changes
from spcl_lib.runs.store import Run, run_folder
from spcl_lib.system import paths
from spcl_lib.system.checksums import read_summed, with_sum
from spcl_lib.system.files import lock_file, write_json
from spcl_lib.system.machine import choose_device, describe_machine


def _file() -> Path:
    return paths.results() / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """The content of results/manifest.json; an empty manifest if it is missing or damaged.

    A damaged file is kept under another name, because the next note replaces it.
    """
    file, empty = _file(), {"experiments": {}, "notebooks": {}}
    try:
        found = read_summed(file)
        return {name: found.get(name, {}) for name in empty}
    except OSError:
        return empty
    except ValueError as error:
        aside = file.with_name(f"{file.name}.damaged")
        os.replace(file, aside)
        print(f"spcl: '{file}' is damaged ({error}); what is run from now on is listed anew. The "
              f"damaged file is kept as '{aside.name}'", flush=True)  # fmt: skip
        return empty


def _note(part: str, name: str, entry: dict[str, Any]) -> None:
    with lock_file(_file()):
        manifest = read_manifest()
        manifest[part][name] = entry
        write_json(_file(), with_sum(manifest))


def note_notebook(task: NotebookTask, entry: dict[str, Any]) -> None:
    """Notes the outcome of a notebook."""
    _note("notebooks", task.name, entry)


def note_experiment(experiment: Experiment, seconds: float) -> None:
    """Notes the finished runs of an experiment, with their versions, machine and data."""
    first = experiment.main[0]
    machine = describe_machine(choose_device())
    facts = {
        "commit": machine["commit"], "python": machine["python"], "torch": machine["torch"],
        "torchvision": machine["torchvision"], "machine": machine["device"],
        "data": first.content or "drawn by the code of this commit",
        "last command": f"{seconds:.0f} s, on {datetime.date.today().isoformat()}",
    }  # fmt: skip
    runs = {
        str(run_folder(c).relative_to(paths.results())): Run.of(c).metrics for c in experiment.runs
    }
    done = {name: {"mAP": m["mAP"], "train_seconds": m["train_seconds"]}
            for name, m in runs.items() if m is not None}  # fmt: skip
    _note("experiments", experiment.name, {
        "dataset": first.dataset, "profile": first.profile, "overrides": changes(first),
        "data_root": experiment.data_root, "facts": facts, "runs": done,
    })  # fmt: skip


def is_current(task: NotebookTask, manifest: dict[str, Any]) -> bool:
    """Whether the notebook was executed and everything that it depends on is unchanged."""
    entry = manifest["notebooks"].get(task.name, {})
    files = task.output, task.output.with_suffix(".html")
    return all(f.is_file() for f in files) and entry.get("key") == task.key()
