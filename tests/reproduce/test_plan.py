"""The plan of `reproduce`: all experiments and notebooks, what is finished, and the cost."""

import json

import nbformat
import pytest
from fake_runs import fake_runs, write_results
from nbformat.v4 import new_notebook

from spcl_lib.reproduce import manifest, plan, steps
from spcl_lib.runs.notebooks import notebook_names
from spcl_lib.runs.run import run
from spcl_lib.runs.store import run_folder


def scenes(**options):
    return plan.experiment_of("scenes", **options)


@pytest.fixture
def finished(results):
    """All runs of the main job on scenes are finished."""
    write_results(fake_runs())
    return scenes()


@pytest.fixture
def executed(monkeypatch):
    """No kernel starts: a notebook task leaves its two files; gives the names of what was run."""
    names = []

    def run_tasks(tasks, jobs, title):
        for task in tasks:
            names.append(task.name)
            file = task.log.with_suffix(".ipynb")
            file.parent.mkdir(parents=True, exist_ok=True)
            made = new_notebook(metadata={"papermill": {"duration": 1.5}})
            nbformat.write(made, file)
            assert task.is_done()
            task.on_done()
        return []

    monkeypatch.setattr(steps, "run_tasks", run_tasks)
    return names


def execute(experiment, force=False):
    return steps._execute_notebooks(plan.notebook_tasks([experiment]), 1, force)


# --- what is in it --------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_every_notebook_is_in_the_plan_and_has_an_expected_cost(profile, results):
    tasks = plan.notebook_tasks([scenes(profile=profile)])
    assert {task.notebook for task in tasks} == set(notebook_names())
    assert set(plan.NOTEBOOK_SECONDS) == set(notebook_names())


def test_notebooks_that_show_runs_come_once_for_every_experiment_and_never_share_a_file(results):
    tasks = plan.notebook_tasks([scenes(), scenes(profile="smoke")])
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert {"02_results", "02_results-scenes-smoke", "00_tour"} <= set(names)
    assert "00_tour-scenes-smoke" not in names


def test_the_parameters_are_those_that_the_notebooks_have(results):
    from spcl_lib.runs.notebooks import check_parameters

    experiment = scenes(overrides={"lr": 1e-3, "epochs": 5})
    for task in plan.notebook_tasks([experiment]):
        check_parameters(task.notebook, task.parameters)


def test_the_main_job_is_the_papers_methods_with_three_seeds(results):
    experiment = scenes()
    assert len(experiment.main) == 7 * 3 and experiment.ablation == ()
    assert {c.method for c in experiment.followed} == {"scl", "an"}
    assert all(c.snapshots > 0 for c in experiment.followed)
    # 15 have the profile's own scale; crop recovery has two more methods.
    assert len(scenes(ablation=True).runs) == 21 + 75 - 15 + 2 + 2 * 3


def test_methods_and_seeds_that_are_named_twice_count_once(results, spcl):
    assert scenes(methods=["an", "an"], seeds=[0, 0]) == scenes(methods=["an"], seeds=[0])
    outcome = spcl("reproduce", "--list", "--only", "an", "an", "--seeds", 0, 0)
    assert outcome.status == 0 and outcome.out.count("scenes-cpu/an-seed0 ") == 1


def test_other_settings_have_a_name_of_their_own(results):
    assert scenes().name == "scenes-cpu"
    changed = scenes(overrides={"lr": 1e-3})
    assert changed.name.startswith("scenes-cpu-") and "lr=0.001" in str(
        [task.parameters for task in plan.notebook_tasks([changed])]
    )


# --- showing it -----------------------------------------------------------------------------------


def test_the_plan_names_every_step_its_state_and_what_all_of_it_costs(spcl, results):
    outcome = spcl("reproduce", "--list", "--jobs", 2)
    assert outcome.status == 0
    for words in (
        "run       scenes-cpu/en_scl-seed2", "notebook  00_tour.ipynb: to execute",
        "to do: 23 runs and 10 notebooks, about ", "in all with 2 side by side",
    ):  # fmt: skip
        assert words in outcome.out, words
    assert not results.exists()


def test_what_is_finished_costs_nothing(finished, spcl, executed):
    execute(finished)
    out = spcl("reproduce", "--list").out
    assert "finished, mAP 76.60 %" in out and "02_results.ipynb: finished" in out
    assert "to do: 2 runs and 0 notebooks" in out  # those that follow images


def test_all_lists_the_data_that_are_there_and_says_which_are_not(spcl, voc, results):
    outcome = spcl("reproduce", "--all", "--list", "--data-root", voc)
    assert outcome.status == 0
    for words in ("scenes-cpu:", "voc2007-cpu:", "voc2007-long:", "scale_min=0.05"):
        assert words in outcome.out
    for missing in ("voc2012", "coco2014", "coco2017", "imagenet"):
        assert f"without {missing}: " in outcome.out
    assert "from the reference results" not in outcome.out.partition("voc2007-long")[0]


def test_all_takes_the_profile_that_is_usual_for_the_data_set(spcl, tmp_path):
    """`--all --dataset coco18` was refused, for a profile that nobody gave."""
    outcome = spcl("reproduce", "--all", "--list", "--dataset", "coco18", "--data-root", tmp_path)
    assert outcome.status == 2 and "--profile" not in outcome.err
    assert str(tmp_path / "coco18") in outcome.err


def test_all_of_one_data_set_that_is_missing_is_an_error(spcl, tmp_path):
    outcome = spcl("reproduce", "--all", "--dataset", "voc2007", "--data-root", tmp_path)
    assert outcome.status == 2 and "Pascal VOC is not at" in outcome.err
    outcome = spcl("reproduce", "--all", "--only", "an")
    assert outcome.status == 2 and "--only" in outcome.err


# --- carrying it out ------------------------------------------------------------------------------


def test_a_notebook_is_executed_once_and_again_when_its_runs_change(finished, executed):
    assert execute(finished) == [] and len(executed) == len(notebook_names())
    executed.clear()
    execute(finished)
    assert executed == []
    file = run_folder(finished.main[0]) / "metrics.json"
    file.write_text(file.read_text() + "\n")
    execute(finished)
    assert executed == ["02_results"]
    executed.clear()
    execute(finished, force=True)
    assert len(executed) == len(notebook_names())


def test_a_failed_notebook_is_named_and_is_not_taken_for_finished(
    finished, monkeypatch, capsys, executed
):
    monkeypatch.setattr(steps, "run_all", lambda *given: [])
    run_tasks = steps.run_tasks

    def fail_one(tasks, jobs, title):
        run_tasks([task for task in tasks if task.name != "00_tour"], jobs, title)
        return [task for task in tasks if task.name == "00_tour"]

    monkeypatch.setattr(steps, "run_tasks", fail_one)
    assert steps.reproduce([finished], 1, False) == 1
    assert "failed: 00_tour, log: " in capsys.readouterr().out
    assert not manifest.read_manifest()["notebooks"]["00_tour"]["finished"]
    executed.clear()
    monkeypatch.setattr(steps, "run_tasks", run_tasks)
    execute(finished)
    assert executed == ["00_tour"]


def test_the_manifest_says_what_was_run_with_what_and_how_long(
    finished, results, monkeypatch, executed
):
    monkeypatch.setattr(steps, "run_all", lambda *given: [])
    assert steps.reproduce([finished], 1, False) == 0
    written = json.loads((results / "manifest.json").read_text())
    entry = written["experiments"]["scenes-cpu"]
    assert {"commit", "python", "torch", "machine", "data"} <= set(entry["facts"])
    assert entry["runs"]["scenes-cpu/an-seed0"] == {"mAP": 76.6, "train_seconds": 40.0}
    assert written["notebooks"]["02_results"]["seconds"] == 1.5
    assert (results / "index.html").is_file()


def test_the_explorer_is_written_once_for_the_runs_that_follow_images(results, tiny, capsys):
    settings = tiny | {"snapshots": 2}
    experiment = plan.experiment_of("scenes", "smoke", ("an",), (0,), settings)
    steps._write_explorer(experiment, False)
    assert "explorer: not written (the run '" in capsys.readouterr().out
    for config in experiment.followed:
        run(config)
    file = plan.explorer_file(experiment.name)
    assert file.name == f"explorer-{experiment.name}.html"
    for force, is_new in ((False, True), (False, False), (True, True)):
        steps._write_explorer(experiment, force)
        assert (f"explorer: {file}" in capsys.readouterr().out) == is_new
    assert "SCL, seed 0; AN, seed 0" in file.read_text()


@pytest.mark.parametrize("text", ['{"experiments": 5, "notebooks', '{"crc32": "0"}', "[" * 50_000])
def test_a_damaged_manifest_is_kept_under_another_name(text, results, capsys):
    results.mkdir()
    (results / "manifest.json").write_text(text)
    task = plan.NotebookTask("02_results", "02_results", {})
    manifest.note_notebook(task, {"finished": False})
    assert manifest.read_manifest()["notebooks"] == {"02_results": {"finished": False}}
    assert (results / "manifest.json.damaged").read_text() == text
    (line,) = capsys.readouterr().out.splitlines()
    assert f"'{results / 'manifest.json'}' is damaged" in line
    assert "kept as 'manifest.json.damaged'" in line


def test_without_jupyter_the_runs_are_made_and_the_notebooks_are_not(
    finished, results, monkeypatch, capsys
):
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None)
    assert execute(finished) == []
    assert "notebooks: not executed (papermill, nbconvert not installed)" in capsys.readouterr().out
    assert not (results / "notebooks").exists()
