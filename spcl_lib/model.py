"""SpatialClassifier: backbone -> 1x1 convolution -> score maps -> pooling -> logits."""

import contextlib
import copy
import functools
import itertools
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spcl_lib.pooling import MEAN_POOLING, Pooling
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.shapes import require_tensor
from spcl_lib.system.weights import load_backbone

# Whole images (N, 3, S, S) uint8, or their features (N, D, G, G): a tensor, or what is indexed so.
Images = Any
AMP = ("auto", "bfloat16", "off")
BACKBONES = ("small_resnet", "mobilenet_v2", "resnet18", "resnet50")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as in torchvision's weights


class SpatialClassifier(nn.Module):
    """A fully convolutional classifier whose output keeps its spatial axes.

    The mean of the score maps equals the result of global average pooling and a linear layer. So a
    pretrained classification backbone fits unchanged.

    `features` maps images (B, 3, H, W) to features (B, D, G, G). Its first `frozen` blocks do not
    change, batch statistics included. `pooling` makes logits of the score maps.
    """

    def __init__(
        self,
        features: nn.Sequential,
        num_features: int,
        num_classes: int,
        frozen: int = 0,
        pooling: Pooling = MEAN_POOLING,
    ) -> None:
        super().__init__()
        self.features, self.frozen, self.pooling = features, frozen, pooling
        self.head = nn.Conv2d(num_features, num_classes, kernel_size=1)
        self.features[:frozen].requires_grad_(False)
        for layer in self.features[frozen:].modules():
            if type(layer) is nn.Conv2d and layer.groups > 1 and layer.stride != (1, 1):
                layer.__class__ = _StridedDepthwise  # keeps the weights and their names

    def train(self, mode: bool = True) -> Self:
        """Sets the training mode of all blocks except the frozen ones."""
        super().train(mode)
        self.features[: self.frozen].eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Gives score-map logits f (B, C, G, G) of normalised images (B, 3, H, W)."""
        require_tensor("images", images, ("B", 3, "H", "W"), "float")
        if not torch.is_autocast_enabled(images.device.type):
            images = images.to(self.head.weight.dtype)
        if self.frozen == 0 or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.head(self.features(images))
        with torch.no_grad():
            blocks = merge_normalisation(self.features[: self.frozen])  # takes half their time
            images = blocks.to(memory_format=torch.channels_last)(images)
        return self.head(self.features[self.frozen :](images))

    def classify(self, features: Tensor) -> Tensor:
        """Gives score-map logits f (B, C, G, G) of features (B, D, G, G) in channels-last order.

        A 1x1 convolution is a linear layer on every cell. The linear form is faster on a CPU.
        """
        if not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.head.weight.dtype)
        cells = features.permute(0, 2, 3, 1)  # (B, G, G, D)
        return F.linear(cells, self.head.weight.flatten(1), self.head.bias).permute(0, 3, 1, 2)


def merge_normalisation(blocks: nn.Module) -> nn.Module:
    """A copy for evaluation, where convolutions do the work of the normalisation after them."""
    blocks = copy.deepcopy(blocks).eval()
    for part in [m for m in blocks.modules() if isinstance(m, nn.Sequential)]:
        for place, (layer, following) in enumerate(itertools.pairwise(list(part))):
            # Subclasses, such as timm's, may also contain an activation or change the weights.
            plain = type(layer) in (nn.Conv2d, _StridedDepthwise)
            if plain and type(following) is nn.BatchNorm2d:
                part[place] = fuse_conv_bn_eval(layer, following)
                part[place + 1] = nn.Identity()
    return blocks


class _StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride: in bfloat16, a CPU needs 7 times as long for it."""

    def forward(self, x: Tensor) -> Tensor:
        """As in Conv2d."""
        if not (x.requires_grad and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut: (B, inputs, H, W) -> (B, outputs, H / s, W / s)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gives the block's features."""
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def small_resnet() -> nn.Sequential:
    """The scenes' backbone: (B, 3, 64, 64) -> (B, 128, 8, 8), about 0.3 million weights."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        ResidualBlock(32, 64, 2),
        ResidualBlock(64, 128, 2),
    )


def build_backbone(
    name: str, weights: str | Path | None, dilation: int = 1
) -> tuple[nn.Sequential, int]:
    """A backbone without its pooling and classifier, and its number of output features D.

    Its name is one of BACKBONES, or "timm:NAME" for a model of timm with spatial features. Weights
    are None for random ones, "torchvision" or "timm" for the ImageNet weights of these packages, or
    a file with the state dict of `small_resnet` or of the whole model. A dilation of 2 in the last
    stage makes the maps twice as fine, with the same weights.
    """
    if str(name).startswith("timm:"):
        from spcl_lib.system.timm_backbone import build_timm_backbone

        return build_timm_backbone(name, weights, dilation, MEAN, STD)
    if name not in BACKBONES:
        raise unknown_name("backbone", name, (*BACKBONES, "timm:NAME"))
    if dilation != 1 and name in ("small_resnet", "resnet18"):
        raise UserError(f"{name} has no dilated form; use mobilenet_v2 or resnet50, or dilation=1")
    model = small_resnet() if name == "small_resnet" else _of_torchvision(name, dilation)
    if weights is not None:
        load_backbone(model, weights, name)
    if name == "small_resnet":
        return model, 128
    if name == "mobilenet_v2":
        return model.features, model.last_channel
    return nn.Sequential(*list(model.children())[:-2]), model.fc.in_features


def _of_torchvision(name: str, dilation: int) -> nn.Module:
    from torchvision import models  # imported here: it takes seconds, and scenes do not need it

    if name == "resnet50":
        dilated = (False, False, dilation == 2)
        return models.resnet50(weights=None, replace_stride_with_dilation=dilated)
    model = getattr(models, name)(weights=None)
    if dilation == 2:  # mobilenet_v2's last stage: no stride, and dilated layers after it
        for layer in model.features[14:18].modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                reach = 1 if layer.stride == (2, 2) else 2
                layer.stride, layer.dilation, layer.padding = (1, 1), (reach, reach), (reach, reach)
    return model


def normalise(images: Tensor) -> Tensor:
    """Network input of images (B, 3, H, W) in 0..255: ImageNet's normalisation, channels last."""
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (MEAN, STD))
    scaled = (images.float() / 255 - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """Mixed precision on a device; "auto" takes bfloat16 where the hardware has it."""
    if amp not in AMP:
        raise unknown_name("amp", amp, AMP)
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    fast = on_gpu or (device.type == "cpu" and _cpu_has_bfloat16())
    if amp == "off" or (amp == "auto" and not fast):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@functools.cache
def _cpu_has_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and any(
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()
        for name in ("avx512_bf16", "amx_tile")
    )
