"""Exports the network of a finished run, with its preprocessing, for programs without spcl."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spcl_lib.evaluate import prepare
from spcl_lib.runs.predictor import Predictor
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import atomic_write, remove_stale

INPUT, OUTPUTS = "images", ("probabilities", "heatmaps")
_TOLERANCE = 1e-3  # of a probability; kernels add in another order, which changes less than 1e-5
_SIZES = {INPUT: dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}  # B, H and W are free

Texts = Mapping[str, str]
Network = Callable[[Tensor], Sequence[Tensor]]


class Exportable(nn.Module):
    """A classifier from images to probabilities, which prepares images as a Predictor does.

    Args:
        model: SpatialClassifier.
        square_side: side of the squares that images become first, in pixels.
        side: side of the squares that the model takes.
    """

    def __init__(self, model: nn.Module, square_side: int, side: int) -> None:
        super().__init__()
        self.model, self.square_side, self.side = model, square_side, side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gives probabilities (B, C) and heatmaps (B, C, G, G) of images (B, 3, H, W) uint8."""
        squares = F.interpolate(
            images.float(),
            (self.square_side, self.square_side),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        ).round()  # as whole numbers, like the squares of a data set
        maps = self.model(prepare(squares, self.side))
        return self.model.pooling(maps).sigmoid(), self.model.pooling.heat(maps)


def export(run: str | Path, form: str, out: Path, force: bool = False) -> float:
    """Writes the network of a finished run as one file.

    Its input "images" are RGB images (B, 3, H, W) uint8 of any size. It prepares them as a
    Predictor does; Pillow's rounding may differ by 1 of 255. Its outputs are "probabilities" (B, C)
    and "heatmaps" (B, C, G, G), the probabilities of the cells. All is in float32. The file also
    holds two texts of JSON: "classes", the C names, and "threshold", the least probability of a
    label (null for an old run that has none). ONNX keeps them in its metadata, the others as extra
    files.

    Args:
        run: folder of the run, or a folder of runs: the one of them that finished last.
        form: a key of FORMATS.
        out: the file.
        force: replace an existing file.

    Returns:
        The largest difference, on random images, between the file's probabilities and PyTorch's.

    Raises:
        UserError: the format is unknown or its packages are missing, the file exists, the run has
            not finished, its network has no such form, or the file gives other numbers. Then no
            file is left.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    if out.is_dir():
        raise UserError(f"'{out}' is a folder; give the name of a file")
    if os.path.lexists(out) and not force:
        raise UserError(f"'{out}' exists; give another name, or --force to replace it")
    missing = [name for name in FORMATS[form].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the format {form} needs more packages: pip install {' '.join(missing)}")
    predictor = Predictor.load(run)
    side = predictor.size
    network = Exportable(predictor.model.cpu(), predictor.square_side, side).eval()
    about = {
        "classes": json.dumps(predictor.classes, ensure_ascii=False),
        "threshold": json.dumps(predictor.threshold),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch's exporters say of their own deprecated parts
        try:
            program = FORMATS[form].convert(network, _random_images(2, side + 9, side + 5))
        except Exception as error:  # the exporters raise many kinds
            reason = str(_cause(error)).strip().partition("\n")[0]
            raise UserError(
                f"the run's {predictor.config.backbone} has no form as {form} "
                f"({type(error).__name__}: {reason}); try another of {', '.join(FORMATS)}"
            ) from error
        remove_stale(out.parent, f".{glob.escape(out.name)}")
        with atomic_write(out) as temporary:
            FORMATS[form].save(program, about, temporary)
            difference = _compare(FORMATS[form].load(temporary), network, side)
            if not difference <= _TOLERANCE:  # NaN, too
                raise UserError(
                    f"'{out}' would differ from PyTorch's probabilities by {difference:.2g}, more "
                    f"than {_TOLERANCE:g}; try another of {', '.join(FORMATS)}"
                )
    return difference


def _compare(written: Network, network: Exportable, side: int) -> float:
    """The largest difference of an output; sizes and numbers of images are not those of writing."""
    differences = []
    for shape in ((1, side, side), (3, 2 * side + 1, side // 2 + 3)):
        images = _random_images(*shape)
        for found, expected in zip(written(images), network(images), strict=True):
            differences.append((found - expected).abs().max())
    return float(torch.stack(differences).max())  # NaN if one is NaN


def _random_images(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).byte()


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain; torch's exporters pack it into others, with advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# --- formats --------------------------------------------------------------------------------------


def _to_torchscript(network: Exportable, images: Tensor) -> torch.jit.ScriptModule:
    return torch.jit.trace(network, images, check_trace=False)  # `_compare` checks it


def _save_torchscript(program: torch.jit.ScriptModule, about: Texts, file: Path) -> None:
    with open(file, "wb") as handle:  # torch takes no names whose bytes are no text
        torch.jit.save(program, handle, dict(about))


def _load_torchscript(file: Path) -> Network:
    with open(file, "rb") as handle:
        return torch.jit.load(handle)


def _to_pt2(network: Exportable, images: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network, (images,), dynamic_shapes=_SIZES)


def _save_pt2(program: torch.export.ExportedProgram, about: Texts, file: Path) -> None:
    with open(file, "wb") as handle:  # torch wants a name that ends in .pt2
        torch.export.save(program, handle, extra_files=dict(about))


def _load_pt2(file: Path) -> Network:
    with open(file, "rb") as handle:
        return torch.export.load(handle).module()


def _to_onnx(network: Exportable, images: Tensor) -> torch.onnx.ONNXProgram:
    return torch.onnx.export(
        network, (images,), dynamic_shapes=_SIZES, input_names=[INPUT], output_names=OUTPUTS,
        dynamo=True, verbose=False,
    )  # fmt: skip


def _save_onnx(program: torch.onnx.ONNXProgram, about: Texts, file: Path) -> None:
    program.model.metadata_props.update(about)
    program.save(file, external_data=False)  # the weights are in the same file


def _load_onnx(file: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(o) for o in session.run(None, {INPUT: images.numpy()})]


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        convert: makes a program of a network, with example images.
        save: writes the program, and texts by name, into a file.
        load: reads the file back, as a function of images.
        packages: packages that it needs beside torch.
    """

    convert: Callable[[Exportable, Tensor], Any]
    save: Callable[[Any, Texts, Path], None]
    load: Callable[[Path], Network]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": Format(_to_onnx, _save_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": Format(_to_torchscript, _save_torchscript, _load_torchscript),
    "pt2": Format(_to_pt2, _save_pt2, _load_pt2),
}
