"""`python -m spcl_lib export`: a file gives the numbers of the run; a wrong file is not kept."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import message_of
from small_folder import make_folder, odd_photographs, train_on

from spcl_lib import Predictor
from spcl_lib.data.images import upright
from spcl_lib.pooling import KINDS as POOLINGS
from spcl_lib.pooling import Pooling
from spcl_lib.runs.export import FORMATS, _squares, export
from spcl_lib.system import paths

IMAGES = torch.randint(0, 256, (3, 3, 50, 70), generator=torch.Generator().manual_seed(0)).byte()


# The whole network on drawn scenes, the whole network on a folder, and the head on features.
KINDS = {
    "scenes": ("scenes", {"train_images": 48, "eval_images": 32}),
    "network": ("folder", {"eval_side": 12, "trained": "network", "pooling": "lse"}),
    "head": ("folder", {"trained": "head", "dilation": 1}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes a finished run of a kind, once; gives its folder."""
    base, made = tmp_path_factory.mktemp("export"), {}
    photos = make_folder(base / "photos", **{"große Eule": 10, "dog": 8})

    def run(kind):
        if kind not in made:
            dataset, settings = KINDS[kind]
            more = ("--dataset", dataset, "--method", "en_scl")
            made[kind] = train_on(photos, base / kind, *more, **settings)
        return made[kind]

    return run


def require(form):
    for name in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        pytest.importorskip(name, reason=f"needs {name}")


def texts_of(form, file):
    """The texts in the file, read without spcl."""
    texts = {"classes": "", "threshold": ""}
    if form == "onnx":
        import onnxruntime

        texts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    else:
        torch.export.load(file, extra_files=texts)
    return {name: json.loads(texts[name]) for name in ("classes", "threshold")}


def outputs_of(form, file, images):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return FORMATS[form][1](file)(images)


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_file_gives_the_numbers_of_predict(kind, form, runs, spcl, tmp_path):
    """`predict` computed in bfloat16, and differed by up to 0.06."""
    require(form)
    file = tmp_path / f"model.{form}"
    done = spcl("export", "--run", runs(kind), "--format", form, "--out", file)
    assert done.status == 0, done.err
    assert str(file) in done.out
    predictor = Predictor.load(runs(kind))
    for images, tolerance in ((IMAGES[..., :16, :16], 1e-5), (IMAGES, 0.01)):  # 0.01: rounding
        scores, heatmaps = outputs_of(form, file, images)
        torch.testing.assert_close(scores, predictor(images), atol=tolerance, rtol=0)
        torch.testing.assert_close(heatmaps, predictor.heatmaps(images), atol=tolerance, rtol=0)
    texts = texts_of(form, file)
    assert texts == {"classes": list(predictor.classes), "threshold": predictor.rule.threshold}


@pytest.mark.parametrize("shape", [(300, 200), (400, 300), (200, 300), (90, 60), (900, 100)])
def test_squares_are_those_of_pillow_whatever_the_shape(shape):
    """Pillow resizes the columns of portraits first: a fifth of the pixels differed."""
    pixels = np.random.RandomState(0).randint(0, 256, (*shape, 3)).astype(np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    found = _squares(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), 64)[0]
    assert (found.permute(1, 2, 0).numpy() != expected).mean() < 0.03  # halves


def test_choices_go_into_the_file(runs, spcl, tmp_path):
    """The best threshold, pooling and size of an evaluation could not be shipped."""
    file = tmp_path / "model.pt2"
    choices = ("--threshold", 0.125, "--pooling", "lse:2", "--size", 32)
    done = spcl("export", "--run", runs("head"), "--format", "pt2", "--out", file, *choices)
    assert done.status == 0, done.err
    predictor = Predictor.load(runs("head"), size=32)
    predictor.model.pooling = Pooling("lse", 2.0)
    torch.testing.assert_close(outputs_of("pt2", file, IMAGES)[0], predictor(IMAGES),
                               atol=2e-3, rtol=0)  # fmt: skip
    assert texts_of("pt2", file)["threshold"] == 0.125


def test_no_device_is_baked_in(runs, tmp_path):
    """A traced file had torch.device("cpu") for mean and std."""
    export(Predictor.load(runs("network")), "pt2", tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2")
    assert {"mean", "std"} <= set(program.graph_signature.buffers)
    assert not [node for node in program.graph.nodes if node.kwargs.get("device")]


def test_every_pooling_has_a_form_as_onnx(tmp_path):
    require("onnx")
    for kind in POOLINGS:
        model = torch.nn.Conv2d(3, 4, 4, 4)
        model.pooling = Pooling(kind)
        assert export(Predictor(model, "abcd", 16), "onnx", tmp_path / kind) < 1e-4


# --- the lines of the documentation ---------------------------------------------------------------


def documented_lines():
    pages = (paths.project() / place / "README.md" for place in ("", "spcl_lib"))
    text = "".join(page.read_text() for page in pages)
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    (lines,) = (block for block in blocks if "onnxruntime" in block)
    return lines


def test_the_documented_lines_read_every_photograph_as_predict_does(tmp_path):
    """Turned, transparent and 16-bit photographs had other answers, by 0.05 to 0.2."""
    names = {}
    exec(documented_lines().replace("import onnxruntime\n", "").partition("session =")[0], names)
    for name in odd_photographs(tmp_path / "odd"):
        with Image.open(tmp_path / "odd" / name) as image:
            expected = np.asarray(upright(image)).transpose(2, 0, 1)[None]
        assert np.array_equal(names["read"](tmp_path / "odd" / name), expected), name


def test_the_documented_lines_give_the_labels_of_predict(runs, tmp_path, monkeypatch):
    require("onnx")
    monkeypatch.chdir(tmp_path)
    predictor = Predictor.load(runs("head"))
    export(predictor, "onnx", tmp_path / "model.onnx")
    odd_photographs(tmp_path)
    names = {}
    exec(documented_lines().replace("photo.jpg", "turned.jpg"), names)
    expected = predictor(tmp_path / "turned.jpg").numpy()
    np.testing.assert_allclose(names["probabilities"], expected, atol=2e-3)
    chosen = (names["probabilities"][0] >= predictor.rule.threshold).nonzero()[0]
    assert names["found"] == [predictor.classes[c] for c in chosen]


# --- what is refused ------------------------------------------------------------------------------


def refuse(run, form, out, **more):
    """The message of a refusal that leaves nothing new in the folder of `out`."""
    before = sorted(out.parent.rglob("*"))
    said = message_of(export, Predictor.load(run), form, out, **more)
    assert sorted(out.parent.rglob("*")) == before
    return said


def test_a_file_that_gives_other_numbers_is_not_kept(runs, tmp_path, monkeypatch):
    def load(file):
        network = torch.export.load(file).module()

        def altered(images):
            scores, heatmaps = network(images)
            heatmaps[0, 0, 0, 0] = torch.nan
            return scores, heatmaps

        return altered

    monkeypatch.setitem(FORMATS, "pt2", (FORMATS["pt2"][0], load))
    assert "would differ" in refuse(runs("network"), "pt2", tmp_path / "model.pt2")


def test_missing_packages_and_a_file_that_is_there_are_named(runs, tmp_path, monkeypatch):
    out = tmp_path / "mine.pt2"
    out.write_text("mine")
    assert "--force" in refuse(runs("network"), "pt2", out)

    def write(network, about, file):
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setitem(FORMATS, "onnx", (write, None))
    said = refuse(runs("network"), "onnx", tmp_path / "model.onnx")
    assert said == "onnx needs onnxscript: pip install onnx onnxscript onnxruntime"
