"""The explorer in a real browser: in JupyterLab with its kernel, and as a page without one."""

import base64
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace

import nbformat
import pytest
import torch
from fake_trace import fake_trace
from nbformat.v4 import new_code_cell, new_notebook

from spcl_lib import HeatmapBank, Views
from spcl_lib.analysis.visibility import visible_fraction
from spcl_lib.system import paths
from spcl_lib.viewer.explorer_page import lattice, write_explorer_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")
TOKEN = "for-this-test-only"
SOON = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def open_page(browser):
    """A page; `page.complaints` are the console's errors."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.complaints = []
    page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    return page


# --- JupyterLab -----------------------------------------------------------------------------------


NOTEBOOK = """
from dataclasses import replace
from fake_trace import fake_trace
from spcl_lib.viewer.explorer import HeatmapExplorer
other = fake_trace("another", epochs=2)
HeatmapExplorer(fake_trace(), replace(other, heatmaps=other.heatmaps // 2))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that shows a notebook with the explorer."""
    home = tmp_path_factory.mktemp("home")
    notebook = new_notebook(cells=[new_code_cell(NOTEBOOK)])
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, home / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [paths.project(), paths.project() / "tests", os.environ.get("PYTHONPATH", "")]
    variables = {"HOME": str(home), "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={home}",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=os.environ | variables, **quiet)
    yield f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?token={TOKEN}"
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def live(browser, lab):
    """The notebook in the browser, all cells run."""
    page = open_page(browser)
    for _ in range(90):  # until the server is there
        with contextlib.suppress(playwright.Error):
            page.goto(lab)
            break
        time.sleep(1)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=90_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".spcl-table tbody tr").first.wait_for(timeout=SOON)
    return page


# --- the page without a kernel --------------------------------------------------------------------


@pytest.fixture(scope="module")
def traces():
    other = fake_trace("another", epochs=2)
    return fake_trace(), replace(other, heatmaps=other.heatmaps // 2)


@pytest.fixture(scope="module")
def static(browser, traces, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "explorer.html"
    write_explorer_page(file, *traces)
    page = open_page(browser)
    page.goto(file.as_uri())
    page.locator(".spcl-table tbody tr").first.wait_for(timeout=SOON)
    return page


@pytest.fixture(params=["live", "static"])
def page(request):
    page = request.getfixturevalue(request.param)
    page.locator(".spcl-stage").scroll_into_view_if_needed()
    return page


def settled(page):
    """Waits until the prediction is that of the crop which is shown; gives all that can be read."""
    page.locator(".spcl-table tbody:not(.spcl-waiting)").wait_for(timeout=SOON)
    return page.evaluate(
        """async () => (await new Promise(requestAnimationFrame), await new Promise(setTimeout), {
            crop: document.querySelector('.spcl-crop').ariaLabel,
            pictures: [...document.querySelectorAll('.spcl-explorer canvas')]
                .map((canvas) => canvas.toDataURL()).join(),
            rows: Object.fromEntries(
                [...document.querySelectorAll('.spcl-table tbody tr')].map((row) =>
                    [row.querySelector('.spcl-name').innerText, row.innerText.split(/\\s+/)])),
        })"""
    )


def changes(page, act, parts=("pictures", "rows")):
    """Acts; gives what is shown then, in which these parts must be others."""
    before = settled(page)
    act()
    deadline = time.monotonic() + 20
    while (after := settled(page)) and any(after[part] == before[part] for part in parts):
        assert time.monotonic() < deadline, f"none of {parts} may stay as it was"
    return after


def box_of(page):
    """x0, y0, x1, y1 of the crop, as a screen reader says them."""
    (x0, x1), (y0, y1) = re.findall(r"[xy] ([\d.]+) to (\d\.\d\d)", settled(page)["crop"])
    return [float(v) for v in (x0, y0, x1, y1)]


def drag(page, place, by):
    """Drags an element with the mouse, by fractions of the picture."""
    place.scroll_into_view_if_needed()
    stage, part = page.locator(".spcl-stage").bounding_box(), place.bounding_box()
    x, y = part["x"] + part["width"] / 2, part["y"] + part["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in (0.5, 1.0):
        page.mouse.move(x + step * by[0] * stage["width"], y + step * by[1] * stage["height"])
    page.mouse.up()


# --- what both do ---------------------------------------------------------------------------------


def test_the_crop_is_dragged_and_resized_on_the_picture(page):
    page.locator(".spcl-whole").click()
    assert box_of(page) == [0, 0, 1, 1]
    changes(page, lambda: drag(page, page.locator(".spcl-se"), (-0.5, -0.4)))
    assert box_of(page) == pytest.approx([0, 0, 0.5, 0.6], abs=0.02)
    changes(page, lambda: drag(page, page.locator(".spcl-crop"), (0.3, 0.2)))
    assert box_of(page) == pytest.approx([0.3, 0.2, 0.8, 0.8], abs=0.02)
    drag(page, page.locator(".spcl-crop"), (0.9, 0.0))  # it stays inside
    assert box_of(page) == pytest.approx([0.5, 0.2, 1, 0.8], abs=0.02)
    drag(page, page.locator(".spcl-nw"), (0.9, 0.9))  # and does not vanish
    assert box_of(page) == pytest.approx([0.94, 0.74, 1, 0.8], abs=0.02)


def test_the_epoch_and_the_class_are_chosen(page):
    page.locator(".spcl-whole").click()
    epoch, text = page.locator(".spcl-epoch"), page.locator(".spcl-epoch-text")
    settled(page)
    assert text.inner_text() == "after epoch 3 of 3"
    changes(page, lambda: epoch.press("ArrowLeft"), ("pictures",))
    assert text.inner_text() == "after epoch 2 of 3"
    epoch.press("ArrowRight")
    other = page.locator(".spcl-table input:not(:checked)").first
    changes(page, other.check, ("pictures",))
    assert page.locator(".spcl-chosen").count() == 1
    name = page.locator(".spcl-chosen .spcl-name").inner_text()
    assert f"“{name}”" in page.locator("figcaption").first.inner_text()


def test_crops_images_and_runs_are_chosen(page):
    changes(page, lambda: page.locator(".spcl-flip").check(), ("pictures",))
    changes(page, lambda: page.locator(".spcl-whole").click(), ("pictures",))
    changes(page, lambda: page.locator(".spcl-next").click())
    assert page.locator(".spcl-image").inner_text().strip().startswith("image 2 of ")
    changes(page, lambda: page.locator(".spcl-before").click())
    first, second = page.locator(".spcl-run option").all_inner_texts()
    for name in (second, first):
        changes(page, lambda: page.locator(".spcl-run").select_option(label=name))  # noqa: B023
    lose = page.locator(".spcl-lose")
    for _ in range(6):  # a crop without the label is not there for every image
        if not lose.is_enabled():
            page.locator(".spcl-next").click()
    changes(page, lose.click, ("pictures", "crop"))
    assert page.complaints == []


# --- what the page does ---------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_library(static, traces):
    """Every number that the table shows, for the crop that it shows."""
    trace, image = traces[0], traces[0].most_corrected()[0]
    static.locator(".spcl-whole").click()
    for key in ["Shift+ArrowLeft"] * 15 + ["Shift+ArrowUp"] * 20 + ["ArrowRight"] * 10:
        static.locator(".spcl-crop").press(key)
    static.locator(".spcl-flip").check()
    shown, boxes, box = settled(static), lattice(), torch.tensor([box_of(static)])
    assert box.tolist() == [pytest.approx([0.2, 0, 0.9, 0.6])]
    view = Views(box, torch.tensor([True]))
    bank = HeatmapBank.of(trace.heatmaps[2], trace.seen[2])
    target, _ = bank.read(torch.tensor([image]), view, 6)
    shares = visible_fraction(trace.region(image)[None], view)[0]
    nearest = int((boxes.boxes - box).abs().sum(1).argmin())
    predicted = trace.predict(image, boxes[nearest : nearest + 1]).sigmoid().amax((2, 3))[0]
    for c, name in enumerate(trace.data.classes):
        words = [word for word in shown["rows"][name] if re.fullmatch(r"[\d.]+", word)]
        numbers = [float(word) for word in words]
        expected = [float(target[0, c].max()), float(predicted[c])]
        assert numbers[-2:] == pytest.approx(expected, abs=0.012)
        if trace.region(image)[c].any():
            assert numbers[-3] == pytest.approx(100 * float(shares[c]), abs=0.51)
    static.locator(".spcl-flip").uncheck()


def test_it_reads_heatmaps_as_the_bank_does(browser, traces):
    page = browser.new_page()
    code = base64.b64encode((paths.PACKAGE / "viewer" / "explorer.js").read_bytes()).decode()
    page.evaluate(f"import('data:text/javascript;base64,{code}').then((m) => {{ window.js = m; }})")
    trace, views = traces[0], Views.sample(20, (0.02, 1.0), generator=torch.manual_seed(1))
    for i in range(20):
        image, c, grid = i % 6, i % 12, (6, 3, 16)[i % 3]
        bank = HeatmapBank.of(trace.heatmaps[1], trace.seen[1])
        target, seen = bank.read(torch.tensor([image]), views[i : i + 1], grid)
        heat, cells = trace.heatmaps[1, image, c], trace.seen[1, image].byte()
        values, mask = page.evaluate(
            """(given) => { const { values, mask } = window.js.readHeatmap(...given);
                return [[...values], [...mask]]; }""",
            [heat.flatten().tolist(), cells.flatten().tolist(), 16, views.boxes[i].tolist(),
             bool(views.flipped[i]), grid],
        )  # fmt: skip
        assert mask == seen.flatten().tolist()
        assert values == pytest.approx(target[0, c].flatten().tolist(), abs=1e-4)
