"""SpatialClassifier: backbone -> 1x1 convolution -> score maps -> mean = logits."""

from __future__ import annotations

import contextlib
import functools
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

from spcl_lib.errors import UserError, unknown


class SpatialClassifier(nn.Module):
    """A fully convolutional classifier whose output keeps its spatial axes.

    The mean of the score maps over their cells is what global average pooling followed by a
    linear layer would give, so a pretrained classification backbone fits unchanged.

    Args:
        features: backbone; maps images (B, 3, H, W) to features (B, D, G, G).
        num_features: D.
        num_classes: C.
        frozen: leading blocks of the backbone that stay as they are, batch statistics included;
            on a CPU this halves the cost of a step, since the early layers are the expensive ones.
    """

    def __init__(
        self, features: nn.Sequential, num_features: int, num_classes: int, frozen: int = 0
    ) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Conv2d(num_features, num_classes, kernel_size=1)
        self.frozen = frozen
        self.features[:frozen].requires_grad_(False)

    def train(self, mode: bool = True) -> SpatialClassifier:
        """Training mode for all but the frozen blocks."""
        super().train(mode)
        self.features[: self.frozen].eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Gives score-map logits f (B, C, G, G) of normalised images (B, 3, H, W)."""
        return self.head(self.features(images))


def pooled(maps: Tensor) -> Tensor:
    """Image logits s (B, C): the mean of score-map logits (B, C, G, G) over the cells."""
    return maps.mean((2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (B, outputs, H / stride, W / stride) of (B, inputs, H, W)."""
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


def build_backbone(name: str, weights: str | Path | None) -> tuple[nn.Sequential, int]:
    """A backbone without its pooling and classifier.

    Args:
        name: "small_resnet", "mobilenet_v2", "resnet18" or "resnet50".
        weights: None for random weights, "torchvision" for torchvision's ImageNet weights
            (downloaded once where the network allows), or a file with a state dict: of
            `small_resnet`, or of the whole torchvision model.

    Returns:
        The backbone and its number of output features D.

    Raises:
        UserError: an unknown name, or weights that are missing or do not fit.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    if name == "small_resnet":
        model = small_resnet()
        if weights is not None:
            _load(model, weights, name)
        return model, 128
    from torchvision import models  # here, because it takes seconds that the scenes need not spend

    model = getattr(models, name)(weights=None)
    if weights is not None:
        _load(model, weights, name)
    if name == "mobilenet_v2":
        return model.features, model.last_channel
    num_features = model.fc.in_features
    return nn.Sequential(*list(model.children())[:-2]), num_features


BACKBONES = ("small_resnet", "mobilenet_v2", "resnet18", "resnet50")


def _load(model: nn.Module, weights: str | Path, name: str) -> None:
    if weights == "torchvision":
        if name == "small_resnet":
            raise UserError("torchvision has no weights for small_resnet; pretrain it or use none")
        from torchvision.models import get_model_weights

        try:
            url = get_model_weights(name)["DEFAULT"].url
            state = torch.hub.load_state_dict_from_url(url, progress=True)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a damaged download
            raise UserError(
                f"torchvision's weights of {name} could not be downloaded ({error}); "
                "give a local file: --set weights=FILE, or start from random ones: "
                "--set weights=none"
            ) from error
        _fill(model, state, weights, name)
    else:
        load_weights(model, Path(weights), name)


def load_weights(model: nn.Module, file: Path, name: str) -> None:
    """Reads a state dict, also one of float16, into a model.

    Args:
        model: its weights are replaced.
        file: .safetensors, or what `torch.save` wrote.
        name: of the model, for people.

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    _fill(model, _read_weights(file), file, name)


def _fill(model: nn.Module, state: dict[str, Tensor], source: str | Path, name: str) -> None:
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        detail = reason[1].strip()[:120] if len(reason) > 1 else reason[0][:120]
        raise UserError(f"weights '{source}' do not fit {name}: {detail}") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"weights file '{file}' does not exist; give one with --set weights=FILE")
    try:
        if file.suffix == ".safetensors":
            return load_safetensors(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"weights file '{file}' cannot be read ({type(error).__name__})") from error
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise UserError(f"weights file '{file}' is no state dict: names with a tensor each")
    return state


def save_weights(model: nn.Module, file: Path) -> None:
    """Writes a state dict as safetensors, which wants plain memory order."""
    save_safetensors({k: v.contiguous() for k, v in model.state_dict().items()}, file)


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's weights


def normalised(images: Tensor) -> Tensor:
    """Network input of images (B, 3, H, W) in 0..255: ImageNet's normalisation, channels last."""
    mean, std = (images.new_tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (MEAN, STD))
    scaled = (images.float() / 255 - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager:
    """Mixed precision for a forward pass.

    Args:
        device: where the model is.
        amp: "off", "bfloat16", or "auto": bfloat16 on CUDA and on CPUs with bfloat16 instructions
            (elsewhere it is emulated, and slower than float32).
    """
    fast = device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16())
    if amp == "off" or (amp == "auto" and not fast):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@functools.cache
def _cpu_has_bfloat16() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and any(
        getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()
        for name in ("avx512_bf16", "amx_tile")
    )
