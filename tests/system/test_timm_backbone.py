"""`backbone=timm:NAME`: features of timm's models as a grid, and one line for every mistake."""

import sys

import pytest
import torch
from refusals import message_of
from small_folder import make_folder

from spcl_lib import Predictor
from spcl_lib.model import MEAN, STD, build_backbone, normalise
from spcl_lib.runs.settings import make_config
from spcl_lib.system.timm_backbone import TimmBackbone
from spcl_lib.system.weights import save_tensors

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="needs timm")


def own_input(model):
    """The images as the model's own weights need them."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (IMAGES / 255 - mean) / std


@torch.no_grad()
def features_of(model):
    model.eval()
    return TimmBackbone(model, MEAN, STD).eval()(normalise(IMAGES))


@pytest.mark.parametrize(
    ("name", "axes"), [("efficientnet", (0, 1, 2, 3)), ("mambaout", (0, 3, 1, 2))]
)
def test_features_are_those_for_the_models_own_normalisation_channels_first(timm, name, axes):
    model = timm.create_model(f"test_{name}").eval()
    with torch.no_grad():
        expected = model.forward_features(own_input(model)).permute(axes)
    torch.testing.assert_close(features_of(model), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("registers", [0, 4])
def test_the_tokens_of_a_transformer_become_a_grid_without_those_that_have_no_place(
    timm, registers
):
    model = timm.create_model("test_vit", img_size=64, reg_tokens=registers).eval()
    with torch.no_grad():
        tokens = model.forward_features(own_input(model))  # class, registers, rows of patches
    assert tokens.shape == (2, 1 + registers + 16, 64)
    expected = tokens[:, 1 + registers :].reshape(2, 4, 4, 64).permute(0, 3, 1, 2)
    torch.testing.assert_close(features_of(model), expected, atol=1e-5, rtol=1e-4)


def test_dilation_makes_the_grid_twice_as_fine(timm):
    features, _ = build_backbone("timm:test_resnet", None, dilation=2)
    with torch.no_grad():
        assert features.eval()(torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)
    said = message_of(build_backbone, "timm:test_vit", None, dilation=2)
    assert "timm cannot make timm:test_vit" in said and "dilation=1" in said


@pytest.mark.parametrize(("name", "classes"), [("test_vit", 0), ("levit_128s", 7)])
def test_weights_come_from_a_file_with_and_without_a_classifier(timm, name, classes, tmp_path):
    file = tmp_path / "w.safetensors"
    saved = timm.create_model(name, num_classes=classes).state_dict()
    save_tensors(saved, file)
    loaded = build_backbone(f"timm:{name}", file)[0][0].model.state_dict()
    assert loaded and all(torch.equal(value, saved[key]) for key, value in loaded.items())


def mistake(**overrides):
    return message_of(make_config, "voc2007", "an", 0, "frozen", {"weights": "none"} | overrides)


def test_a_model_that_cannot_be_made_is_named(timm, monkeypatch):
    assert "'timm:tset_vit'" in mistake(backbone="timm:tset_vit")
    whole = {"backbone": "timm:test_resnet", "trained": "network", "dilation": 1}
    assert "--set frozen=0" in mistake(**whole, frozen=7)
    monkeypatch.setattr(timm, "create_model", lambda *given, **options: open("/no/network"))
    said = message_of(build_backbone, "timm:test_vit", "timm")
    assert "No such file" in said and "--set weights=FILE" in said and "weights=none" in said
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in mistake(backbone="timm:test_vit")


@pytest.mark.parametrize(
    ("name", "more"),
    [("test_resnet", {"trained": "network", "frozen": 0}), ("test_vit", {"trained": "head"})],
)
def test_a_run_trains_it_and_predicts_with_it(timm, name, more, spcl, results, tmp_path):
    root = make_folder(tmp_path / "photos")
    settings = {"backbone": f"timm:{name}", "weights": "none", "image_side": 64, "crop_side": 48,
                "eval_side": 64, "epochs": 2, "start": 1, **more}  # fmt: skip
    folder = ("--dataset", "folder", "--data-root", root, "--profile", "smoke")
    done = spcl("run", *folder, "--method", "en_scl", **settings)
    assert done.status == 0, done.err
    (file,) = results.rglob("metrics.json")
    predictor = Predictor.load(file.parent)
    grid = 2 if name == "test_resnet" else 4
    assert predictor.score_maps(IMAGES).shape == (2, 2, grid, grid)
    larger = Predictor.load(file.parent, size=96).heatmaps(IMAGES)  # transformers take it, too
    assert larger.shape == (2, 2, grid * 3 // 2, grid * 3 // 2)
