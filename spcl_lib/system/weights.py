"""Files of tensors: reads weights safely, or gives the reason why it cannot."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file as save_safetensors
from torch import Tensor, nn

from spcl_lib.system.errors import UserError

_CHECKSUM = "crc32"


def load_backbone(model: nn.Module, weights: str | Path, name: str) -> None:
    """Fills a backbone with weights.

    Args:
        model: its weights are replaced.
        weights: "torchvision" for torchvision's ImageNet weights, else a file.
        name: name of the backbone.

    Raises:
        UserError: the weights are missing, damaged, or of another model.
    """
    if weights == "torchvision":
        if name == "small_resnet":
            raise UserError("torchvision has no weights for small_resnet; use auto or none")
        weights = _fetch_weights(name)
    load_weights(model, Path(weights), name)


def _fetch_weights(name: str) -> Path:
    """The file of torchvision's ImageNet weights in torch's hub cache; downloads it once.

    The file's name holds the start of its SHA-256. torch compares them only after a download. We
    compare them each time, because every program of this user may write into that folder.

    Raises:
        UserError: the file cannot be downloaded, or it is damaged.
    """
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    start = file.stem.rpartition("-")[2]
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), start)
        with open(file, "rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a damaged download
        raise UserError(
            f"torchvision's weights of {name} could not be downloaded ({error}); "
            "give a local file: --set weights=FILE, or start from random ones: "
            "--set weights=none"
        ) from error
    if not digest.startswith(start):
        raise UserError(
            f"'{file}' is damaged or no file of torchvision: its SHA-256 starts with "
            f"{digest[: len(start)]}, not {start}. Delete it; then the same command downloads it "
            "again"
        )
    return file


def load_weights(model: nn.Module, file: Path, name: str, without: Sequence[str] = ()) -> None:
    """Reads a state dict into a model; the file's values may be float16.

    Args:
        model: its weights are replaced.
        file: a .safetensors file, or one that `torch.save` wrote.
        name: name of the model, for error messages.
        without: layers that only the file's model may have, such as "head".

    Raises:
        UserError: the file is missing, damaged, or of another model.
    """
    state = _read_weights(file)
    own, left_out = model.state_dict().keys(), tuple(f"{layer}." for layer in without)
    state = {k: v for k, v in state.items() if k in own or not k.startswith(left_out)}
    _fill(model, state, file, name)


def _fill(model: nn.Module, state: dict[str, Tensor], source: str | Path, name: str) -> None:
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()
        detail = reason[1].strip()[:120] if len(reason) > 1 else reason[0][:120]
        raise UserError(f"weights '{source}' do not fit {name}: {detail}") from error


def _read_weights(file: Path) -> dict[str, Tensor]:
    from spcl_lib.system.checksums import check_saved  # here: the lesson needs none of it

    if not file.is_file():
        raise UserError(f"weights file '{file}' does not exist; give one with --set weights=FILE")
    try:
        if file.suffix == ".safetensors":
            return load_tensors(file)
        if zipfile.is_zipfile(file):  # else it is of torch before 1.6, without checksums
            check_saved(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise UserError(f"weights file '{file}' cannot be read ({type(error).__name__})") from error
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise UserError(f"weights file '{file}' is no state dict (a dictionary of tensors)")
    return state


def save_weights(model: nn.Module, file: Path) -> None:
    """Writes a state dict with `save_tensors`."""
    save_tensors(model.state_dict(), file)


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes tensors as a safetensors file with a checksum, which the format lacks."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_safetensors(tensors, file, {_CHECKSUM: _checksum(tensors)})


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Reads tensors that `save_tensors` wrote; older files without a checksum are not checked.

    Raises:
        UserError: the checksum is wrong.
        Exception: the file is missing, or no safetensors file; of many kinds.
    """
    tensors = load_safetensors(file)
    with safe_open(file, "pt") as handle:
        expected = (handle.metadata() or {}).get(_CHECKSUM)
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
