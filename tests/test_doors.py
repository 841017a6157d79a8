"""Every public function of the lesson refuses wrong arguments by a sentence that names them."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from spcl_lib import HeatmapBank, Method, MethodSettings, UserError, Views, evaluate, model
from spcl_lib import mean_average_precision as mean_ap
from spcl_lib.losses import consistency, spatial_consistency
from spcl_lib.pooling import Pooling
from spcl_lib.sparse_bank import SparseHeatmapBank

B, C, G, N = 4, 3, 5, 6
LOGITS, LABELS, ROW = torch.randn(B, C), torch.eye(B, C), torch.rand(B, C)
MAPS, SEEN, HEAT = torch.randn(B, C, G, G), torch.ones(B, 1, G, G), torch.rand(B, C, G, G)
BOXES, FLIPPED = torch.tensor([[0.0, 0.0, 0.5, 1.0]] * B), torch.zeros(B, dtype=torch.bool)
INDICES, ANNOTATED, WHOLE = torch.arange(B), torch.zeros(N, dtype=torch.int64), Views.whole(B)
PIXELS = torch.zeros(B, 3, 6, 6).byte()


def bank():
    return HeatmapBank(N, C, 4)


def sparse():
    return SparseHeatmapBank(N, C, 2, ANNOTATED, size=4)


def method(name="en_scl"):
    return Method(name, N, C, MethodSettings(start=0), labels=torch.eye(N, C))


def network():
    return model.SpatialClassifier(nn.Sequential(nn.Conv2d(3, 2, 1)), 2, C)


# A function, right arguments for it, and the names of its tensors in the order of the arguments.
DOORS = [
    (consistency, (LOGITS, ROW), "logits target"),
    (spatial_consistency, (MAPS, HEAT, SEEN), "maps target seen"),
    (Pooling("lse"), (MAPS, SEEN), "maps seen"),
    (Pooling("top").presence, (HEAT, SEEN), "heatmaps seen"),
    (Views, (BOXES, FLIPPED), "boxes flipped"),
    (WHOLE.crop, (MAPS, 3), "images"),
    (WHOLE.uncrop, (MAPS, 3), "maps"),
    (HeatmapBank.of, (torch.zeros(N, C, 4, 4), torch.ones(N, 4, 4).bool()), "heatmaps seen"),
    (lambda *a: bank().read(*a), (INDICES, WHOLE, 3), "indices"),
    (lambda *a: bank().update(*a), (INDICES, WHOLE, HEAT), "indices maps"),
    (lambda z: SparseHeatmapBank(N, C, 2, z), (ANNOTATED,), "annotated"),
    (lambda *a: SparseHeatmapBank.of(*a, torch.tensor(C)), tuple(sparse().tensors().values())[:3],
     "heatmaps seen classes"),
    (lambda *a: sparse().read(*a), (INDICES, WHOLE, 3), "indices"),
    (lambda *a: sparse().update(*a), (INDICES, WHOLE, HEAT), "indices maps"),
    (lambda z: Method("role", N, C, labels=z), (torch.eye(N, C),), "labels"),
    (lambda *a: method().loss(*a), (MAPS, LABELS, INDICES, WHOLE, 0), "maps labels indices"),
    (lambda *a: method("cl").update(*a), (MAPS, INDICES, WHOLE, 0), "maps indices"),
    (mean_ap, (ROW, LABELS, ROW > 2), "scores labels ignored"),
    (evaluate.top1_accuracy, (ROW, LABELS, ROW > 2), "scores labels ignored"),
    (evaluate.precision_recall, (ROW > 0.5, LABELS, ROW > 2), "scores|chosen labels ignored"),
    (lambda *a: evaluate.predict_maps(network(), *a), (PIXELS, 6, "off"), "images"),
    (lambda x: network()(x), (torch.rand(B, 3, 6, 6),), "images"),
    (lambda x: network().classify(x), (torch.rand(B, 2, 6, 6),), "features"),
    (model.normalise, (PIXELS,), "images"),
]  # fmt: skip


def wrong_tensors(right):
    """Lists, arrays, one axis more or less, and complex numbers."""
    return right.numpy(), right.tolist(), right[0], right[None], right.to(torch.complex64)


@pytest.mark.parametrize(("function", "arguments", "names"), DOORS)
def test_a_wrong_tensor_is_refused_by_its_name(function, arguments, names):
    function(*arguments)
    places = [i for i, right in enumerate(arguments) if isinstance(right, torch.Tensor)]
    for place, name in zip(places, names.split(), strict=True):
        for wrong in wrong_tensors(arguments[place]):
            given = [*arguments[:place], wrong, *arguments[place + 1 :]]
            with pytest.raises((ValueError, TypeError)) as caught:
                function(*given)
            # A first argument with another B makes the others wrong.
            every = "|".join([name, *names.split()] if place == 0 else [name])
            assert re.search(rf"({every})[^;]* must be ", str(caught.value)), caught.value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HeatmapBank(2.0, C), "num_images must be a whole number"),
        (lambda: HeatmapBank(N, C, True), "size must be a whole number"),
        (lambda: bank().read(INDICES, WHOLE, 2.5), "grid must be a whole number"),
        (lambda: WHOLE.crop(MAPS, -1), "size must be a whole number"),
        (lambda: WHOLE.uncrop(MAPS.long(), 3), "maps must be float"),
        (lambda: Views.sample(2.5), "batch must be a whole number"),
        (lambda: Views.sample(2, ratio=""), "ratio must satisfy 0 < lowest"),
        (lambda: Views.sample(2, ratio=(1.0, float("inf"))), "ratio must satisfy"),
        (lambda: method().loss(MAPS, LABELS, INDICES, Views.whole(2), 0), "views must be 4"),
        (lambda: evaluate.evaluate_scores(ROW, LABELS, ("a", "b")), "classes must be 3"),
        (lambda: evaluate.predict_maps(network(), PIXELS[:0], 6), "the number of images"),
        (lambda: evaluate.predict_maps(network(), PIXELS, 0), "side must"),
        (lambda: model.autocast(torch.device("cpu"), "float16"), "unknown amp 'float16'"),
        (lambda: model.autocast("cpu", "off"), "device must be a torch.device"),
        (lambda: model.build_backbone("resnet50", None, 3), "dilation must be 1 or 2"),
    ],
)  # fmt: skip
def test_other_arguments_are_checked_too(call, message):
    with pytest.raises((ValueError, TypeError, UserError), match=message):
        call()


def test_numbers_of_numpy_are_whole_numbers_and_images_may_be_of_any_floating_type():
    assert HeatmapBank(np.int64(2), np.int32(3), np.uint8(4)).heatmaps.shape == (2, 3, 4, 4)
    images, own = torch.rand(B, 3, 6, 6), network()
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(own(images.to(kind)), own(images.to(kind).float()))
