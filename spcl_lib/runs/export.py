"""Exports a trained network, with its preprocessing, for programs without spcl."""

import copy
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spcl_lib.evaluate import resize
from spcl_lib.model import MEAN, STD
from spcl_lib.runs.predictor import Predictor
from spcl_lib.system.errors import UserError
from spcl_lib.system.files import atomic_write

INPUT, OUTPUTS = "images", ("probabilities", "heatmaps")
_TOLERANCE = 1e-3  # of a probability; kernels add in another order, which changes less than 1e-5
_SIZES = {INPUT: dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}  # B, H and W are free
_EXAMPLE = torch.zeros(2, 3, 50, 70, dtype=torch.uint8)

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
        squares = _squares(images.float(), first)
        maps = self.model((resize(squares, second, second) / 255 - self.mean) / self.std)
        return self.pooling(maps).sigmoid(), self.pooling.heat(maps)


def _squares(images: Tensor, side: int) -> Tensor:
    """Squares of images (B, 3, H, W), as Pillow makes them: it rounds after each of two passes.

    The columns are resized first where the height shrinks more than twice as much as the width.
    """
    height, width = images.shape[2:]
    passes = [resize(images, *size) for size in ((height, side), (side, width))]
    across, down = ((resize((p + 0.5).floor(), side, side) + 0.5).floor() for p in passes)
    limit = 2 * images.new_full((), width).clamp(min=side) - side  # tensors: sizes stay free
    return torch.where(images.new_full((), height) > limit, down, across)


def export(predictor: Predictor, form: str, out: Path, force: bool = False) -> float:
    """Writes a trained network as one file, if this gives what the predictor gives.

    Its input "images" are RGB images (B, 3, H, W) uint8 of any size. Its outputs are
    "probabilities" (B, C) and "heatmaps" (B, C, G, G), in float32. It also holds two texts of JSON:
    "classes", the C names, and "threshold", the least probability of a label, or null. ONNX keeps
    them in its metadata, pt2 as extra files. `form` is a key of FORMATS.

    It returns the largest difference to the predictor on noise.
    """
    if os.path.lexists(out) and not force:
        raise UserError(f"'{out}' exists; give another name, or --force to replace it")
    with warnings.catch_warnings(), torch.no_grad(), atomic_write(out) as temporary:
        warnings.simplefilter("ignore")  # what torch's exporters say of their own deprecated parts
        difference = _compare(_write(predictor, form, temporary), predictor)
        if not difference <= _TOLERANCE:  # NaN, too
            raise UserError(
                f"'{out}' would differ from the predictor by {difference:.2g}, more than "
                f"{_TOLERANCE:g}; try another of {', '.join(FORMATS)}"
            )
    return difference


def _write(predictor: Predictor, form: str, file: Path) -> Network:
    """Writes the file, and reads it back."""
    threshold = None if predictor.rule is None else predictor.rule.threshold
    about = {"classes": json.dumps(predictor.classes, ensure_ascii=False),
             "threshold": json.dumps(threshold)}  # fmt: skip
    write, load = FORMATS[form]
    try:
        write(Exportable(predictor).eval(), about, file)
        return load(file)
    except OSError:
        raise
    except ModuleNotFoundError as error:
        needed = f"{form} needs {error.name}: pip install onnx onnxscript onnxruntime"
        raise UserError(needed) from error
    except Exception as error:  # the exporters raise many kinds, packed into others with advice
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0]
        raise UserError(f"the network has no form as {form} ({reason}); try another of "
                        f"{', '.join(FORMATS)}") from error  # fmt: skip


def _compare(written: Network, predictor: Predictor) -> float:
    """The largest difference on noise that needs no first resize; NaN if there is one."""
    side = predictor.square_side
    noise = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    noise = (noise * 255).byte()
    pairs = zip(written(noise), (predictor(noise), predictor.heatmaps(noise)), strict=True)
    return float(torch.stack([(found - own).abs().max() for found, own in pairs]).max())


def _write_pt2(network: Exportable, about: Texts, file: Path) -> None:
    program = torch.export.export(network, (_EXAMPLE,), dynamic_shapes=_SIZES)
    for node in list(program.graph.nodes):  # it would refuse images on another device
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            program.graph.erase_node(node)
    program.graph_module.recompile()
    with open(file, "wb") as handle:  # torch wants a name that ends in .pt2
        torch.export.save(program, handle, extra_files=dict(about))


def _load_pt2(file: Path) -> Network:
    with open(file, "rb") as handle:
        return torch.export.load(handle).module()


def _write_onnx(network: Exportable, about: Texts, file: Path) -> None:
    program = torch.onnx.export(
        network, (_EXAMPLE,), dynamic_shapes=_SIZES, input_names=[INPUT], output_names=OUTPUTS,
        dynamo=True, verbose=False,
    )  # fmt: skip
    program.model.metadata_props.update(about)
    program.save(file, external_data=False)  # the weights are in the same file


def _load_onnx(file: Path) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(o) for o in session.run(None, {INPUT: images.numpy()})]


# name -> how it is written, how it is read back
FORMATS = {"onnx": (_write_onnx, _load_onnx), "pt2": (_write_pt2, _load_pt2)}
