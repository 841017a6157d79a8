"""Files of tensors: reads weights safely, or gives the reason why it cannot."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

from spcl_lib.system.checksums import load_saved
from spcl_lib.system.errors import UserError

_CHECKSUM = "crc32"


def load_backbone(model: nn.Module, weights: str | Path, name: str) -> None:
    """Fills a backbone with the weights of a file, or with ImageNet's for "torchvision"."""
    if weights != "torchvision":
        return load_weights(model, Path(weights), name)
    from torchvision.models import get_model_weights

    options = {"map_location": "cpu", "check_hash": True, "weights_only": True}
    try:  # torch's hub cache, or the network
        model.load_state_dict(get_model_weights(name)["DEFAULT"].get_state_dict(**options))
    except Exception as error:  # of the network, or of a damaged file
        raise UserError(
            f"torchvision's weights of {name} cannot be loaded ({_reason(error)}); delete a "
            f"damaged file in '{torch.hub.get_dir()}', give a local file: --set weights=FILE, or "
            "start from random ones: --set weights=none"
        ) from error


def load_weights(model: nn.Module, file: Path, name: str, without: Sequence[str] = ()) -> None:
    """Reads a state dict, of safetensors or of `torch.save`, into a model; float16 is fine, too.

    `without` names layers that only the file's model may have, such as "head".
    """
    if not file.is_file():
        raise UserError(f"weights file '{file}' does not exist; give one with --set weights=FILE")
    own, left_out = model.state_dict(), tuple(f"{layer}." for layer in without)
    try:
        state = load_tensors(file) if file.suffix == ".safetensors" else load_saved(file)
        state = {k: v for k, v in state.items() if k in own or not k.startswith(left_out)}
        model.load_state_dict(state)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds
        raise UserError(f"weights '{file}' do not fit {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors as a safetensors file with a checksum, which the format lacks."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_safetensors(tensors, file, {_CHECKSUM: _checksum(tensors)})


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Reads tensors that `save_tensors` wrote; files without a checksum are not checked."""
    try:
        tensors = load_safetensors(file)
        with safe_open(file, "pt") as handle:
            expected = (handle.metadata() or {}).get(_CHECKSUM)
    except Exception as error:  # safetensors raises many kinds
        raise UserError(f"'{file}' cannot be read: {_reason(error)}") from error
    if expected not in (None, _checksum(tensors)):
        raise UserError(f"'{file}' is damaged: its checksum is wrong; run it again with --force")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Eight characters that change with any name, shape, type or bit."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.cpu().reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"
