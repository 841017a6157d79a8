"""The doors of the lesson refuse wrong arguments by a sentence that names them."""

import re

import pytest
import torch

from spcl_lib import HeatmapBank, Method, MethodSettings, UserError, Views, model
from spcl_lib import mean_average_precision as mean_ap
from spcl_lib.losses.consistency import cell_consistency, spatial_consistency
from spcl_lib.pooling import Pooling

B, C, G, N = 4, 3, 5, 6
LABELS, ROW = torch.eye(B, C), torch.rand(B, C)
MAPS, SEEN, HEAT = torch.randn(B, C, G, G), torch.ones(B, 1, G, G), torch.rand(B, C, G, G)
BOXES, FLIPPED = torch.tensor([[0.0, 0.0, 0.5, 1.0]] * B), torch.zeros(B, dtype=torch.bool)
INDICES, WHOLE, BANK = torch.arange(B), Views.whole(B), HeatmapBank(N, C, 4)
EN = Method("en_scl", N, C, MethodSettings(start=0), labels=torch.eye(N, C))

# A function, right arguments for it, and the names of its tensors in the order of the arguments.
DOORS = [
    (spatial_consistency, (MAPS, HEAT, SEEN), "maps target seen"),
    (cell_consistency, (MAPS, HEAT, SEEN), "maps target seen"),
    (Pooling("lse"), (MAPS, SEEN), "maps seen"),
    (Views, (BOXES, FLIPPED), "boxes flipped"),
    (WHOLE.crop, (MAPS, 3), "images"),
    (WHOLE.uncrop, (MAPS, 3), "maps"),
    (BANK.read, (INDICES, WHOLE, 3), "indices"),
    (BANK.update, (INDICES, WHOLE, HEAT), "indices maps"),
    (lambda z: Method("role", N, C, labels=z), (torch.eye(N, C),), "labels"),
    (EN.loss, (MAPS, LABELS, INDICES, WHOLE, 0), "maps labels indices"),
    (EN.update, (MAPS, INDICES, WHOLE, 0), "maps indices"),
    (mean_ap, (ROW, LABELS, ROW > 2), "scores labels ignored"),
]


@pytest.mark.parametrize(("function", "arguments", "names"), DOORS)
def test_a_wrong_tensor_is_refused_by_its_name(function, arguments, names):
    function(*arguments)
    places = [i for i, right in enumerate(arguments) if isinstance(right, torch.Tensor)]
    for place, name in zip(places, names.split(), strict=True):
        right = arguments[place]
        for wrong in (right.tolist(), right[0], right[None], right.to(torch.complex64)):
            with pytest.raises((ValueError, TypeError)) as caught:
                function(*arguments[:place], wrong, *arguments[place + 1 :])
            # A first argument with another B makes the others wrong.
            every = "|".join([name, *names.split()] if place == 0 else [name])
            assert re.search(rf"({every})[^;]* must be ", str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BANK.read(INDICES, WHOLE, 2.5), "grid must be a whole number"),
        (lambda: Views.sample(2, ratio=(1.0, float("inf"))), "ratio must satisfy 0 < lowest"),
        (lambda: EN.loss(MAPS, LABELS, INDICES, Views.whole(2), 0), "views must be 4"),
        (lambda: Method("an", N, C, labels=-torch.ones(N, C)), "must be 0, for unknown, or 1"),
        (lambda: Method("role", N, C), "'role' needs to know the labels"),
        (lambda: Method("gr", N, C), "'gr' needs the length of the training"),
        (lambda: EN.loss(MAPS[..., :1], LABELS, INDICES, WHOLE, 0), "maps must be"),
        (lambda: HeatmapBank(N, C, dtype=torch.int8), "dtype must be one of torch.uint8"),
        (lambda: model.autocast(torch.device("cpu"), "float16"), "unknown amp 'float16'"),
    ],
)
def test_other_arguments_are_checked_too(call, message):
    with pytest.raises((ValueError, UserError), match=message):
        call()
