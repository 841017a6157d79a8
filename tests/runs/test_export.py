"""`python -m spcl_lib export`: a file gives the numbers of the run; a wrong file is not kept."""

import importlib.util
import json
import warnings
from dataclasses import replace

import pytest
import torch
from small_folder import QUICK, make_folder

from spcl_lib import Predictor, UserError
from spcl_lib.__main__ import main
from spcl_lib.pooling import KINDS as POOLINGS
from spcl_lib.pooling import Pooling
from spcl_lib.runs import export as module
from spcl_lib.runs.export import FORMATS, Exportable, export

IMAGES = torch.randint(0, 256, (3, 3, 50, 70), generator=torch.Generator().manual_seed(0)).byte()


def settings(**values):
    return [text for k, v in values.items() for text in ("--set", f"{k}={v}")]


# The whole network on drawn scenes, the whole network on a folder, and the head on features.
KINDS = {
    "scenes": ["scenes", *settings(**QUICK, train_images=48, eval_images=32)],
    "network": ["folder", *settings(**QUICK | {"eval_side": 12}, trained="network", pooling="lse")],
    "head": ["folder", *settings(**QUICK, trained="head", dilation=1)],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes a finished run of a kind, once; gives its folder."""
    base, made = tmp_path_factory.mktemp("export"), {}
    photos = make_folder(base / "photos", **{"große Eule": 10, "dog": 8})

    def run(kind):
        if kind not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SPCL_RESULTS", str(base / kind))
                patch.setenv("SPCL_CACHE", str(base / "cache"))
                where = ["--profile", "smoke", "--method", "en_scl", "--data-root", str(photos)]
                assert main(["run", "--dataset", *KINDS[kind], *where]) == 0
            (file,) = (base / kind).rglob("metrics.json")
            made[kind] = file.parent
        return made[kind]

    return run


def require(form):
    for name in FORMATS[form].packages:
        pytest.importorskip(name, reason=f"needs {name}")


def texts_of(form, file):
    """The texts in the file, read without spcl."""
    texts = {"classes": "", "threshold": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own deprecated parts
        if form == "onnx":
            import onnxruntime

            texts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        elif form == "pt2":
            torch.export.load(file, extra_files=texts)
        else:
            torch.jit.load(file, _extra_files=texts)
    return {name: json.loads(texts[name]) for name in ("classes", "threshold")}


def outputs_of(form, file, images):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return FORMATS[form].load(file)(images)


# --- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_file_gives_the_numbers_of_the_run(kind, form, runs, spcl, tmp_path):
    require(form)
    file = tmp_path / f"model.{'pt2' if form == 'pt2' else 'bin'}"
    done = spcl("export", "--run", runs(kind), "--format", form, "--out", file)
    assert done.status == 0, done.err
    assert str(file) in done.out and [f.name for f in tmp_path.iterdir()].count(file.name) == 1

    predictor = Predictor.load(runs(kind))
    predictor.config = predictor.config.replace(amp="off")
    for images, tolerance in ((IMAGES[..., :16, :16], 1e-5), (IMAGES, 0.01)):  # 0.01: rounding
        scores, heatmaps = outputs_of(form, file, images)
        torch.testing.assert_close(scores, predictor(images), atol=tolerance, rtol=0)
        torch.testing.assert_close(heatmaps, predictor.heatmaps(images), atol=tolerance, rtol=0)
    texts = texts_of(form, file)
    assert texts == {"classes": list(predictor.classes), "threshold": predictor.threshold}


def test_every_pooling_has_a_form_as_onnx():
    require("onnx")
    model = torch.nn.Conv2d(3, 4, 4, 4)
    model.pooling = lambda maps: torch.stack([Pooling(kind)(maps) for kind in POOLINGS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert FORMATS["onnx"].convert(Exportable(model, 20, 16).eval(), IMAGES) is not None


def test_a_model_of_timm_is_exported(spcl, results, tmp_path):
    pytest.importorskip("timm", reason="needs timm")
    photos = make_folder(tmp_path / "photos")
    sides = {"image_side": 32, "crop_side": 32, "eval_side": 32, "weights": "none", "epochs": 1}
    spcl("run", "--dataset", "folder", "--data-root", photos, "--profile", "smoke", "--method",
         "an", backbone="timm:test_vit", trained="head", **sides)  # fmt: skip
    done = spcl("export", "--run", results, "--format", "pt2", "--out", tmp_path / "m.pt2")
    assert done.status == 0, done.err


# --- what is refused ------------------------------------------------------------------------------


def refuse(run, form, out, **more):
    """The message of a refusal that leaves nothing new in the folder of `out`."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        export(run, form, out, **more)
    assert sorted(out.parent.rglob("*")) == before and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrong", [2e-3, float("nan")])
def test_a_file_that_gives_other_numbers_is_not_kept(wrong, runs, tmp_path, monkeypatch):
    def load(file):
        network = torch.jit.load(file)

        def altered(images):
            scores, heatmaps = network(images)
            heatmaps[0, 0, 0, 0] += wrong
            return scores, heatmaps

        return altered

    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], load=load))
    out = tmp_path / "out" / "model.ts"
    out.parent.mkdir()
    assert "would differ" in refuse(runs("network"), "torchscript", out)


def test_a_network_that_cannot_be_converted_is_named_with_the_reason(runs, tmp_path, monkeypatch):
    def convert(network, images):
        try:
            raise ValueError("no such operation\nadvice")
        except ValueError as error:
            raise RuntimeError("step 3 of 3 failed") from error

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], convert=convert))
    said = refuse(runs("network"), "pt2", tmp_path / "model.pt2")
    assert "small_resnet has no form as pt2" in said and "no such operation" in said


def test_missing_packages_are_named(runs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec",
                        lambda name: None if name.startswith("onnx") else find(name))  # fmt: skip
    said = refuse(runs("network"), "onnx", tmp_path / "model.onnx")
    assert "pip install onnx onnxscript onnxruntime" in said


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
def test_a_file_name_that_is_no_text_is_taken(form, runs, tmp_path):
    export(runs("scenes"), form, tmp_path / "caf\udce9", False)
    assert (tmp_path / "caf\udce9").is_file()


def test_an_unknown_format_a_folder_and_a_file_that_is_there_are_refused(runs, tmp_path):
    assert "Did you mean 'onnx'" in refuse(runs("network"), "onxn", tmp_path / "m")
    assert "folder" in refuse(runs("network"), "pt2", tmp_path)
    out = tmp_path / "mine.ts"
    out.write_text("mine")
    assert "--force" in refuse(runs("network"), "torchscript", out)
    assert out.read_text() == "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(runs("network"), "torchscript", out, force=True)
        assert torch.jit.load(out)(IMAGES)[0].shape == (3, 2)


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    assert "no metrics.json" in refuse(tmp_path / "none", "pt2", tmp_path / "m.pt2")
