"""Whole methods: their formula, their start and ramp, their state, and that SCL learns."""

import copy
import math

import numpy as np
import pytest
import slow_reference as slow
import torch
import torch.nn.functional as F
from slow_reference import divergence, sigmoid

from spcl_lib import Method, MethodSettings, Views
from spcl_lib.data.scenes import make_scenes
from spcl_lib.losses import stateless
from spcl_lib.losses.registry import TERMS
from spcl_lib.losses.settings import DISTANCES
from spcl_lib.losses.state import State
from spcl_lib.methods import METHODS, PAPER_METHODS
from spcl_lib.model import SpatialClassifier, build_backbone, normalise
from spcl_lib.pooling import Pooling
from spcl_lib.system import paths

B, C, G, N = 4, 3, 3, 6
LABELS = F.one_hot(torch.tensor([0, 2, 1, 1, 0, 2]), C).bool()
INDICES = torch.tensor([5, 0, 3, 2])


def random_maps(count, seed):
    return 3 * torch.randn(count, C, G, G, generator=torch.Generator().manual_seed(seed))


def batch(seed=20):
    views = Views.sample(B, generator=torch.Generator().manual_seed(seed))
    return random_maps(B, seed), LABELS[INDICES], INDICES, views


def new_method(name, **settings):
    defaults = dict(start=1, ramp=2.0, bank_size=5, bank_dtype="float32", weight=0.7, rejected=9.0)
    return Method(name, N, C, MethodSettings(**(defaults | settings)), labels=LABELS, epochs=4)


def trained_method(name, epochs=4, **settings):
    """A method after some epochs of random maps of all images through random views."""
    method = new_method(name, **settings)
    for epoch in range(epochs):
        views = Views.sample(N, (0.3, 0.9), generator=torch.Generator().manual_seed(epoch))
        method.update(random_maps(N, epoch), torch.arange(N), views, epoch)
        method.end_epoch(epoch)
    return method


def state_of(method):
    return copy.deepcopy(method.state_dict())


def assert_same(state, other):
    torch.testing.assert_close(state, other, rtol=0, atol=0, equal_nan=True)


# --- formulas -------------------------------------------------------------------------------------


def naive_loss(method, epoch):
    """The loss of `batch()` by loops over images, classes and cells: AN or EN, CL or SCL."""
    maps, labels, indices, views = batch()
    maps, terms, supervised = maps.double().numpy(), [], 0.0
    for b, n in enumerate(indices.tolist()):
        seen, target = np.ones((1, 1), bool), None
        if method.spec.consistency == "scl":
            weights, heat = method.bank.seen[n].double().numpy(), method.bank.heatmaps[n].numpy()
            share = slow.crop(weights, views.boxes[b], views.flipped[b], G)
            known = [slow.crop(h * weights, views.boxes[b], views.flipped[b], G) for h in heat]
            seen, target = share >= 0.5, np.stack(known) / np.maximum(share, 1e-9)
            places = [(c, y, x) for c in range(C) for y, x in np.argwhere(seen)]
            terms += [divergence(maps[b][place], target[place]) for place in places]
        elif method.bank is not None:
            target = method.bank.heatmaps[n].double().numpy()
            terms += [divergence(maps[b, c].mean(), target[c, 0, 0]) for c in range(C)]
        for c in range(C):
            p = sigmoid(maps[b, c].mean())
            if method.spec.term == "en" and not labels[b, c]:
                read = np.clip(target[c][seen], 1 / 512, 1 - 1 / 512)
                presence = sigmoid(np.mean(np.log(read / (1 - read)))) if len(read) else 0
                if presence >= method.term.threshold[c]:
                    continue
            supervised -= math.log(p if labels[b, c] else 1 - p) / (B * C)
    if not method.spec.consistency:
        return supervised
    weight = min(1, (epoch + 0.5 - method.settings.start) / method.settings.ramp)
    return supervised + method.settings.weight * weight * np.mean(terms)


@pytest.mark.parametrize("name", [n for n in PAPER_METHODS if n != "full"])
@pytest.mark.parametrize("epoch", [1, 4])
def test_the_loss_and_the_gradient_of_the_papers_methods_are_their_formulas(name, epoch):
    method = trained_method(name)
    maps, *rest = batch()
    maps = maps.double().requires_grad_()
    loss = method.loss(maps, *rest, epoch)
    assert loss.item() == pytest.approx(naive_loss(method, epoch), rel=2e-4)
    loss.backward()
    for place in ((0, 0, 0, 0), (1, 2, 1, 2), (3, 1, 2, 0)):
        step = torch.zeros_like(maps)
        step[place] = 1e-2
        ahead, behind = (method.loss(maps.detach() + s, *rest, epoch) for s in (step, -step))
        slope = (ahead - behind).item() / 2e-2
        assert maps.grad[place].item() == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_one_value_per_class_is_the_presence_itself_whatever_pools_the_maps():
    method = Method("en", N, C, MethodSettings(start=0), 0, LABELS, pooling=Pooling("boost", 2.0))
    method.update(random_maps(N, 0), torch.arange(N), Views.whole(N), 0)
    torch.testing.assert_close(method.presence, method.bank.heatmaps[:, :, 0, 0])


@pytest.mark.parametrize("term", sorted(t for t in TERMS if TERMS[t].sees is None and t != "an"))
def test_a_name_adds_the_same_consistency_to_any_term(term):
    """NAME_scl is NAME and the term that SCL adds to AN; so with CL."""
    for kind in ("cl", "scl"):
        losses = {}
        for name in (f"{term}_{kind}", term, kind, "an"):
            losses[name] = trained_method(name).loss(*batch(), 4).item()
        extra = losses[kind] - losses["an"]
        assert extra > 0 and math.isfinite(losses[f"{term}_{kind}"])
        if not (TERMS[term].reads_averages or TERMS[term].pooling):
            assert losses[f"{term}_{kind}"] == pytest.approx(losses[term] + extra, rel=1e-4)


@pytest.mark.parametrize("name", PAPER_METHODS)
def test_before_start_the_papers_methods_are_an(name):
    method, data = trained_method(name, start=3), batch()
    an = stateless.assume_negative(data[0].mean((2, 3)), data[1])
    assert all(method.loss(*data, epoch) == an for epoch in (0, 1.5, 2.99))


@pytest.mark.parametrize("name", ["cl", "scl"])
def test_lambda_is_the_ramp_in_the_middle_of_an_epoch_for_whole_and_fractional_epochs(name):
    method, data = trained_method(name, epochs=7, start=2, ramp=4.0, weight=0.5), batch()
    an = stateless.assume_negative(data[0].mean((2, 3)), data[1])
    whole = (method.loss(*data, 6) - an).item()
    assert whole > 0.01
    for epoch, share in ((2, 0.125), (3.3, 0.375), (5.99, 0.875), (6.5, 1), (7, 1)):
        assert (method.loss(*data, epoch) - an).item() == pytest.approx(share * whole, abs=1e-6)


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("name", [n for n in METHODS if not n.endswith("_cl")])
def test_a_loss_is_finite_and_exact_in_half_precision_up_to_logits_of_60(name, dtype, autocast):
    """In float16, 1 - sigmoid(9) is 0: a loss that is not computed in float32 is infinite."""
    method, (_, *rest) = trained_method(name), batch()
    values = torch.tensor([-60, -30, -9, -5, -1, 0, 1, 5, 9, 30, 60, 0])
    cells = torch.linspace(-1, 1, G * G).view(G, G)  # the mean of a map is its value
    given = (values.view(B, C, 1, 1) + cells).clamp(-60, 60).to(dtype).requires_grad_()
    exact = given.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = method.loss(given, *rest, 4)
    expected = method.loss(exact, *rest, 4)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert torch.isfinite(given.grad).all()
    torch.testing.assert_close(given.grad.double(), exact.grad, rtol=0.02, atol=2e-4)


@pytest.mark.parametrize("more", [{}, {"bank_classes": 2}])
def test_momentum_and_distance_are_those_of_the_settings(more):
    assert {new_method(n, momentum=0.3, **more).bank.momentum for n in ("cl", "scl")} == {0.3}
    losses = [trained_method("scl", distance=d, **more).loss(*batch(), 4) for d in DISTANCES]
    assert len(set(map(float, losses))) == 3


def test_a_prediction_agrees_with_itself_at_any_temperature():
    pooling, own = Pooling("cells", 2.0), MethodSettings(start=0, bank_size=G, bank_dtype="float32")
    method = Method("cells_scl", N, C, own, labels=LABELS, pooling=pooling)
    maps, z, indices, _ = batch()
    method.update(maps, indices, Views.whole(B), 0)
    expected = stateless.annotated_only(pooling(maps), z, None)
    torch.testing.assert_close(method.loss(maps, z, indices, Views.whole(B), 5), expected)


# --- the loop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_changes_no_state_and_a_restored_method_gives_the_same_next_losses(name):
    method, restored = trained_method(name), new_method(name)
    before = state_of(method)
    losses = [method.loss(*batch(), epoch).item() for epoch in (4, 4)]
    assert losses[0] == losses[1] and math.isfinite(losses[0])
    assert_same(before, state_of(method))
    restored.load_state_dict(before)
    for one in (method, restored):
        one.update(batch(3)[0], INDICES, batch(3)[3], 4)
        one.end_epoch(4)
    assert method.loss(*batch(), 5) == restored.loss(*batch(), 5)
    assert_same(state_of(method), state_of(restored))
    learned = [p.shape for p in method.parameters()]
    assert learned == ([(N, C)] if method.spec.term == "role" else [])


@pytest.mark.parametrize("name", ["en", "ren", "crisp", "en_scl", "gpr_cl"])
def test_with_start_0_the_first_epoch_still_teaches_all_labels(name):
    """Without averages, the threshold was minus infinity: no unknown label had a gradient."""
    method, (maps, *rest) = new_method(name, start=0), batch()
    maps.requires_grad_()
    method.loss(maps, *rest, 0).backward()
    assert (maps.grad.abs().sum((2, 3)) > 0).all()


@pytest.mark.parametrize("name", ["en", "gpr_scl", "role", "scl"])
def test_a_call_that_was_forgotten_is_named(name):
    method, data = new_method(name), batch()
    with pytest.raises(RuntimeError, match="method.update was never called"):
        method.loss(*data, 1)
    method.update(data[0], data[2], data[3], 0)
    if not isinstance(method.term, State):
        return
    with pytest.raises(RuntimeError, match=r"method.end_epoch\(0\) was not called"):
        method.loss(*data, 1)
    method.end_epoch(0)
    assert torch.isfinite(method.loss(*data, 1))


@pytest.mark.parametrize("name", ["scl", "cl"])
def test_averages_begin_one_epoch_before_they_are_used(name):
    method, (maps, _, indices, views) = new_method(name, start=3), batch()
    method.update(maps.requires_grad_(), indices, views, 1.99)
    assert not method.bank.seen.any()
    method.update(maps, indices, views, 2.0)
    assert method.bank.seen[indices].flatten(1).any(1).all()
    assert not method.bank.heatmaps.requires_grad


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [("cl", 1, torch.float32), ("en", 1, torch.float32), ("en_cl", 1, torch.float32),
     ("softmax_cl", 1, torch.float32), ("scl", 5, torch.uint8), ("an", None, None)],
)  # fmt: skip
def test_methods_keep_the_averages_that_they_need(name, size, dtype):
    """uint8 is too coarse for the one value that CL and EN keep of a class."""
    bank = new_method(name, bank_dtype="uint8").bank
    assert (bank.size, bank.heatmaps.dtype) == (size, dtype) if size else bank is None
    assert Method("scl", 2, 3, device="meta").bank.seen.is_meta


# --- scenes ---------------------------------------------------------------------------------------


def annotated_scenes(count):
    """Images, single labels and the truth: (N, C, S, S) where each class is visible."""
    made = make_scenes(count)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(made.labels.float(), 1, generator=generator)[:, 0]
    masks = made.class_map[:, None] == torch.arange(1, 13)[:, None, None]
    return made.images, F.one_hot(chosen, 12), masks


def auroc(scores, positive):
    above = (scores[positive][:, None] - scores[~positive][None]).sign()
    return float((above + 1).mean() / 2)


def test_scl_knows_when_a_view_has_cut_out_the_labelled_object():
    """AN says "present" in every view: its AUROC is 0.5. So is that of other images' heatmaps."""
    images, labels, masks = annotated_scenes(400)
    torch.manual_seed(0)
    weights = paths.project() / "notebooks" / "reference" / "small_resnet.safetensors"
    method = Method("scl", 400, 12, MethodSettings(start=1, ramp=1.0, distance="l1"), labels=labels)
    model = SpatialClassifier(*build_backbone("small_resnet", weights), 12, 3, method.pooling)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(8):
        for indices in torch.randperm(400).split(25):
            views = Views.sample(25)
            maps = model(normalise(views.crop(images[indices], 64)))
            loss = method.loss(maps, labels[indices], indices, views, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.update(maps, indices, views, epoch)
        method.end_epoch(epoch)

    numbers = torch.arange(400).repeat(5)
    views, own = Views.sample(2000, (0.1, 0.4)), labels.argmax(1)[numbers]
    shown = views.crop(masks[numbers, own][:, None], 16).flatten(1).amax(1) > 0.5
    assert 0.2 < (~shown).float().mean() < 0.5
    found = []
    for images_read in (numbers, (numbers + 1) % 400):
        target, _ = method.bank.read(images_read, views, 8)
        found.append(auroc(target[torch.arange(2000), own].flatten(1).amax(1), shown))
    assert found[0] > 0.62 and found[0] > found[1] + 0.1 and abs(found[1] - 0.5) < 0.1, found


def test_en_with_scl_lets_through_the_expected_number_of_unknown_labels_per_crop():
    """The threshold of whole images let 0.81 through, because a crop reads other presences."""
    _, labels, masks = annotated_scenes(300)
    settings = MethodSettings(start=0, bank_size=16, bank_dtype="float32", expected_positives=1.5)
    method = Method("en_scl", 300, 12, settings, labels=labels)
    everything, whole = torch.arange(300), Views.whole(300)
    heat = whole.crop(masks.float(), 16).clamp(0.01, 0.99)
    for _ in range(3):  # every view predicts the truth
        views = Views.sample(300)
        maps = views.crop(heat, 8).logit()
        method.bank.update(everything, whole, heat)
        method.update(maps, everything, views, 0)
    method.end_epoch(0)
    views = Views.sample(300)
    target, seen = method.bank.read(everything, views, 8)
    possible = method.term.possible(Pooling().presence(target, seen)) & ~labels.bool()
    assert possible.sum().item() / 300 == pytest.approx(0.5, abs=0.12)
