"""Backbones of timm: its models that keep the places of an image, without their classifiers."""

from __future__ import annotations

import difflib
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

    The tokens of a transformer become a grid, without its class and register tokens.

    Args:
        name: name of the model, for messages.
        model: the model.
        mean: mean of the three colours with which the input has been normalised; the model gets
            its input as its own weights need it.
        std: their standard deviation.
    """

    def __init__(
        self, name: str, model: nn.Module, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.name, self.model = name, model
        own_mean, own_std = (torch.tensor(model.pretrained_cfg[k]) for k in ("mean", "std"))
        # Saved with the weights: another version of timm may say otherwise about this name.
        self.register_buffer("scale", (torch.tensor(std) / own_std).view(3, 1, 1))
        self.register_buffer("shift", ((torch.tensor(mean) - own_mean) / own_std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Gives features (B, D, G, G) of normalised images (B, 3, H, W).

        Raises:
            UserError: the model's features have no places.
        """
        features = self.model.forward_features(images * self.scale + self.shift)
        if isinstance(features, Tensor) and features.ndim == 3:  # (B, tokens, D)
            cells = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
            side = math.isqrt(cells.shape[1])
            if side**2 == cells.shape[1]:
                return cells.transpose(1, 2).unflatten(2, (side, side))
        elif isinstance(features, Tensor) and features.ndim == 4:
            is_last = getattr(self.model, "output_fmt", None) == "NHWC"
            return features.permute(0, 3, 1, 2) if is_last else features
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"{self.name} has no spatial features: it gives {shape}, not one feature vector for "
            "every place of a square image; use another model"
        )

    @torch.no_grad()
    def check(self, side: int) -> None:
        """Tries an image of side x side pixels; the network is in evaluation mode afterwards.

        Raises:
            UserError: the model does not take this size, or its features have no places.
        """
        device = self.scale.device
        try:
            features = self.eval()(torch.zeros(1, 3, side, side, device=device))
        except UserError:
            raise
        except Exception as error:  # timm has no kind of its own for a wrong size
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"{self.name} takes no images of {side} x {side} pixels ({reason}); set "
                f"image_side, crop_side and eval_side to a size that it takes, such as "
                f"{self._closest(side)}"
            ) from error
        if features.shape[1] != self.model.num_features:
            raise UserError(
                f"{self.name} has features of {features.shape[1]} numbers, not the "
                f"{self.model.num_features} that it promises; use another model"
            )

    def _closest(self, side: int) -> int:
        if not getattr(self.model, "dynamic_img_size", False):
            return self.model.pretrained_cfg["input_size"][-1]
        patch = self.model.patch_embed.patch_size[0]
        return max(1, round(side / patch)) * patch


def require_timm_model(name: str) -> ModuleType:
    """Returns the package timm, if it has the model.

    Args:
        name: name with the prefix, such as "timm:resnet50".

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UserError(
            f"the backbone '{name}' needs the package timm: pip install timm"
        ) from error
    model = name.removeprefix(PREFIX)
    if timm.is_model(model):
        return timm
    near = difflib.get_close_matches(model, timm.list_models(), n=3, cutoff=0.5)
    hint = f" Near: {', '.join(PREFIX + n for n in near)}." if near else ""
    raise UserError(
        f"unknown model of timm '{name}'.{hint} timm.list_models() gives the names; this is "
        f"timm {timm.__version__}"
    )


def build_timm_backbone(
    name: str,
    weights: str | Path | None,
    dilation: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[nn.Sequential, int]:
    """The backbone "timm:NAME", as one block; arguments as in `model.build_backbone`.

    Args:
        name: name with the prefix.
        weights: None for random weights, "timm" for timm's own (from its cache, or downloaded), or
            a file with the state dict of the model, with or without its classifier.
        dilation: 2 keeps the resolution of the last stage, if the model has a form for that.
        mean: see TimmBackbone.
        std: see TimmBackbone.

    Raises:
        UserError: see `require_timm_model`; or the weights are missing or do not fit, or the model
            has no dilated form.
    """
    timm = require_timm_model(name)
    if weights == "torchvision":
        raise UserError(
            f"torchvision has no weights for {name}; use weights=auto for timm's own, a file, or "
            "weights=none"
        )
    try:
        model = _create(timm, name.removeprefix(PREFIX), weights == "timm", dilation)
    except UserError:
        raise
    except Exception as error:  # of timm, huggingface_hub or the network; random ones need none
        if weights != "timm":
            raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"timm's weights of {name} could not be loaded ({type(error).__name__}: {reason}); "
            "give a local file: --set weights=FILE, or start from random ones: --set weights=none"
        ) from error
    if weights not in (None, "timm"):
        classifier = model.pretrained_cfg.get("classifier") or ()  # one name, or several
        names = (classifier,) if isinstance(classifier, str) else classifier
        load_weights(model, Path(weights), name, [layer.partition(".")[0] for layer in names])
    return nn.Sequential(TimmBackbone(name, model, mean, std)), model.num_features


def _create(timm: ModuleType, name: str, pretrained: bool, dilation: int) -> nn.Module:
    """The model without classifier; if it can, it takes images of other sizes than its own."""
    form = {"output_stride": 16} if dilation == 2 else {}
    for sizes in ({"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **sizes, **form)
        except (TypeError, AssertionError, NotImplementedError) as error:
            refusal = error  # it does not know one of these settings
    if not form:
        raise refusal
    raise UserError(
        f"{PREFIX}{name} has no dilated form; use another model, or --set dilation=1"
    ) from refusal
