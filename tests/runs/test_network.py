"""The scenes' backbone comes with the package, with the recipe that made it."""

import torch
from safetensors.torch import load_file

from spcl_lib.model import build_backbone, normalise
from spcl_lib.runs.network import build_network
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

FILE = paths.notebooks() / "reference" / "small_resnet.safetensors"


def right_by_nearest_mean(make, backbone):
    """Share of glyph images whose features are nearest to the mean of their own glyph's."""
    images, glyphs = make.make_glyphs(1500, seed=1)
    with torch.no_grad():
        features = backbone.eval()(normalise(images)).mean((2, 3))
    features = torch.nn.functional.normalize(features - features.mean(0))
    known = glyphs[:1000]
    means = torch.stack([features[:1000][known == g].mean(0) for g in known.unique()])
    nearest = known.unique()[(features[1000:] @ means.T).argmax(1)]
    return (nearest == glyphs[1000:]).double().mean()


def test_scenes_start_from_the_kept_weights_which_know_shapes(make):
    model = build_network(make_config("scenes", "an"), 12)
    kept = load_file(FILE)
    assert kept.keys() == model.features.state_dict().keys()
    assert all(torch.equal(v.to(kept[k]), kept[k]) for k, v in model.features.state_dict().items())
    torch.manual_seed(0)
    untrained = right_by_nearest_mean(make, build_backbone("small_resnet", None)[0])
    assert right_by_nearest_mean(make, model.features) > 3 * untrained


def test_the_recipe_makes_such_a_file(make, tmp_path):
    assert 0 <= make.backbone(tmp_path / "made", images=200, epochs=1) <= 100
    made, kept = load_file(tmp_path / "made"), load_file(FILE)
    assert made.keys() == kept.keys()
    assert all((made[k].shape, made[k].dtype) == (kept[k].shape, kept[k].dtype) for k in kept)
