"""Every public function of the lesson refuses wrong tensors by a sentence of its own.

Without the checks, some of these calls gave an answer that was wrong, and others an error of torch
that names no argument.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from spcl_lib import HeatmapBank, UserError, Views, losses, mean_average_precision, methods, model
from spcl_lib import evaluate as metrics
from spcl_lib.losses.expected_positives import count_penalty
from spcl_lib.losses.large_loss import largest_losses
from spcl_lib.losses.robust import robust_parts
from spcl_lib.pooling import Pooling
from spcl_lib.sparse_bank import SparseHeatmapBank
from spcl_lib.terms import MethodSettings

B, C, G, N = 4, 3, 5, 6
LOGITS, LABELS = torch.randn(B, C), torch.eye(B, C)
MAPS, SEEN = torch.randn(B, C, G, G), torch.ones(B, 1, G, G)
PROBABILITIES = torch.rand(B, C, G, G)
ROW = torch.rand(B, C)
BOXES, FLIPPED = torch.tensor([[0.0, 0.0, 0.5, 1.0]] * B), torch.zeros(B, dtype=torch.bool)
INDICES, ANNOTATED = torch.arange(B), torch.zeros(N, dtype=torch.int64)
WHOLE = Views.whole(B)


def bank():
    return HeatmapBank(N, C, 4)


def sparse_bank():
    return SparseHeatmapBank(N, C, 2, ANNOTATED, 4)


def state_of(size=4, classes=C, images=N, dtype=torch.uint8):
    return HeatmapBank(images, classes, size, dtype=dtype).state_dict()


def method(name="en_scl"):
    return methods.Method(name, N, C, MethodSettings(start=0), labels=torch.eye(N, C))


def network():
    return model.SpatialClassifier(nn.Sequential(nn.Conv2d(3, 2, 1)), 2, C)


# name -> a function, and right arguments for it
CALLS = {
    **{
        name: (getattr(losses, name), (LOGITS, LABELS, *more))
        for name, more in {
            "assume_negative": (), "asymmetric": (), "hill": (), "splc": (2.0,),
            "label_smoothing": (), "weak_negatives": (), "generalised_robust": (0.5,),
            "expected_positive_regularisation": (2.0,), "role": (torch.randn(B, C), 2.0),
            "entropy_maximisation": (0.2, ROW, 0.1), "expected_negative": (ROW > 0.5,),
            "large_loss": (2,), "correct_for_good": (ROW > 0.5, 2),
            "pseudo_robust": (ROW > 0.5, 0.5, 2.0), "crisp": (torch.rand(C),),
            "robust_expected_negative": (ROW, torch.rand(C), 0.7),
            "asset_regularisation": (ROW, 1.0),
        }.items()
    },
    "robust_parts": (robust_parts, (LOGITS, LABELS, 0.5)),
    "count_penalty": (count_penalty, (LOGITS, 2.0)),
    "largest_losses": (largest_losses, (ROW, LABELS, 2)),
    "class_priors": (losses.class_priors, (ROW, LABELS)),
    "expected_negative_threshold": (losses.expected_negative_threshold, (ROW, LABELS, 2.0)),
    "moved_averages": (losses.moved_averages, (ROW, LOGITS, 0.1)),
    "first_averages": (losses.first_averages, (LABELS, 0)),
    "first_estimates": (losses.first_estimates, (LABELS, 0)),
    "add_pseudo_labels": (
        lambda *a: losses.add_pseudo_labels(*a), (torch.full((B, C), torch.nan), ROW, LABELS, 3)
    ),
    "distance": (losses.distance, (LOGITS, ROW, "bce")),
    "consistency": (losses.consistency, (LOGITS, ROW)),
    "spatial_consistency": (losses.spatial_consistency, (MAPS, PROBABILITIES, SEEN)),
    "Pooling": (Pooling("lse"), (MAPS, SEEN)),
    "Pooling mean": (Pooling(), (MAPS,)),
    "Pooling.presence": (Pooling("top").presence, (PROBABILITIES, SEEN)),
    "Views": (Views, (BOXES, FLIPPED)),
    "Views.whole": (Views.whole, (B,)),
    "Views.sample": (lambda n, *a: Views.sample(n, *a), (B, (0.5, 1.0), (0.5, 2.0), 0.5)),
    "Views.crop": (WHOLE.crop, (MAPS, 3)),
    "Views.crop_maps": (WHOLE.crop_maps, (MAPS, 3)),
    "Views.uncrop": (WHOLE.uncrop, (MAPS, 3)),
    "Views.visible": (WHOLE.visible, (3,)),
    "HeatmapBank": (HeatmapBank, (N, C, 4, 0.8)),
    "HeatmapBank.of": (HeatmapBank.of, (torch.zeros(N, C, 4, 4), torch.ones(N, 4, 4).bool())),
    "HeatmapBank.read": (lambda *a: bank().read(*a), (INDICES, WHOLE, 3)),
    "HeatmapBank.update": (lambda *a: bank().update(*a), (INDICES, WHOLE, PROBABILITIES)),
    "HeatmapBank.load_state_dict": (lambda s: bank().load_state_dict(s), (state_of(),)),
    "SparseHeatmapBank": (lambda z: SparseHeatmapBank(N, C, 2, z, 4), (ANNOTATED,)),
    "SparseHeatmapBank.of": (
        lambda *a: SparseHeatmapBank.of(*a, torch.tensor(C)),
        tuple(sparse_bank().tensors().values())[:3],
    ),
    "SparseHeatmapBank.read": (lambda *a: sparse_bank().read(*a), (INDICES, WHOLE, 3)),
    "SparseHeatmapBank.update": (
        lambda *a: sparse_bank().update(*a), (INDICES, WHOLE, PROBABILITIES)
    ),
    "spatial_consistency of some classes": (
        losses.spatial_consistency, (MAPS, PROBABILITIES, MAPS > 0)
    ),
    "Method": (lambda name, z: methods.Method(name, N, C, labels=z), ("role", torch.eye(N, C))),
    "Method.begin_epoch": (lambda *a: method().begin_epoch(*a), (1, torch.eye(N, C))),
    "Method.end_epoch": (lambda *a: method("ren").end_epoch(*a), (1, torch.eye(N, C))),
    "Method.loss": (lambda *a: method().loss(*a), (MAPS, LABELS, INDICES, WHOLE, 1.0)),
    "Method.loss without averages": (
        lambda *a: method("role").loss(*a), (MAPS, LABELS, INDICES, WHOLE, 1.0)
    ),
    "Method.update": (lambda *a: method().update(*a), (MAPS, INDICES, WHOLE, 1.0)),
    "Method.load_state_dict": (
        lambda s: method("ren").load_state_dict(s), (method("ren").state_dict(),)
    ),
    "average_precisions": (metrics.average_precisions, (ROW, LABELS, ROW > 2)),
    "mean_average_precision": (mean_average_precision, (ROW, LABELS, ROW > 2)),
    "top1_accuracy": (metrics.top1_accuracy, (ROW, LABELS.bool(), ROW > 2)),
    "precision_recall": (metrics.precision_recall, (ROW > 0.5, LABELS, ROW > 2)),
    "evaluate_scores": (metrics.evaluate_scores, (ROW, LABELS, ("a", "b", "c"), ROW > 2)),
    "predict_maps": (
        lambda *a: metrics.predict_maps(network(), *a), (torch.zeros(B, 3, 6, 6).byte(), 6, "off")
    ),
    "predict_scores": (
        lambda *a: metrics.predict_scores(network(), *a),
        (torch.zeros(B, 3, 6, 6).byte(), 6, [Pooling()]),
    ),
    "SpatialClassifier": (lambda x: network()(x), (torch.rand(B, 3, 6, 6),)),
    "SpatialClassifier.classify": (lambda x: network().classify(x), (torch.rand(B, 2, 6, 6),)),
    "normalise": (model.normalise, (torch.zeros(B, 3, 6, 6).byte(),)),
    "autocast": (model.autocast, (torch.device("cpu"), "off")),
    "build_backbone": (model.build_backbone, ("mobilenet_v2", None, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_right_calls_are_answered(name):
    function, arguments = CALLS[name]
    function(*copy.deepcopy(arguments))


# (name, place of an argument) -> its axes that may have any size; None: it may be left out
FREE = {
    **dict.fromkeys([("count_penalty", 0), ("first_averages", 0), ("first_estimates", 0)], (0, 1)),
    **dict.fromkeys([("Pooling", 0), ("Pooling.presence", 0), ("HeatmapBank.of", 0),
                     ("spatial_consistency of some classes", 2)], (1,)),
    **dict.fromkeys([("Views.crop", 0), ("Views.crop_maps", 0), ("Views.uncrop", 0)], (1, 2, 3)),
    ("Method.loss without averages", 0): (2, 3),
    **dict.fromkeys([("predict_maps", 0), ("predict_scores", 0), ("SpatialClassifier", 0),
                     ("SpatialClassifier.classify", 0), ("normalise", 0)], (0, 2, 3)),
    **dict.fromkeys([("entropy_maximisation", 3), ("robust_expected_negative", 2), ("Pooling", 1),
                     ("Pooling.presence", 1), ("average_precisions", 2), ("precision_recall", 2),
                     ("mean_average_precision", 2), ("top1_accuracy", 2), ("evaluate_scores", 3),
                     ("Method", 1)]),
    ("Pooling mean", 0): (0, 1, 2, 3),
}  # fmt: skip


def wrong_tensors(right, free):
    """Tensors that do not fit where the right one does, and things that are no tensor."""
    yield from (right.numpy(), right.tolist(), right[0], right[None], right.to(torch.complex64))
    if free == ():
        yield None
    for axis in range(right.ndim):
        if axis not in (free or ()):
            size = right.shape[axis]
            yield from (right.narrow(axis, 0, n) for n in {1, size - 1} - {0, size})
            yield torch.cat((right, right), axis)


def test_every_tensor_at_every_door_is_checked():
    """No call with one wrong tensor is answered, or ends in an error that does not name it."""
    count, faults = 0, []
    for name, (function, arguments) in CALLS.items():
        for place, right in enumerate(arguments):
            if isinstance(right, torch.Tensor):
                for wrong in wrong_tensors(right, FREE.get((name, place), ())):
                    count += 1
                    given = [*arguments[:place], wrong, *arguments[place + 1 :]]
                    fault = fault_of(function, copy.deepcopy(given))
                    if fault:
                        what = getattr(wrong, "shape", type(wrong).__name__)
                        faults.append(f"{name}, argument {place}, {what}: {fault}")
    assert not faults, f"{len(faults)} of {count}:\n" + "\n".join(faults)
    assert count > 1000


def fault_of(function, arguments):
    """What is wrong with the answer to a wrong call; empty if it is refused as it should be."""
    try:
        function(*arguments)
    except Exception as error:
        named = isinstance(error, ValueError | TypeError) and " must be " in str(error)
        return "" if named else f"{error!r:.90}"
    return "it is answered"


def without_last(values):
    return values[..., :-1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("heatmaps", torch.Tensor.float), ("heatmaps", torch.Tensor.bool),
        ("heatmaps", without_last), ("heatmaps", lambda x: x[:1, :1, :1, :1]),
        ("heatmaps", torch.Tensor.numpy), ("seen", torch.Tensor.byte), ("seen", lambda x: x[:1]),
        ("rounding", without_last), ("rounding", torch.Tensor.long),
    ],
)  # fmt: skip
def test_the_state_of_another_bank_is_refused_and_changes_nothing(name, change):
    """A float state of 0.6 became 0 in a uint8 bank, and one cell filled all the others."""
    filled = bank()
    filled.update(INDICES, WHOLE, PROBABILITIES)
    before = copy.deepcopy(filled.state_dict())
    state = filled.state_dict()
    state[name] = change(state[name])
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        filled.load_state_dict(state)
    assert all(torch.equal(before[key], value) for key, value in filled.state_dict().items())


@pytest.mark.parametrize("name", ["heatmaps", "seen", "rounding", "classes"])
def test_the_state_of_another_sparse_bank_is_refused(name):
    for change in (without_last, torch.Tensor.double):
        state = sparse_bank().state_dict()
        with pytest.raises(ValueError, match=f"{name} must be"):
            sparse_bank().load_state_dict(state | {name: change(state[name])})
    with pytest.raises(ValueError, match="dictionary of heatmaps, seen, classes, rounding"):
        sparse_bank().load_state_dict(bank().state_dict())


@pytest.mark.parametrize("wrong", [None, {}, {"heatmaps": torch.zeros(1)}, [1, 2, 3]])
def test_what_is_no_state_is_refused(wrong):
    with pytest.raises(ValueError, match="state must be a dictionary of heatmaps, seen, rounding"):
        bank().load_state_dict(wrong)
    with pytest.raises(ValueError, match="dictionary of threshold, bank.heatmaps, bank.seen"):
        method().load_state_dict(wrong)


@pytest.mark.parametrize("name", ["priors", "predictions", "threshold"])
@pytest.mark.parametrize("change", [torch.Tensor.half, lambda x: x[:1], torch.Tensor.tolist])
def test_the_state_of_another_method_is_refused(name, change):
    state = method("ren").state_dict()
    with pytest.raises((ValueError, TypeError), match=f"{name} must be"):
        method("ren").load_state_dict(state | {name: change(state[name])})
    with pytest.raises(ValueError, match="must be a dictionary of"):
        method("role").load_state_dict(state)


@pytest.mark.parametrize("value", [-1, 2, 0.5, torch.nan])
def test_labels_that_are_neither_0_nor_1_are_refused(value):
    """With -1 for "absent", mAP counted every label as present."""
    labels = LABELS.where(LABELS == 1, value)
    for function, *more in (
        (mean_average_precision,), (metrics.top1_accuracy,),
        (metrics.evaluate_scores, ("a", "b", "c")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="labels must be 0 or 1"):
            function(ROW, labels, *more)
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        metrics.precision_recall(ROW > 0.5, labels)
    with pytest.raises(ValueError, match="chosen must be 0 or 1"):
        metrics.precision_recall(labels, LABELS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_ignored_labels_must_be_bool(dtype):
    """The inverse of the integer 1 is -2, and mAP became 150 %."""
    with pytest.raises(ValueError, match="ignored must be .4, 3. bool"):
        mean_average_precision(ROW, LABELS, (ROW > 2).to(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HeatmapBank(2.0, C), "num_images must be a whole number"),
        (lambda: HeatmapBank(N, C, True), "size must be a whole number"),
        (lambda: HeatmapBank.of(torch.zeros(N, C, 4, 4).long(), torch.ones(N, 4, 4).bool()),
         "heatmaps must be of torch.uint8"),
        (lambda: bank().read(INDICES, WHOLE, 0), "grid must be a whole number"),
        (lambda: bank().read(INDICES, WHOLE, 2.5), "grid must be a whole number"),
        (lambda: WHOLE.crop(MAPS, -1), "size must be a whole number"),
        (lambda: WHOLE.uncrop(MAPS, 0), "size must be a whole number"),
        (lambda: WHOLE.uncrop(MAPS.long(), 3), "maps must be float"),
        (lambda: WHOLE.visible(1.5), "size must be a whole number"),
        (lambda: Views.whole(-1), "batch must be a whole number"),
        (lambda: Views.sample(2.5), "batch must be a whole number"),
        (lambda: Views.sample(2, ratio=""), "ratio must be a pair of numbers; got ''"),
        (lambda: Views.sample(2, (0.1, 0.2, 0.3)), "scale must be a pair of numbers"),
        (lambda: count_penalty(LOGITS, True), "k must be a number; got True"),
        (lambda: count_penalty(LOGITS, float("nan")), "k must be a number; got nan"),
        (lambda: losses.large_loss(LOGITS, LABELS, -1), "count must be a whole number"),
        (lambda: Views.sample(2, ratio=(1.0, float("inf"))), "ratio must satisfy"),
        (lambda: method().loss(MAPS, LABELS, INDICES, Views.whole(2), 0), "views must be 4"),
        (lambda: metrics.evaluate_scores(ROW, LABELS, ("a", "b")), "classes must be 3 names"),
        (lambda: metrics.predict_maps(network(), torch.zeros(0, 3, 6, 6).byte(), 6), "the number"),
        (lambda: metrics.predict_maps(network(), torch.zeros(1, 3, 6, 6).byte(), 0), "side must"),
        (lambda: losses.large_loss(LOGITS, LABELS, 2, "rejekt"), "Did you mean 'reject'"),
        (lambda: losses.label_smoothing(LOGITS, LABELS, 0.7), "smoothing must be in"),
        (lambda: losses.weak_negatives(LOGITS[:, :1], LABELS[:, :1]), "two classes or more"),
        (lambda: losses.robust_expected_negative(LOGITS, LABELS, None, torch.rand(C), 0),
         "robustness must be in"),
        (lambda: losses.robust_expected_negative(LOGITS, LABELS, None, torch.rand(C), 1, 1.0),
         "hidden must be in"),
        (lambda: model.autocast(torch.device("cpu"), "float16"), "unknown amp 'float16'"),
        (lambda: model.autocast("cpu", "off"), "device must be a torch.device"),
        (lambda: losses.first_averages(LABELS, ""), "seed must be a whole number"),
        (lambda: losses.first_estimates(LABELS, 10**30), "seed must be a whole number"),
        (lambda: model.build_backbone("resnet50", None, 3), "dilation must be 1 or 2"),
    ],
)  # fmt: skip
def test_other_arguments_are_checked_too(call, message):
    with pytest.raises((ValueError, TypeError, UserError), match=message):
        call()


def test_a_network_takes_images_of_any_floating_type():
    images, own = torch.rand(B, 3, 6, 6), network()
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(own(images.to(kind)), own(images.to(kind).float()))


def test_numbers_of_numpy_are_whole_numbers():
    assert HeatmapBank(np.int64(2), np.int32(3), np.uint8(4)).heatmaps.shape == (2, 3, 4, 4)


def test_checks_read_no_values():
    """Tensors without storage have a shape and a type, but no values to read."""
    empty = {"device": "meta"}
    logits, maps = torch.empty(B, C, **empty), torch.empty(B, C, G, G, **empty)
    losses.assume_negative(logits, torch.empty(B, C, **empty))
    losses.spatial_consistency(maps, maps, torch.empty(B, 1, G, G, **empty))
    losses.expected_negative(logits, logits, torch.empty(B, C, dtype=torch.bool, **empty))
    Pooling()(maps)
