"""`backbone=timm:NAME`: features of timm's models as a grid, and one line for every mistake."""

import sys

import pytest
import torch
from small_folder import make_folder

from spcl_lib import Predictor, UserError
from spcl_lib.model import MEAN, STD, SpatialClassifier, build_backbone, normalise
from spcl_lib.runs.network import build_network
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


# --- features -------------------------------------------------------------------------------------


def test_a_convolutional_model_gives_its_features_for_its_own_normalisation(timm):
    model = timm.create_model("test_efficientnet").eval()
    with torch.no_grad():
        expected = model.forward_features(own_input(model))
    torch.testing.assert_close(features_of(model), expected, atol=1e-5, rtol=1e-4)


def test_channels_that_come_last_become_the_second_axis(timm):
    model = timm.create_model("test_mambaout").eval()
    with torch.no_grad():
        expected = model.forward_features(own_input(model))
    assert expected.shape == (2, 2, 2, 64)
    found = features_of(model)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)


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


@pytest.mark.parametrize("name", ["test_resnet", "densenet121"])
def test_a_frozen_model_has_the_same_features(timm, name):
    """densenet121 has normalisations with an activation inside, right behind convolutions."""
    features, width = build_backbone(f"timm:{name}", None)
    for norm in (m for m in features.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.bias)
    model = SpatialClassifier(features, width, 3, frozen=1).eval()
    with torch.no_grad():
        expected = model.head(features(normalise(IMAGES)))
        torch.testing.assert_close(model(normalise(IMAGES)), expected, atol=1e-3, rtol=1e-3)


def test_a_transformer_takes_other_sizes_than_its_own(timm):
    features, width = build_backbone("timm:test_vit", None)
    with torch.no_grad():
        assert features(torch.zeros(1, 3, 96, 96)).shape == (1, width, 6, 6)


def test_dilation_makes_the_grid_twice_as_fine(timm):
    features, _ = build_backbone("timm:test_resnet", None, dilation=2)
    with torch.no_grad():
        assert features.eval()(torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)
    with pytest.raises(UserError, match="timm cannot make timm:test_vit.*dilation=1"):
        build_backbone("timm:test_vit", None, dilation=2)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "levit_128s"])
@pytest.mark.parametrize("classes", [0, 7])
def test_weights_come_from_a_file_with_and_without_a_classifier(timm, name, classes, tmp_path):
    file = tmp_path / "w.safetensors"
    saved = timm.create_model(name, num_classes=classes).state_dict()
    save_tensors(saved, file)
    loaded = build_backbone(f"timm:{name}", file)[0][0].model.state_dict()
    assert loaded and all(torch.equal(value, saved[key]) for key, value in loaded.items())


def test_weights_of_another_model_are_refused(timm, tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth' do not fit timm:test_vit"):
        build_backbone("timm:test_vit", tmp_path / "w.pth")
    with pytest.raises(UserError, match="'torchvision' does not exist"):
        build_backbone("timm:test_vit", "torchvision")


def test_auto_means_the_weights_of_timm(timm, results, monkeypatch):
    create, asked = timm.create_model, []

    def record(name, pretrained, **options):
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", record)
    config = make_config("voc2007", "an", 0, "frozen", {"backbone": "timm:test_resnet"})
    build_network(config, 20)
    build_network(config.replace(weights="none"), 20)
    assert list(dict.fromkeys(asked)) == [True, False]


def test_weights_that_cannot_be_fetched_say_what_to_do(timm, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="no network.*--set weights=FILE.*weights=none"):
        build_backbone("timm:test_vit", "timm")


# --- mistakes -------------------------------------------------------------------------------------


def mistake(overrides):
    with pytest.raises(UserError) as caught:
        make_config("voc2007", "an", 0, "frozen", {"weights": "none"} | overrides)
    return str(caught.value)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in mistake({"backbone": "timm:test_vit"})


def test_an_unknown_model_is_named(timm):
    assert "'timm:tset_vit'" in mistake({"backbone": "timm:tset_vit"})


def test_one_block_cannot_be_frozen_in_parts(timm):
    cpu = {"backbone": "timm:test_resnet", "trained": "network", "dilation": 1, "frozen": 7}
    assert "--set frozen=0" in mistake(cpu)
    make_config("voc2007", "an", 0, "frozen", cpu | {"trained": "head"})


# --- runs -----------------------------------------------------------------------------------------


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
    if name == "test_vit":
        assert Predictor.load(file.parent, size=96).heatmaps(IMAGES).shape == (2, 2, 6, 6)
    grid = 2 if name == "test_resnet" else 4
    assert predictor.score_maps(IMAGES).shape == (2, 2, grid, grid)
