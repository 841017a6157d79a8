"""A trace whose heatmaps are the true masks, so that tests know what the explorer must show."""

import torch

from spcl_lib.data import scenes
from spcl_lib.data.draws import single_label_draw
from spcl_lib.model import SpatialClassifier, build_backbone
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.snapshots import Trace


def fake_trace(name: str = "SCL, seed 0", epochs: int = 3, count: int = 6) -> Trace:
    """An untrained network; the masks are stronger every epoch, and the top rows are never seen."""
    data = scenes.make_scenes(count, "train", 64)
    torch.manual_seed(0)
    backbone = build_backbone("small_resnet", None)
    model = SpatialClassifier(*backbone, len(data.classes)).eval()
    masks = data.regions(torch.arange(count)).float()
    small = torch.nn.functional.adaptive_avg_pool2d(masks, 16)
    heat = [(255 * (e + 1) / epochs * small).to(torch.uint8) for e in range(epochs)]
    seen = torch.ones(epochs, count, 16, 16, dtype=torch.bool)
    seen[0] = False
    seen[:, :, :2] = False
    observed = single_label_draw(data.labels, 0)
    heatmaps, config = torch.stack(heat), make_config("scenes", "scl", 0, "cpu", {"amp": "off"})
    return Trace(name, data, observed, range(1, epochs + 1), heatmaps, seen, model, config)
