"""Backbones of timm: its models that keep the places of an image, without their classifiers."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from spcl_lib.system.errors import UserError
from spcl_lib.system.weights import load_weights

PREFIX = "timm:"


class TimmBackbone(nn.Module):
    """A model of timm that maps images (B, 3, H, W) to features (B, D, G, G).

    The images have been normalised with `mean` and `std`; it gets them as its own weights need.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        own_mean, own_std = (torch.tensor(model.pretrained_cfg[k]) for k in ("mean", "std"))
        # Saved with the weights: another version of timm may say otherwise about this name.
        self.register_buffer("scale", (torch.tensor(std) / own_std).view(3, 1, 1))
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Gives features (B, D, G, G) of normalised images (B, 3, H, W)."""
        features = self.model.forward_features(images * self.scale + self.shift)
        if features.ndim == 3:  # (B, tokens, D); class and register tokens come first
            cells = features[:, getattr(self.model, "num_prefix_tokens", 0) :].mT
            return cells.unflatten(2, (math.isqrt(cells.shape[2]), -1))
        is_last = getattr(self.model, "output_fmt", None) == "NHWC"
        return features.permute(0, 3, 1, 2) if is_last else features


def require_timm_model(name: str) -> ModuleType:
    """Returns the package timm, if it has the model "timm:NAME"."""
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(f"backbone '{name}' needs the package timm: pip install timm") from error
    if timm.is_model(name.removeprefix(PREFIX)):
        return timm
    raise UserError(f"unknown model of timm '{name}'; timm.list_models() gives the names")


def build_timm_backbone(
    name: str,
    weights: str | Path | None,
    dilation: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[nn.Sequential, int]:
    """The backbone "timm:NAME" as one block, and its number of features; see `build_backbone`.

    A file of weights may have the model's classifier.
    """
    timm = require_timm_model(name)
    model = _create(timm, name, weights == "timm", {"output_stride": 16} if dilation == 2 else {})
    if weights not in (None, "timm"):
        classifier = model.pretrained_cfg.get("classifier") or ()  # one name, or several
        names = (classifier,) if isinstance(classifier, str) else classifier
        load_weights(model, Path(weights), name, [layer.partition(".")[0] for layer in names])
    return nn.Sequential(TimmBackbone(model, mean, std)), model.num_features


def _create(timm: ModuleType, name: str, pretrained: bool, form: dict[str, int]) -> nn.Module:
    """The model without classifier; if it can, it takes images of other sizes than its own."""
    settings = {"pretrained": pretrained, "num_classes": 0, **form}
    try:
        try:
            return timm.create_model(name.removeprefix(PREFIX), dynamic_img_size=True, **settings)
        except TypeError:  # it does not know this setting
            return timm.create_model(name.removeprefix(PREFIX), **settings)
    except Exception as error:  # of timm, huggingface_hub or the network
        raise UserError(
            f"timm cannot make {name} ({' '.join(str(error).split())[:200]}); without its weights: "
            "--set weights=FILE or weights=none; without a dilated form: --set dilation=1"
        ) from error
