"""The explorer in a real browser: in JupyterLab with its kernel, and as a page without one."""

import base64
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch
from fake_trace import fake_trace

from spcl_lib.analysis.visibility import visible_fraction
from spcl_lib.pooling import TEST_POOLINGS
from spcl_lib.system import paths
from spcl_lib.viewer.explorer_page import lattice, source_of, write_explorer_page
from spcl_lib.views import Views

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")
TOKEN = "for-this-test-only"
SMALL = "train_images=96 epochs=3 start=1 eval_images=16"
LONG = 400_000  # milliseconds; a cell trains two small networks
SOON = 60_000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def open_page(browser, **options):
    """A page; `page.complaints` are the console's errors."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 1000}} | options)
    page.complaints = []
    page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    return page


# --- JupyterLab -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A folder with the notebook, set to train for seconds only, and without outputs."""
    folder = tmp_path_factory.mktemp("lab")
    content = json.loads((paths.notebooks() / "04_heatmaps.ipynb").read_text())
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = "".join(cell["source"]) + f'\noverrides = "{SMALL}"\nimages = 16\n'
    (folder / "04_heatmaps.ipynb").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def lab(notebook, tmp_path_factory):
    """Address of a JupyterLab that serves the notebook's folder."""
    home = tmp_path_factory.mktemp("home")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Outputs below the window's edge are in the page too.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    pages = home / "config" / "labconfig"
    pages.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (pages / "page_config.json").write_text(json.dumps(quiet))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "JUPYTER_CONFIG_DIR": home / "config", "JUPYTER_DATA_DIR": home / "data",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings", "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces", "IPYTHONDIR": home / "ipython",
        "SPCL_RESULTS": home / "results",
        "PYTHONPATH": os.pathsep.join([str(paths.project()), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={notebook}",
    ]  # fmt: skip
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    with open(home / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, home / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree/04_heatmaps.ipynb?token={TOKEN}"
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address, server, log):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).read()
            return
        time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def live(browser, lab):
    """The notebook in the browser, all cells run."""
    page = open_page(browser)
    page.goto(lab)
    page.locator(".jp-RenderedMarkdown h1").first.wait_for(timeout=90_000)
    # JupyterLab forgets a command that comes before its kernel is there. So ask until a cell runs.
    started = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"\[[*\d]+\]"))
    for _ in range(10):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(playwright.TimeoutError):
            started.first.wait_for(timeout=10_000)
            break
    try:
        page.locator(".spcl-says").wait_for(timeout=LONG)
    except playwright.TimeoutError:
        errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
        pytest.fail(f"the explorer did not appear: {errors.all_inner_texts()}")
    return page


# --- the page without a kernel --------------------------------------------------------------------


@pytest.fixture(scope="module")
def traces():
    return fake_trace(), fake_trace("another", epochs=2)


@pytest.fixture(scope="module")
def file(traces, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "explorer.html"
    write_explorer_page(file, *traces)
    return file.as_uri()


@pytest.fixture(scope="module")
def static(browser, file):
    page = open_page(browser)
    page.goto(file)
    page.locator(".spcl-says").wait_for(timeout=SOON)
    return page


@pytest.fixture(params=["live", "static"])
def page(request):
    page = request.getfixturevalue(request.param)
    page.locator(".spcl-panels").scroll_into_view_if_needed()
    return page


def settled(page):
    """Waits until the prediction is that of the crop which is shown; gives all that can be read."""
    page.locator("tbody:not(.spcl-waiting)").first.wait_for(timeout=SOON)
    return page.evaluate(
        """async () => (await new Promise(requestAnimationFrame), await new Promise(setTimeout), {
            says: document.querySelector('.spcl-says').innerText,
            why: document.querySelector('.spcl-why').innerText,
            pictures: [...document.querySelectorAll('.spcl-explorer canvas')]
                .map((canvas) => canvas.toDataURL()).join(),
            rows: Object.fromEntries(
                [...document.querySelectorAll('.spcl-table tbody tr')].map((row) =>
                    [row.querySelector('.spcl-name').innerText, row.innerText.split(/\\s+/)])),
        })"""
    )


def changes(page, act, parts=("says", "pictures", "rows")):
    """Acts; gives what is shown then, in which these parts must be others."""
    before = settled(page)
    act()
    page.wait_for_function(
        "text => document.querySelector('.spcl-says').innerText !== text", arg=before["says"]
    )
    after = settled(page)
    for part in parts:
        assert after[part] != before[part], part
    return after


def box_of(says):
    """x0, y0, x1, y1 of the crop, from the sentence."""
    (x0, x1), (y0, y1) = re.findall(r"[xy] ([\d.]+) to (\d\.\d\d)", says)
    return [float(v) for v in (x0, y0, x1, y1)]


def drag(page, place, by):
    """Drags an element with the mouse, by fractions of the picture."""
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
    assert box_of(settled(page)["says"]) == [0, 0, 1, 1]
    smaller = changes(page, lambda: drag(page, page.locator(".spcl-se"), (-0.5, -0.4)))
    assert box_of(smaller["says"]) == pytest.approx([0, 0, 0.5, 0.6], abs=0.02)
    moved = changes(page, lambda: drag(page, page.locator(".spcl-crop"), (0.3, 0.2)))
    assert box_of(moved["says"]) == pytest.approx([0.3, 0.2, 0.8, 0.8], abs=0.02)
    drag(page, page.locator(".spcl-crop"), (0.9, 0.0))  # it stays inside
    assert box_of(settled(page)["says"]) == pytest.approx([0.5, 0.2, 1, 0.8], abs=0.02)
    drag(page, page.locator(".spcl-nw"), (0.9, 0.9))  # and does not vanish
    assert box_of(settled(page)["says"]) == pytest.approx([0.94, 0.74, 1, 0.8], abs=0.02)


def test_the_crop_is_moved_and_resized_with_the_keyboard(page):
    page.locator(".spcl-whole").click()
    crop = page.locator(".spcl-crop")
    crop.focus()
    smaller = changes(page, lambda: [crop.press("Shift+ArrowLeft") for _ in range(15)])
    assert box_of(smaller["says"]) == [0, 0, 0.7, 1]
    moved = changes(page, lambda: [crop.press("ArrowRight") for _ in range(10)])
    assert box_of(moved["says"]) == [0.2, 0, 0.9, 1]
    assert crop.get_attribute("aria-label") == "Crop x 0.20 to 0.90, y 0.00 to 1.00"
    crop.press("ArrowUp")  # the crop is as high as the image
    assert box_of(settled(page)["says"]) == [0.2, 0, 0.9, 1]


def test_the_epochs_play_to_the_last(page):
    page.locator(".spcl-whole").click()
    play = page.locator(".spcl-play")
    seen = {settled(page)["pictures"]}
    assert "After epoch 3," in page.locator(".spcl-says").inner_text()
    play.click()
    page.wait_for_function("document.querySelector('.spcl-says').innerText.includes('epoch 1,')")
    assert "stop" in play.inner_text()
    seen.add(settled(page)["pictures"])
    page.wait_for_function("document.querySelector('.spcl-says').innerText.includes('epoch 2,')")
    seen.add(settled(page)["pictures"])
    page.wait_for_function("document.querySelector('.spcl-play').innerText.includes('play')")
    assert "After epoch 3," in settled(page)["says"] and len(seen) == 3
    earlier = changes(page, lambda: page.locator(".spcl-epoch").press("ArrowLeft"))
    assert "After epoch 2," in earlier["says"]
    page.locator(".spcl-epoch").press("ArrowRight")


def test_several_classes_are_drawn_at_once(page):
    before = settled(page)
    chosen = page.locator(".spcl-table input:checked")
    assert chosen.count() == 1 and page.locator(".spcl-ramp").count() == 1
    page.locator(".spcl-table input:not(:checked)").first.check()
    after = settled(page)
    assert chosen.count() == 2 and page.locator(".spcl-ramp").count() == 2
    assert after["pictures"] != before["pictures"]
    names = page.locator(".spcl-chosen .spcl-name").all_inner_texts()
    assert all(f"{name} " in after["says"] for name in names)
    for _ in range(4):
        page.locator(".spcl-table input:not(:checked)").first.check()
    assert chosen.count() == 4
    for _ in range(3):
        page.locator(".spcl-table input:checked").first.uncheck()


def test_crops_images_and_runs_are_chosen(page):
    changes(page, lambda: page.locator(".spcl-random").click())
    page.locator(".spcl-whole").click()
    changes(page, lambda: page.locator(".spcl-flip").check(), ("says", "pictures"))
    changes(page, lambda: page.locator(".spcl-next").click())
    assert page.locator(".spcl-image").input_value() == "2"
    changes(page, lambda: page.locator(".spcl-before").click())
    first, second = page.locator(".spcl-run option").all_inner_texts()
    for name in (second, first):
        changes(page, lambda: page.locator(".spcl-run").select_option(label=name), ("says",))  # noqa: B023
    lose = page.locator(".spcl-lose")
    assert lose.is_enabled() or "no crop without the label" in lose.get_attribute("title")


def test_nothing_was_wrong_in_the_console(page):
    assert page.complaints == []


# --- what the page does ---------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_library(static, traces):
    """Every number that the table shows, for the crop that it shows."""
    trace = traces[0]
    static.locator(".spcl-order").select_option(label="in order")
    static.locator(".spcl-whole").click()
    drag(static, static.locator(".spcl-nw"), (0.25, 0.3))
    static.locator(".spcl-flip").check()
    shown, boxes = settled(static), lattice()
    x0, y0, x1, y1 = box_of(shown["says"])
    exact = static.evaluate("""() => { const s = document.querySelector('.spcl-crop').style;
        return [s.left, s.top, s.width, s.height].map((v) => parseFloat(v) / 100) }""")
    box = torch.tensor([[exact[0], exact[1], exact[0] + exact[2], exact[1] + exact[3]]])
    assert box[0].tolist() == pytest.approx([x0, y0, x1, y1], abs=0.006)
    view = Views(box, torch.tensor([True]))
    target, seen = trace.bank(2, 0).read(torch.tensor([0]), view, 6)
    presence = trace.model.pooling.presence(target, seen)[0]
    shares = visible_fraction(trace.region(0)[None], view)[0]
    overlap = (torch.minimum(boxes.boxes[:, 2:], box[:, 2:])
               - torch.maximum(boxes.boxes[:, :2], box[:, :2])).clamp(min=0).prod(1)  # fmt: skip
    sizes = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]).prod(1)
    both = sizes + (box[:, 2:] - box[:, :2]).prod() - overlap
    nearest = int((overlap / both).argmax())
    predicted = trace.model.pooling(trace.predict(0, boxes[nearest : nearest + 1])).sigmoid()[0]
    assert "nearest of the 51" in shown["says"]
    for c, name in enumerate(trace.data.classes):
        words = [word for word in shown["rows"][name] if re.fullmatch(r"[\d.]+", word)]
        numbers = [float(word) for word in words]
        assert numbers[-2:] == pytest.approx(
            [float(p[c]) for p in (presence, predicted)], abs=0.012
        )
        if trace.region(0)[c].any():
            assert numbers[-3] == pytest.approx(100 * float(shares[c]), abs=0.51)
    static.locator(".spcl-flip").uncheck()


def test_a_finger_drags_the_crop(browser, file):
    page = open_page(browser, viewport={"width": 400, "height": 800}, has_touch=True)
    page.goto(file)
    page.locator(".spcl-whole").click()
    page.locator(".spcl-stage").scroll_into_view_if_needed()
    drag(page, page.locator(".spcl-se"), (-0.5, -0.5))
    before = box_of(settled(page)["says"])
    part = page.locator(".spcl-crop").bounding_box()
    x, y = part["x"] + part["width"] / 2, part["y"] + part["height"] / 2
    fingers = page.context.new_cdp_session(page)
    for kind, dx in (("touchStart", 0), ("touchMove", 20), ("touchMove", 60), ("touchEnd", None)):
        points = [] if dx is None else [{"x": x + dx, "y": y}]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    after = box_of(settled(page)["says"])
    assert after[0] > before[0] + 0.05 and after[1] == before[1]
    assert page.complaints == []
    page.close()


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_nothing_is_cut_off(static, width):
    static.set_viewport_size({"width": width, "height": 900})
    script = """() => [...document.querySelectorAll('.spcl-explorer *')].filter((part) => {
            const { left, right, width } = part.getBoundingClientRect();
            const text = part.matches('button, p, th, small, label, output, figcaption');
            return width && (left < 0 || right > document.documentElement.clientWidth
                || (text && part.clientWidth && part.scrollWidth > part.clientWidth + 1));
        }).map((part) => part.outerHTML.slice(0, 120))"""
    assert static.evaluate(script) == []
    height = static.locator(".spcl-stage canvas").bounding_box()["height"]
    assert height > 250
    static.set_viewport_size({"width": 1280, "height": 1000})


# --- its functions --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(browser):
    """Calls an exported function of explorer.js: `script("presence", arguments...)`."""
    page = browser.new_page()
    code = base64.b64encode(source_of("explorer.js").encode()).decode()
    page.evaluate(f"import('data:text/javascript;base64,{code}').then((m) => {{ window.js = m; }})")

    def call(name, *arguments):
        return page.evaluate(
            """([name, list]) => {
                const out = window.js[name](...list);
                const plain = (v) => (ArrayBuffer.isView(v) ? Array.from(v) : v);
                return out && out.mask ? { values: plain(out.values), mask: plain(out.mask) }
                    : plain(out);
            }""",
            [name, list(arguments)],
        )

    return call


def test_it_reads_heatmaps_as_the_bank_does(script, traces):
    trace, views = traces[0], Views.sample(20, (0.02, 1.0), generator=torch.manual_seed(1))
    for i in range(20):
        image, c, grid = i % 6, i % 12, (6, 3, 16)[i % 3]
        target, seen = trace.bank(1, image).read(torch.tensor([0]), views[i : i + 1], grid)
        heat, cells = trace.heatmaps[1, image, c], trace.seen[1, image].byte()
        found = script(
            "readHeatmap", heat.flatten().tolist(), cells.flatten().tolist(), 16,
            views.boxes[i].tolist(), bool(views.flipped[i]), grid,
        )  # fmt: skip
        assert found["mask"] == seen.flatten().tolist()
        assert found["values"] == pytest.approx(target[0, c].flatten().tolist(), abs=1e-4)


@pytest.mark.parametrize("pooling", TEST_POOLINGS, ids=str)
def test_it_pools_as_the_model_does(script, pooling):
    generator = torch.manual_seed(2)
    for share in (0.0, 0.3, 1.0):
        cells = torch.rand(1, 1, 5, 5, generator=generator) ** 3
        mask = (torch.rand(1, 1, 5, 5, generator=generator) < share).float()
        expected = float(pooling.presence(cells, mask)[0, 0])
        found = script("presence", cells.flatten().tolist(), mask.flatten().tolist(),
                       [pooling.kind, pooling.effective_strength])  # fmt: skip
        assert found == (pytest.approx(expected, abs=1e-4) if share else None)


def class_of(name="dog", target=0.5, prediction=0.5, visible=0.8, final=0.5):
    return {"name": name, "target": target, "prediction": prediction, "visible": visible,
            "final": final}  # fmt: skip


CAT = class_of("cat", 0.04, 0.3, 0.0)


@pytest.mark.parametrize(
    ("change", "label", "classes", "expected"),
    [
        ({}, CAT, [], "The label, cat, is outside this crop: AN still teaches “cat” here; SCL asks "
         "for 0.04 instead."),
        ({}, class_of("cat", 0.8, 0.8, 0.05), [], "The label, cat, is almost outside this crop: AN "
         "still teaches “cat” here, and so does its heatmap, with 0.80."),
        ({}, class_of("cat"), [class_of()], "Target and prediction agree on dog."),
        ({}, None, [class_of(target=0.9)], "the heatmap remembers dog from other crops"),
        ({"usual": 0.8}, None, [class_of(target=0.9)], "they ask for about 0.80 of every class"),
        ({}, None, [class_of(target=0.9, visible=0.0)], "bright beyond the borders"),
        ({}, None, [class_of(target=0.1)], "an average over earlier crops"),
        ({}, None, [class_of(target=0.1, visible=0.0)], "the network is wrong"),
        ({}, class_of("cat", 0.1, 0.1, None), [], "hardly in this crop, says its heatmap"),
        ({"seen": 0}, None, [class_of(target=None)], "there is no target yet"),
        ({"seen": 0.4}, None, [class_of()], "Only 40 % of these cells had been seen."),
        ({"averaged": False}, None, [class_of()], "keeps no heatmaps"),
        ({"isLast": False}, None, [class_of(target=0.9)], "By the last epoch the target is 0.50"),
    ],
)  # fmt: skip
def test_it_says_why_target_and_prediction_differ(script, change, label, classes, expected):
    shown = {
        "box": [0, 0, 0.5, 1], "flipped": True, "epoch": 7, "isLast": True, "averaged": True,
        "seen": 1, "usual": 0.1, "remark": "", "label": label, "classes": classes,
    } | change  # fmt: skip
    says, why = script("describe", shown)
    assert says.startswith("Crop x 0.00 to 0.50, y 0.00 to 1.00, flipped. After epoch 7, ")
    assert expected in why
    if len(classes) == 1 and classes[0]["target"]:
        target = classes[0]["target"]
        assert f"{target:.2f}, the finished network predicts 0.50" in says
