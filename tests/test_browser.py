"""The explorer in a real browser: JupyterLab, its kernel, and Chromium without a screen."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from spcl_lib.system import paths

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on the PATH")
TOKEN = "for-this-test-only"
SMALL = "train_images=96 epochs=3 start=1 eval_images=16 pretrain_images=200 pretrain_epochs=1"
LONG = 400_000  # milliseconds; a cell trains two small networks


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
def page(lab):
    """The notebook in the browser, all cells run; `page.complaints` are the console's errors."""
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.complaints = []
        page.on("console", lambda m: m.type == "error" and page.complaints.append(m.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(lab)
        page.locator(".jp-RenderedMarkdown h1").first.wait_for(timeout=90_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        says = page.locator(".spcl-says")
        try:
            says.wait_for(timeout=LONG)
        except playwright.TimeoutError:
            errors = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
            pytest.fail(f"the explorer did not appear: {errors.all_inner_texts()}")
        says.scroll_into_view_if_needed()
        yield page
        browser.close()


def shown(page):
    """The explorer's sentence and the bytes of its picture."""
    script = """async () => {
        const image = document.querySelector('.spcl-picture');
        const bytes = await (await fetch(image.src)).arrayBuffer();
        const hash = await crypto.subtle.digest('SHA-256', bytes);
        return Array.from(new Uint8Array(hash)).join(' ');
    }"""
    return page.locator(".spcl-says").inner_text(), page.evaluate(script)


def changes(page, act):
    """Acts, waits until sentence and picture are others; gives the new sentence."""
    text, picture = shown(page)
    source = page.locator(".spcl-picture").get_attribute("src")
    act()
    script = """([text, source]) => document.querySelector('.spcl-says').innerText !== text
        && document.querySelector('.spcl-picture').src !== source"""
    page.wait_for_function(script, arg=[text, source], timeout=60_000)
    new_text, new_picture = shown(page)
    assert new_text != text and new_picture != picture
    return new_text


def control(page, name):
    """The row of the control with this description."""
    rows = page.locator(".widget-inline-hbox")
    label = page.locator(".widget-label", has_text=name)
    return rows.filter(has=label.get_by_text(name, exact=True)).first


def test_another_class_is_told_and_drawn(page):
    choice = control(page, "class").locator("select")
    current = choice.evaluate("select => select.selectedOptions[0].text")
    other = next(v for v in choice.locator("option").all_inner_texts() if v != current)
    text = changes(page, lambda: choice.select_option(label=other))
    assert f"asks for {other.split(' (')[0]}:" in text


def test_the_epoch_is_moved_with_the_keyboard(page):
    handle = control(page, "epoch").locator(".noUi-handle")
    assert "After epoch 3" in shown(page)[0]
    handle.focus()
    text = changes(page, lambda: handle.press("ArrowLeft"))
    assert "After epoch 2" in text


def test_the_crop_is_moved_with_the_keyboard(page):
    handle = control(page, "x").locator(".noUi-handle").first
    handle.focus()
    for _ in range(3):
        changes(page, lambda: handle.press("ArrowRight"))


def test_a_random_crop_and_another_image(page):
    changes(page, lambda: page.get_by_role("button", name="random crop").click())
    handle = control(page, "image").locator(".noUi-handle")
    handle.focus()
    changes(page, lambda: handle.press("ArrowRight"))
    changes(page, lambda: page.get_by_role("button", name="lose the label").click())


@pytest.mark.parametrize("width", [1500, 1000])
def test_no_control_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 1000})
    script = """() => [...document.querySelectorAll('.widget-vbox .widget-inline-hbox')]
        .filter(row => [...row.children].some(part => part.getBoundingClientRect().right
            > row.closest('.widget-vbox').getBoundingClientRect().right + 1))
        .map(row => row.innerText)"""
    page.wait_for_function(f"() => ({script})().length === 0", timeout=10_000)
    assert control(page, "x").is_visible()


def test_the_console_has_no_error(page):
    assert page.complaints == []
