"""What the explorer gets from Python; test_browser.py has what it shows."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_trace import fake_trace

from spcl_lib.analysis.visibility import in_view, visible_fraction
from spcl_lib.model import normalise
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.store import Run
from spcl_lib.viewer import explorer_page
from spcl_lib.viewer.explorer import HeatmapExplorer
from spcl_lib.viewer.explorer_page import record_of, write_explorer_page
from spcl_lib.views import Views


@pytest.fixture(scope="module")
def trace():
    return fake_trace()


def numbers(text):
    return np.frombuffer(base64.b64decode(text), np.uint8)


def test_a_record_holds_the_heatmaps_the_seen_cells_and_the_regions(trace):
    record = record_of(trace, 2)
    order = record["classes"]
    assert sorted(order) == list(range(12)) and order[0] == int(trace.observed[2].int().argmax())
    heat = torch.from_numpy(numbers(record["heat"]).reshape(3, 12, 16, 16).copy())
    assert torch.equal(heat, trace.heatmaps[:, 2, order])
    seen = np.unpackbits(numbers(record["seen"])).reshape(3, 16, 16).astype(bool)
    assert torch.equal(torch.from_numpy(seen), trace.seen[:, 2])
    regions = trace.region(2)
    assert set(record["regions"]) == {c for c in range(12) if regions[c].any()}
    for c, text in record["regions"].items():
        bits = np.unpackbits(numbers(text)).reshape(64, 64).astype(bool)
        assert torch.equal(torch.from_numpy(bits), regions[c])


def test_the_explorer_answers_with_the_network(trace):
    explorer = HeatmapExplorer(trace)
    view = Views(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([True]))
    question = {"id": "a-1", "kind": "predict", "run": 0, "image": 2,
                "box": view.boxes[0].tolist(), "flipped": True}  # fmt: skip
    answer = explorer.answer(question)
    crop = view.crop(trace.data.images[2:3], trace.config.crop_side)
    with torch.no_grad():
        expected = trace.model(normalise(crop)).sigmoid().amax((2, 3))[0]
    assert answer["id"] == "a-1"
    found = torch.from_numpy(numbers(answer["answer"]) / 255)
    assert (found - expected).abs().max() < 0.51 / 255
    assert explorer.answer(question | {"box": [0, 0, 1, 1]})["answer"]  # whole numbers
    header = explorer.answer({"id": 1, "kind": "header"})["answer"]
    assert json.dumps(header, allow_nan=False) and header["runs"][0]["epochs"] == [1, 2, 3]
    record = explorer.answer({"id": 2, "kind": "record", "run": 0, "image": 3})["answer"]
    assert record == record_of(trace, 3)
    assert repr(explorer) == "HeatmapExplorer(SCL, seed 0)"  # no address in a stored notebook


def test_a_network_with_a_trained_head_only_reads_crops_of_its_maps(trace):
    head = replace(trace, config=trace.config.replace(trained="head"))
    views = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]] * 9), torch.arange(9) % 2 > 0)
    with torch.no_grad():
        whole = trace.model(normalise(trace.data.images[1:2])).expand(9, -1, -1, -1)
    grid = head.config.grid_of_crop(whole.shape[-1])
    found = head.predict(1, views)
    assert torch.allclose(found, views.crop(whole, grid), atol=1e-5)
    assert not torch.allclose(found, trace.predict(1, views), atol=1e-3)  # of the crops themselves


def test_the_first_crop_has_lost_the_label_and_shows_the_class(trace):
    """The objects are not known, so the heatmaps stand for them: here they are the same."""
    trace = replace(trace, data=replace(trace.data, class_map=None))
    assert record_of(trace, 0)["regions"] is None
    found = 0
    for image in range(len(trace.data)):
        view = explorer_page.view_without_label(trace, image)
        if view is None:
            continue
        found += 1
        given = int(trace.observed[image].int().argmax())
        other = explorer_page.starting_class(trace, image)
        share = visible_fraction(fake_trace().region(image)[None], view)[0]
        assert not in_view(share[given], 0.35)
        assert other == given or share[other] > 0
    assert found >= 3


def test_the_page_needs_nothing_else(trace, tmp_path):
    file = tmp_path / "explorer.html"
    write_explorer_page(file, trace, fake_trace("another", epochs=20))
    page = file.read_text()
    assert not re.search(r"<link\b|@import|url\(|\bsrc=|https?:", page)
    assert page.count("data:image/jpeg") == 2 * len(trace.data)
    assert [f.name for f in tmp_path.iterdir()] == ["explorer.html"]


def test_names_can_not_leave_the_script(trace, tmp_path):
    names = ("</script><b>", "a&b", "two\nlines", *trace.data.classes[3:])
    hostile = replace(trace, data=replace(trace.data, classes=names), name="<i>SCL")
    write_explorer_page(tmp_path / "explorer.html", hostile)
    page = (tmp_path / "explorer.html").read_text()
    assert page.count("</script>") == 1 and "<i>SCL" not in page
    assert "two\\\\nlines" in page


def test_the_command_explores_any_finished_run_wherever_it_lies(spcl, results, tiny, tmp_path):
    names = (("an", 0, 3), ("an", 1, 0), ("scl", 0, 3))  # method, seed, followed images
    configs = [make_config("scenes", m, s, "smoke", tiny | {"snapshots": n}) for m, s, n in names]
    for config in configs:
        run(config)
    followed, plain, scl = (Run.of(config).folder for config in configs)
    scl = scl.rename(tmp_path / "moved")
    file = tmp_path / "explorer.html"
    said = spcl("explore", "--run", scl, followed, "--out", file)
    assert said.out == f"{file}\n" and "SCL, seed 0; AN, seed 0" in file.read_text()
    assert spcl("explore", "--run", plain, "--out", file).status == 0  # a page is replaced
    assert "Runs: AN, seed 1." in " ".join(file.read_text().split())
    before = file.read_bytes()
    said = spcl("explore", "--run", plain, scl, "--out", file)
    assert said.status == 2 and "follows other images than" in said.err
    assert file.read_bytes() == before
    said = spcl("explore", "--run", plain, "--out", tmp_path / "mine.jpg")
    assert said.status == 2 and "--out must be the name of an .html file" in said.err
