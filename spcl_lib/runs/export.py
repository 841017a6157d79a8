"""Exports a trained network, with its preprocessing, for programs without spcl."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from spcl_lib.data.images import upright
from spcl_lib.model import MEAN, STD
from spcl_lib.runs.predictor import Predictor
from spcl_lib.system.errors import UserError, unknown_name
from spcl_lib.system.files import atomic_write

INPUT, OUTPUTS = "images", ("probabilities", "heatmaps")
_TOLERANCE = 1e-3  # of a probability; kernels add in another order, which changes less than 1e-5
_OF_PHOTOGRAPHS = 0.01  # up to 4 % of values differ from Pillow's by a step; large JPEGs more
_SIZES = {INPUT: dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}  # B, H and W are free

Texts = Mapping[str, str]
Network = Callable[[Tensor], Sequence[Tensor]]


class Exportable(nn.Module):
    """A classifier from images to probabilities, which prepares images as its Predictor does.

    Its constants are buffers, so the exported file names no device.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model = copy.deepcopy(predictor.model).cpu()
        self.pooling, self.sides = predictor.pooling, (predictor.square_side, predictor.size)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Gives probabilities (B, C) and heatmaps (B, C, G, G) of images (B, 3, H, W) uint8."""
        first, second = self.sides
        rows = _resize(images.float(), images.shape[2], first)
        squares = (_resize((rows + 0.5).floor(), first, first) + 0.5).floor()  # as Pillow rounds
        maps = self.model((_resize(squares, second, second) / 255 - self.mean) / self.std)
        return self.pooling(maps).sigmoid(), self.pooling.heat(maps)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(
        images, (height, width), mode="bilinear", antialias=True, align_corners=False
    )  # fmt: skip


def export(
    predictor: Predictor,
    form: str,
    out: Path,
    force: bool = False,
    photographs: Sequence[Path] = (),
) -> tuple[float, float]:
    """Writes a trained network as one file.

    Its input "images" are RGB images (B, 3, H, W) uint8 of any size. Its outputs are
    "probabilities" (B, C) and "heatmaps" (B, C, G, G), the probabilities of the cells. All is in
    float32. The file also holds two texts of JSON: "classes", the C names, and "threshold", the
    least probability of a label (null if there is none). ONNX keeps them in its metadata, pt2 as
    extra files.

    Args:
        predictor: its size, its pooling and the threshold of its rule go into the file.
        form: a key of FORMATS.
        out: the file.
        force: replace an existing file.
        photographs: image files, on which the file must give what the predictor gives.

    Returns:
        The largest difference of a probability to PyTorch's on random images; and to the
        predictor's on the photographs, each through its whole path.

    Raises:
        UserError: the format is unknown or its packages are missing, the file exists, the network
            has no such form, or the file gives other numbers. Then no file is left.
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
    network, side = Exportable(predictor).eval(), predictor.size
    threshold = None if predictor.rule is None else predictor.rule.threshold
    about = {"classes": json.dumps(predictor.classes, ensure_ascii=False),
             "threshold": json.dumps(threshold)}  # fmt: skip
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what torch's exporters say of their own deprecated parts
        try:
            program = FORMATS[form].convert(network, _random_images(2, side + 9, side + 5))
        except Exception as error:  # the exporters raise many kinds
            reason = str(_cause(error)).strip().partition("\n")[0]
            raise UserError(
                f"the network has no form as {form} ({type(error).__name__}: {reason}); try "
                f"another of {', '.join(FORMATS)}"
            ) from error
        with atomic_write(out) as temporary:
            FORMATS[form].save(program, about, temporary)
            written = FORMATS[form].load(temporary)
            found = (
                _difference(written, network, side),
                _on_photographs(written, predictor, photographs),
            )
            for difference, most in zip(found, (_TOLERANCE, _OF_PHOTOGRAPHS), strict=True):
                if not difference <= most:  # NaN, too
                    raise UserError(
                        f"'{out}' would differ from PyTorch's probabilities by {difference:.2g}, "
                        f"more than {most:g}; try another of {', '.join(FORMATS)}"
                    )
    return found


def _difference(written: Network, network: Exportable, side: int) -> float:
    """The largest difference of an output; sizes and numbers of images are not those of writing."""
    differences = []
    for shape in ((1, side, side), (3, 2 * side + 1, side // 2 + 3)):
        images = _random_images(*shape)
        for found, expected in zip(written(images), network(images), strict=True):
            differences.append((found - expected).abs().max())
    return float(torch.stack(differences).max())  # NaN if one is NaN


def _on_photographs(written: Network, predictor: Predictor, files: Sequence[Path]) -> float:
    """The largest difference of a probability, if another program reads the files in full."""
    differences = [torch.zeros(())]
    for file in files:
        with Image.open(file) as image:
            pixels = torch.from_numpy(np.array(upright(image))).permute(2, 0, 1)[None]
        differences.append((written(pixels)[0] - predictor(file)).abs().max())
    return float(torch.stack(differences).max())


def _random_images(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).byte()


def _cause(error: BaseException) -> BaseException:
    """The first error of a chain; torch's exporters pack it into others, with advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# --- formats --------------------------------------------------------------------------------------


def _to_pt2(network: Exportable, images: Tensor) -> torch.export.ExportedProgram:
    program = torch.export.export(network, (images,), dynamic_shapes=_SIZES)
    for node in list(program.graph.nodes):  # it would refuse images on another device
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


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
    "pt2": Format(_to_pt2, _save_pt2, _load_pt2),
}
