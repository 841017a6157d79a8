"""The network of a run: at its start, and after its end."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS
from spcl_lib.model import SpatialClassifier, build_backbone
from spcl_lib.pooling import Pooling
from spcl_lib.system import paths
from spcl_lib.system.timm_backbone import PREFIX
from spcl_lib.system.weights import load_weights


def build_network(
    config: RunConfig, num_classes: int, data_root: str | Path | None = None
) -> SpatialClassifier:
    """The network at the start of a run.

    `weights="auto"` means timm's for its models, else `paths.weights`, else torchvision's.
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
    frozen = len(features) if config.trained == "head" else config.frozen
    return SpatialClassifier(features, num_features, num_classes, frozen, _pooling(config))


def checksum_of(backbone: nn.Module) -> str:
    """Changes with any weight of a backbone."""
    digest = hashlib.sha256()
    for tensor in backbone.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def load_network(folder: Path, config: RunConfig, num_classes: int) -> SpatialClassifier:
    """The trained network of the run in `folder`, on the CPU, in evaluation mode."""
    features, num_features = build_backbone(config.backbone, None, config.dilation)
    model = SpatialClassifier(features, num_features, num_classes, pooling=_pooling(config))
    load_weights(model, folder / "weights.safetensors", f"the run's {config.backbone}")
    return model.eval()


def _pooling(config: RunConfig) -> Pooling:
    return METHODS[config.method].pooling(Pooling(config.pooling, config.pooling_strength))
