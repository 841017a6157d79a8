"""The network of a run: at its start, and after its end."""

from __future__ import annotations

from pathlib import Path

import torch

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.model import SpatialClassifier, build_backbone
from spcl_lib.pooling import Pooling
from spcl_lib.system import paths
from spcl_lib.system.errors import UserError
from spcl_lib.system.timm_backbone import PREFIX
from spcl_lib.system.weights import load_weights


def build_network(
    config: RunConfig, num_classes: int, data_root: str | Path | None = None
) -> SpatialClassifier:
    """The network at the start of a run.

    `weights="auto"` means timm's weights for its models. For other backbones it means the file that
    `paths.weights` finds, or torchvision's weights.
    """
    weights: str | Path | None = config.weights
    if weights == "none":
        weights = None
    elif weights == "auto" and config.backbone.startswith(PREFIX):
        weights = "timm"
    elif weights == "auto":
        weights = paths.weights(config.backbone, data_root) or "torchvision"
    torch.manual_seed(config.seed)
    features, num_features = build_backbone(config.backbone, weights, config.dilation)
    if config.backbone.startswith(PREFIX):
        sides = {config.eval_side} | ({config.crop_side} if config.trained == "network" else set())
        for side in sorted(sides):  # now, and not at the first evaluation
            features[0].check(side)
    pooling = _pooling(config)
    frozen = len(features) if config.trained == "head" else config.frozen
    return SpatialClassifier(features, num_features, num_classes, frozen, pooling)


def load_network(folder: Path, config: RunConfig, num_classes: int) -> SpatialClassifier:
    """The trained network of the run in `folder`, on the CPU, in evaluation mode.

    Raises:
        UserError: the weights are missing, damaged, not finite, or from another network.
    """
    features, num_features = build_backbone(config.backbone, None, config.dilation)
    pooling = _pooling(config)
    model = SpatialClassifier(features, num_features, num_classes, pooling=pooling)
    file = folder / "weights.safetensors"
    load_weights(model, file, f"the run's {config.backbone}")
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise UserError(f"'{file}' holds values that are no numbers; run it again with --force")
    return model.eval()


def _pooling(config: RunConfig) -> Pooling:
    return METHODS[config.method].pooling(Pooling(config.pooling, config.pooling_strength))
