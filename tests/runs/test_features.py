"""Features of whole images, computed once, and training of the head alone."""

import pytest
import torch
from safetensors.torch import load_file
from small_voc import voc_ids

from spcl_lib.config import RunConfig
from spcl_lib.evaluate import precision_recall, predict_maps
from spcl_lib.model import SpatialClassifier, build_backbone, normalise
from spcl_lib.runs import features
from spcl_lib.runs.features import inputs_of
from spcl_lib.runs.network import build_network, load_network
from spcl_lib.runs.run import _short, run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_data, load_splits
from spcl_lib.runs.store import run_folder
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.train import maps_of_views
from spcl_lib.views import Views

SMALL = {
    "weights": "none", "image_side": 64, "crop_side": 48, "eval_side": 64, "epochs": 3, "batch": 4,
    "start": 1, "ramp": 1.0, "bank_size": 4, "eval_every": 1,
}  # fmt: skip


@pytest.fixture
def config(results, voc, tmp_path, monkeypatch):
    """A small run that trains only the head; the features are in a cache of its own."""
    monkeypatch.setenv("SPCL_CACHE", str(tmp_path / "cache"))
    return identify_data(make_config("voc2007", "en_scl", 0, "frozen", SMALL), voc)


@pytest.fixture
def given(config, voc):
    """What the features are computed from."""
    return build_network(config, 20, voc), load_splits(config, voc)[0], config


def test_features_are_those_of_the_network_and_computed_once(given, monkeypatch):
    model, data, _ = given
    maps = predict_maps(model, data.images, 64, "off")
    known = inputs_of(*given).images
    every = known[torch.arange(6)]
    assert every.dtype == torch.bfloat16 and every.shape == (6, 1280, 4, 4)
    assert torch.allclose(predict_maps(model, known, 64, "off"), maps, atol=0.05, rtol=0.02)
    assert not any(p.requires_grad for p in model.features.parameters())
    monkeypatch.setattr(features, "_compute", lambda *given: pytest.fail("computed again"))
    assert torch.equal(inputs_of(*given).images[torch.arange(6)], every)


def test_scenes_start_from_the_kept_weights(results):
    kept = load_file(paths.reference() / "small_resnet.safetensors")
    found = build_network(make_config("scenes", "an"), 12).features.state_dict()
    assert found.keys() == kept.keys()
    assert all(torch.equal(value.to(kept[name]), kept[name]) for name, value in found.items())


def test_other_weights_or_other_images_have_other_features(given, monkeypatch):
    model, data, config = given
    inputs_of(*given)
    with torch.no_grad():
        next(model.features.parameters()).add_(1)
    inputs_of(*given)
    inputs_of(model, data.subset(torch.tensor([1, 0])), config)
    monkeypatch.setattr(features, "stamp", lambda file: ("edited in place",))
    inputs_of(*given)
    assert len(list(paths.cache().glob("features-voc2007-*.pt"))) == 4


def test_another_size_or_dilation_has_other_features(given, voc):
    *_, config = given
    inputs_of(*given)
    for more in ({"dilation": 1}, dict.fromkeys(("image_side", "crop_side", "eval_side"), 32)):
        other = config.replace(**more)
        found = inputs_of(build_network(other, 20, voc), load_splits(other, voc)[0], other).images
        assert found.cells.shape == (6, 2, 2, 1280)


def test_too_many_features_are_refused(given, monkeypatch):
    monkeypatch.setenv("SPCL_CACHE_GB", "0.0001")
    with pytest.raises(UserError, match="SPCL_CACHE_GB.*--profile cpu"):
        inputs_of(*given)


def test_the_head_and_a_crop_change_places():
    """Cropping the head's maps gives what the head makes of cropped features."""
    torch.manual_seed(0)
    model = SpatialClassifier(torch.nn.Sequential(torch.nn.Identity()), 6, 3)
    config = RunConfig(image_side=64, crop_side=48, eval_side=64, trained="head", amp="off")
    known = torch.randn(4, 6, 8, 8).contiguous(memory_format=torch.channels_last)
    views = Views.sample(4, generator=torch.Generator().manual_seed(1))
    maps = maps_of_views(model, known, views, config)
    assert maps.shape == (4, 3, 6, 6)
    assert torch.allclose(maps, model.head(views.crop(known, 6)), atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet50"])
def test_a_dilated_stage_gives_the_same_cells_and_those_between(backbone):
    torch.manual_seed(0)
    usual, _ = build_backbone(backbone, None)
    dilated, _ = build_backbone(backbone, None, dilation=2)
    dilated.load_state_dict(usual.state_dict())
    images = normalise(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))
    with torch.no_grad():
        coarse, fine = usual.eval()(images), dilated.eval()(images)
    assert coarse.shape[-1] == 3 and fine.shape[-1] == 6
    assert torch.allclose(fine[..., ::2, ::2], coarse, atol=1e-4 * coarse.abs().max())


def test_a_run_trains_the_head_only_and_can_predict(config, voc):
    metrics = run(config, voc)
    start = build_network(config, 20, voc)
    trained = load_network(run_folder(config), config, 20)
    for (name, before), after in zip(
        start.state_dict().items(), trained.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after) != name.startswith("head."), name
    assert metrics["mAP_by_pooling"]["mean"] == metrics["mAP"]
    assert metrics["report_images"] == len(voc_ids()["val"])
    scores = load_file(run_folder(config) / "scores.safetensors")["scores"]
    chosen, report = scores >= metrics["threshold"], load_splits(config, voc)[1]
    assert metrics["at_threshold"] == precision_recall(chosen, report.labels)
    assert "steps are few; more epochs are often better" in metrics["warnings"][-1]
    (early, _), usual = (_short(config.replace(start=start), range(9)) for start in (3, 1))
    assert "averages count after 3 epochs; this run made 3" in early and len(usual) == 1
