"""The site: complete, without anything from elsewhere, nothing executed, and fit for any window."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from spcl_lib.reproduce import site
from spcl_lib.runs.notebooks import notebook_names
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError

HAS_SPHINX = all(find_spec(module) for module in site.PACKAGES)
needs_sphinx = pytest.mark.skipif(not HAS_SPHINX, reason="Sphinx, myst-nb or furo is missing")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ADDRESS = "https://github.com/someone/copy"
WIDTHS = (1280, 800, 400)


class Page(HTMLParser):
    """The links, sources, anchors, figures and text of a page."""

    def __init__(self, file):
        super().__init__()
        self.links, self.sources, self.anchors, self.figures, self.text = [], [], {""}, [], ""
        self.code, self.lists = file.read_text(encoding="utf-8"), []
        self.feed(self.code)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and given.get("href"):
            self.sources.append(given["href"])
        if given.get("src"):
            self.sources.append(given["src"])
        if tag == "img":
            self.figures.append(given)
        if tag == "ol":
            self.lists.append(given.get("class", ""))

    def handle_data(self, data):
        self.text += data


@cache
def read(file):
    return Page(file)


def pages_of(folder):
    return sorted(folder.rglob("*.html"))


def words(text):
    return " ".join(text.split())


def build(out, results, address="", **variables):
    command = [sys.executable, "-m", "spcl_lib", "site", "--out", str(out)]
    command += ["--repository", address] if address else []
    variables = os.environ | {"SPCL_RESULTS": str(results)} | variables
    variables["PYTHONPATH"] = str(paths.project())
    return subprocess.run(
        command, env=variables, cwd=out.parent, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site of a public copy, with an explorer; a kernel that starts would leave a file."""
    folder = tmp_path_factory.mktemp("built")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = ["touch", str(folder / "a kernel was started")]
    spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    (folder / "results").mkdir()
    script = "document.body.append('it works')"
    (folder / "results" / "explorer.html").write_text(f"<body><script>{script}</script></body>")
    jupyter = {"JUPYTER_DATA_DIR": str(folder / "jupyter"), "JUPYTER_PREFER_ENV_PATH": "0"}
    done = build(folder / "site", folder / "results", ADDRESS, **jupyter)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'site' / 'index.html'}\n" and done.stderr == ""
    assert not (folder / "a kernel was started").exists()
    return folder / "site"


# --- what the pages hold --------------------------------------------------------------------------


@needs_sphinx
def test_every_link_and_every_anchor_leads_somewhere(built):
    wrong, checked = [], 0
    for file in pages_of(built):
        for address in (*read(file).links, *read(file).sources):
            path, anchor = urldefrag(address)
            if re.match(r"[a-z]+:", address):
                continue
            target = (file.parent / unquote(path).partition("?")[0]).resolve() if path else file
            there = target.is_file() and built in target.parents
            if there and target.suffix == ".html":
                there = anchor in read(target).anchors
            wrong += [] if there else [(file.name, address)]
            checked += 1
    assert wrong == [] and checked > 1000


@needs_sphinx
def test_nothing_comes_from_elsewhere(built):
    for file in pages_of(built):
        outside = [s for s in read(file).sources if re.match(r"(https?:)?//", s)]
        assert outside == [], file
        assert not re.search(
            r"(import|fetch|src|href)\s*[=(]\s*[\"']?https?:[^\"']*\.js", file.name
        )
    for file in built.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", file.read_text()), file


@needs_sphinx
@pytest.mark.parametrize("name", notebook_names())
def test_a_notebook_is_there_with_its_outputs_and_links(built, name):
    page = read(built / "notebooks" / f"{name}.html")
    notebook = nbformat.read(paths.notebooks() / f"{name}.ipynb", as_version=4)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert len(page.figures) >= sum("image/png" in out.get("data", {}) for out in outputs)
    assert all(figure.get("alt") for figure in page.figures)
    shown = words(page.text)
    for out in outputs:
        if out.output_type == "stream":
            assert words(out["text"]) in shown
    copy = built / "notebooks" / f"{name}.ipynb"
    assert copy.read_bytes() == (paths.notebooks() / f"{name}.ipynb").read_bytes()
    place = f"someone/copy/blob/main/notebooks/{name}.ipynb"
    assert f"https://colab.research.google.com/github/{place}" in page.links
    binder = f"https://mybinder.org/v2/gh/someone/copy/main?labpath=notebooks%2F{name}.ipynb"
    assert binder in page.links and f"{name}.ipynb" in page.links


@needs_sphinx
def test_formulas_are_mathml(built):
    page = read(built / "notebooks" / "00_tour.html")
    assert page.code.count("<math") >= 10 and "<mfrac>" in page.code
    assert "$" not in page.text and "\\frac" not in page.text


@needs_sphinx
def test_names_of_notebooks_and_files_are_links(built):
    links = read(built / "index.html").links
    assert {f"notebooks/{name}.html" for name in notebook_names()} <= set(links)
    assert {"spcl_lib/README.html", "spcl_lib/CHANGELOG.html"} <= set(links)
    assert f"{ADDRESS}/blob/main/LICENSE" in links
    tour = read(built / "notebooks" / "00_tour.html").links
    assert tour.count("03_crop_recovery.html") > 1  # in the contents, and in the text


@needs_sphinx
def test_the_library_is_described(built):
    for name in site.LESSON:
        page = read(built / "api" / f"{name}.html")
        assert f"spcl_lib.{name}" in page.code
        assert not any("alpha" in kind for kind in page.lists), "a 'C.' became a list"
    assert "spcl_lib.bank.HeatmapBank.update" in read(built / "api" / "bank.html").anchors
    assert "spcl_lib.losses.hill" in read(built / "api" / "losses.html").anchors
    assert "spcl_lib.Predictor.load" in read(built / "api" / "predictor.html").anchors


# --- the command ----------------------------------------------------------------------------------


def sources(folder, monkeypatch, repository=None):
    monkeypatch.setenv("SPCL_RESULTS", str(folder / "results"))
    site.write_sources(folder / "source", repository)
    return folder / "source"


def test_without_a_public_copy_there_are_no_links_to_other_sites(tmp_path, monkeypatch):
    source = sources(tmp_path, monkeypatch)
    text = (source / "notebooks" / "00_tour.ipynb").read_text()
    assert "Download" in text and "Colab" not in text and "mybinder" not in text
    page = (source / "explore.md").read_text()
    assert "<iframe" not in page and "04_heatmaps" in page


@pytest.mark.parametrize(
    ("address", "file"),
    [
        (ADDRESS, f"{ADDRESS}/blob/main/LICENSE"),
        (f"{ADDRESS}.git", f"{ADDRESS}/blob/main/LICENSE"),
        ("git@github.com:someone/copy.git", f"{ADDRESS}/blob/main/LICENSE"),
        (f"{ADDRESS}/tree/a/b", f"{ADDRESS}/blob/a/b/LICENSE"),
    ],
)
def test_a_repository_has_one_address(address, file):
    assert site.parse_repository(address).file("LICENSE") == file


@pytest.mark.parametrize("address", ["someone/copy", "https://example.com/a/b", ADDRESS + "?x", ""])
def test_another_address_is_refused(address):
    with pytest.raises(UserError, match="--repository must be https://github.com/OWNER/NAME"):
        site.parse_repository(address)


@pytest.mark.parametrize("remote", [ADDRESS, "https://example.com/someone/copy", None])
def test_the_repository_is_that_of_the_checkout(tmp_path, monkeypatch, remote):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    found = site.known_repository()
    assert (found and found.url) == (remote if remote == ADDRESS else None)


def test_binder_installs_the_library_and_no_cuda():
    folder = paths.project() / ".binder"
    assert os.access(folder / "postBuild", os.X_OK)
    (extra,) = re.findall(r"-e '\.\[(\w+)\]'", (folder / "postBuild").read_text())
    known = tomllib.loads((paths.project() / "pyproject.toml").read_text())["project"]
    assert extra in known["optional-dependencies"]
    assert "  - pytorch-cpu\n  - torchvision\n" in (folder / "environment.yml").read_text()


def test_a_folder_with_something_else_is_left_alone(tmp_path, spcl):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name in ("mine", "file") if HAS_SPHINX else ():
        outcome = spcl("site", "--out", tmp_path / name)
        assert outcome.status == 2 and "holds something else than a site" in outcome.err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_missing_packages_are_named(spcl, monkeypatch):
    monkeypatch.setattr(site, "PACKAGES", {"json": "json", "no_such_module": "no-such-package"})
    outcome = spcl("site")
    assert outcome.status == 2 and "the site needs no-such-package;" in outcome.err
    assert "pip install" in outcome.err


def test_a_wheel_has_no_site(spcl, monkeypatch):
    monkeypatch.setattr(site, "PACKAGES", {})
    monkeypatch.setattr(paths, "checkout", lambda: None)
    assert "run it in a checkout" in spcl("site").err


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A project with one notebook, whose text is given; gives a call that builds its site."""
    project = tmp_path / "project"
    (project / "notebooks" / "reference").mkdir(parents=True)
    (project / "README.md").write_text("# A page\n")
    (project / "LICENSE").touch()
    monkeypatch.setattr(paths, "project", lambda: project)
    monkeypatch.setattr(paths, "notebooks", lambda: project / "notebooks")
    monkeypatch.setattr(site, "LESSON", ("views",))

    def build_small(text):
        notebook = new_notebook(cells=[new_markdown_cell(f"# One\n\n{text}")])
        nbformat.write(notebook, project / "notebooks" / "00_one.ipynb")
        return site.build_site(tmp_path / "out" / "site").parent

    return build_small


@needs_sphinx
@pytest.mark.filterwarnings("ignore")  # Sphinx and its parts use what others call old
def test_a_new_site_replaces_the_old_one_and_a_complaint_leaves_it(small, results):
    out = small("first [licence](../LICENSE)")
    assert "first licence" in read_text(out)  # no repository is known: no link
    (out / "left.html").touch()
    small("second")
    assert "second" in read_text(out) and not (out / "left.html").exists()
    with pytest.raises(UserError, match="Sphinx complains: .*no_such_file.py"):
        small("third, see [this](../no_such_file.py)")
    assert "second" in read_text(out)
    assert [f.name for f in out.parent.iterdir() if not f.name.endswith(".lock")] == ["site"]


def read_text(out):
    return words(Page(out / "notebooks" / "00_one.html").text)


# --- in a browser ---------------------------------------------------------------------------------

# What is wider than the window, and cannot be scrolled by itself.
TOO_WIDE = """() => [...document.querySelectorAll('.main *, header *')].filter(part => {
    const box = part.getBoundingClientRect();
    if (!box.width || box.right <= innerWidth + 1) return false;
    for (let each = part.parentElement; each; each = each.parentElement) {
        if (['auto', 'scroll'].includes(getComputedStyle(each).overflowX)) return false;
        if (getComputedStyle(each).position === 'fixed') return false;
    }
    return getComputedStyle(part).position !== 'fixed';
}).map(part => part.tagName + '.' + part.className + ' ' + part.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is on the PATH")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@needs_sphinx
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_fits_the_window_without_a_complaint(built, browser, width):
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked = [], set()
    page.on("console", lambda m: m.type in ("error", "warning") and said.append(m.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"not there: {request.url}"))
    page.on("request", lambda request: asked.add(request.url.partition(":")[0]))
    for file in pages_of(built):
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, file
        assert page.evaluate(TOO_WIDE) == [], file
    assert said == [] and asked <= {"file", "data"}
    page.close()


@needs_sphinx
def test_the_explorer_is_a_page_and_the_search_finds(built, browser):
    page = browser.new_page()
    page.goto((built / "explore.html").as_uri())
    assert "it works" in page.frame_locator("iframe").locator("body").inner_text()
    page.goto((built / "search.html").as_uri() + "?q=heatmap")
    page.locator("ul.search li a").first.wait_for(timeout=30_000)
    page.close()
