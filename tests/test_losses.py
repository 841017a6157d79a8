"""Each method agrees with its formula, written with loops, and starts and stops where it should."""

import math

import numpy as np
import pytest
import slow_reference as slow
import torch

from spcl_lib import UserError, Views, methods
from spcl_lib.losses.assume_negative import assume_negative
from spcl_lib.losses.consistency import DISTANCES, consistency, distance, spatial_consistency
from spcl_lib.losses.expected_negative import expected_negative, expected_negative_threshold
from spcl_lib.methods import METHODS, PAPER_METHODS, Method, MethodSettings
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.terms import TERMS

B, C, G, N = 4, 3, 3, 6


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def bce(s, z):
    return -math.log(sigmoid(s)) if z else -math.log(1 - sigmoid(s))


def d(logit, target, kind):
    """Distance between sigmoid(logit) and a target, from its definition."""
    p = sigmoid(logit)
    if kind == "l1":
        return abs(p - target)
    if kind == "l2":
        return (p - target) ** 2
    pairs = ((target, p), (1 - target, 1 - p))  # Kullback-Leibler
    return sum(t * math.log(t / q) for t, q in pairs if t > 0)


def naive_supervised(maps, labels, left_out=None):
    total = 0.0
    for b in range(len(maps)):
        for c in range(maps.shape[1]):
            if left_out is None or not left_out[b][c] or labels[b, c]:
                total += bce(maps[b, c].mean(), labels[b, c])
    return total / labels.size


def random_logits(*shape, seed=0):
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_label_each(count, seed=0):
    chosen = np.random.default_rng(seed).integers(C, size=count)
    return torch.from_numpy(np.eye(C, dtype=bool)[chosen])


# --- the terms ------------------------------------------------------------------------------------


def test_assume_negative_is_its_formula():
    maps, labels = random_logits(B, C, G, G).double(), one_label_each(B)
    expected = naive_supervised(maps.numpy(), labels.numpy())
    assert assume_negative(maps.mean((2, 3)), labels).item() == pytest.approx(expected, rel=1e-6)


def test_expected_negative_leaves_out_the_possible_positives_but_never_the_annotated_one():
    maps, labels = random_logits(B, C, G, G).double(), one_label_each(B)
    possible = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=torch.bool)
    expected = naive_supervised(maps.numpy(), labels.numpy(), possible.tolist())
    got = expected_negative(maps.mean((2, 3)), labels, possible)
    assert got.item() == pytest.approx(expected, rel=1e-6)
    assert got < assume_negative(maps.mean((2, 3)), labels)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_their_formulas(kind):
    logits = random_logits(40).double()
    targets = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets[:4] = torch.tensor([0.0, 1, 0, 1])
    expected = [d(s, t, kind) for s, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    np.testing.assert_allclose(distance(logits, targets, kind), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_distance_is_0_with_no_slope_where_prediction_and_target_agree(kind):
    logits = random_logits(20).requires_grad_()
    value = distance(logits, torch.sigmoid(logits.detach()), kind)
    value.sum().backward()
    assert value.abs().max() < 1e-6
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_work_in_a_loop_of_half_precision(kind, monkeypatch):
    def refused(*args, **settings):
        raise RuntimeError("unsafe to autocast")  # what CUDA's autocast says of it

    monkeypatch.setattr(torch.nn.functional, "binary_cross_entropy", refused)
    logits, target = random_logits(B, C), torch.sigmoid(random_logits(B, C, seed=1))
    expected = distance(logits, target, kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(logits.bfloat16(), target, kind)
    torch.testing.assert_close(found.float(), expected, atol=0.05, rtol=0)


def test_an_unknown_distance_names_the_valid_ones():
    with pytest.raises(UserError, match="bce, l1, l2"):
        distance(torch.zeros(1), torch.zeros(1), "l3")


@pytest.mark.parametrize("kind", DISTANCES)
def test_consistency_is_its_formula(kind):
    logits, average = random_logits(B, C), torch.rand(B, C)
    expected = np.mean([d(logits[b, c], average[b, c], kind) for b in range(B) for c in range(C)])
    assert consistency(logits, average, kind).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", DISTANCES)
def test_spatial_consistency_is_the_mean_over_seen_cells(kind):
    maps, target = random_logits(B, C, G, G), torch.rand(B, C, G, G)
    seen = (torch.rand(B, 1, G, G, generator=torch.Generator().manual_seed(2)) < 0.6).float()
    values = [
        d(maps[b, c, y, x], target[b, c, y, x], kind)
        for b in range(B) for c in range(C) for y in range(G) for x in range(G)
        if seen[b, 0, y, x]
    ]  # fmt: skip
    assert 0 < len(values) < maps.numel()
    got = spatial_consistency(maps, target, seen, kind).item()
    assert got == pytest.approx(np.mean(values), rel=1e-4)


def test_spatial_consistency_is_0_where_nothing_has_been_seen():
    maps = random_logits(B, C, G, G)
    assert spatial_consistency(maps, torch.zeros_like(maps), torch.zeros(B, 1, G, G)) == 0


# --- expected negatives ---------------------------------------------------------------------------


def test_the_threshold_of_expected_negatives_by_hand():
    labels = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    presence = torch.tensor(
        [[0.80, 0.30, 0.10], [0.40, 0.60, 0.20], [0.30, 0.60, 0.40], [0.45, 0.15, 0.50]]
    )
    # Means over annotated images: 0.6, 0.6, 0.5. Ratios of the unknown labels:
    #   -, 0.5, 0.2;   -, 1.0, 0.4;   0.5, -, 0.8;   0.75, 0.25, -
    # k = 1.5 positives an image leave 4 * 0.5 = 2 possible ones: 1.0 and 0.8.
    scale = torch.tensor([0.6, 0.6, 0.5])
    cases = ((1.25, 1.0, 1), (1.5, 0.8, 2), (1.75, 0.75, 3), (3.0, 0.2, 8), (100.0, 0.2, 8))
    for k, ratio, count in cases:
        threshold = expected_negative_threshold(presence, labels, k)
        torch.testing.assert_close(threshold, ratio * scale)
        assert ((presence >= threshold) & (labels == 0)).sum() == count  # the last one, too
    assert expected_negative_threshold(presence, labels, 1.0).isinf().all()


@pytest.mark.parametrize("k", [1.3, 2.0, 2.9])
def test_about_k_positives_an_image_stay_possible(k):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.eye(8, dtype=bool)[rng.integers(8, size=500)])
    presence = torch.from_numpy(rng.random((500, 8))).float()
    possible = presence >= expected_negative_threshold(presence, labels, k)
    assert (possible & ~labels).sum() + 500 == round(500 * k)


def test_a_class_that_no_image_is_annotated_with_stays_negative():
    labels = torch.tensor([[1, 0, 0], [0, 1, 0]])
    presence = torch.tensor([[0.8, 0.3, 0.9], [0.2, 0.6, 0.9]])
    threshold = expected_negative_threshold(presence, labels, 1.5)
    assert threshold[2].isinf()
    assert ((presence >= threshold) & (labels == 0)).tolist() == [[0, 1, 0], [0, 0, 0]]
    assert expected_negative_threshold(presence, labels, 100.0)[2].isinf()


def test_an_estimated_count_takes_the_place_of_the_given_one(monkeypatch):
    labels = one_label_each(N, seed=5)
    given, estimated, asked = (MethodSettings(start=0, **more) for more in (
        {"expected_positives": 3.0}, {"expected_count": "estimated"}, {"expected_positives": 1.0},
    ))  # fmt: skip
    monkeypatch.setattr(methods, "class_priors", lambda presence, z: torch.full((C,), 3.0 / C))
    found = []
    for settings in (given, estimated, asked):
        method = Method("en", N, C, settings)
        maps = torch.randn(N, C, 2, 2, generator=torch.Generator().manual_seed(1))
        method.update(maps, torch.arange(N), Views.whole(N), 0)
        method.begin_epoch(0, labels)
        found.append(method.tables["threshold"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_presence_is_pooled_over_logits_as_the_model_pools():
    heat = 0.05 + 0.9 * torch.rand(B, C, G, G)
    for b in range(B):
        for c in range(C):
            logits = [math.log(v / (1 - v)) for v in heat[b, c].flatten().tolist()]
            expected = sigmoid(sum(logits) / len(logits))
            assert MEAN_POOLING.presence(heat)[b, c].item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(MEAN_POOLING.presence(torch.tensor([[[[0.0, 1.0]]]]))).all()


def test_presence_counts_seen_cells_only():
    heat = torch.tensor([[[[0.9, 0.0]]], [[[0.9, 0.0]]]])
    seen = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]]])
    assert MEAN_POOLING.presence(heat, seen).flatten().tolist() == pytest.approx([0.9, 0.0])


# --- whole methods --------------------------------------------------------------------------------


def new_method(name, settings):
    return Method(name, N, C, settings, labels=one_label_each(N, seed=5), epochs=8)


def trained_method(name, kind="bce", **settings):
    """A method that has seen random maps of N images through random views, before its start."""
    defaults = dict(start=1, ramp=2.0, bank_size=5, bank_dtype="float32", distance=kind, weight=0.7)
    method = new_method(name, MethodSettings(**(defaults | settings)))
    for step in range(2):
        views = Views.sample(N, (0.3, 0.9), generator=torch.Generator().manual_seed(step))
        epoch = method.settings.start - 0.5
        method.update(random_logits(N, C, G, G, seed=step), torch.arange(N), views, epoch)
    method.begin_epoch(1, one_label_each(N, seed=5))
    return method


def batch(seed=20):
    views = Views.sample(B, generator=torch.Generator().manual_seed(seed))
    indices = torch.tensor([5, 0, 3, 2])
    return random_logits(B, C, G, G, seed=seed), one_label_each(B), indices, views


def naive_loss(method, epoch):
    """The loss of `batch()` by loops over images, classes and cells."""
    maps, labels, indices, views = batch()
    settings, maps, labels = method.settings, maps.double().numpy(), labels.numpy()
    heat = method.bank.heatmaps.double().numpy() if method.bank else None
    left_out, terms = None, []
    for b, n in enumerate(indices.tolist()):
        if method.spec.consistency == "scl":
            weights = method.bank.seen[n].double().numpy()
            share = slow.crop(weights, views.boxes[b], views.flipped[b], G)
            seen = share >= 0.5
            known = [slow.crop(h * weights, views.boxes[b], views.flipped[b], G) for h in heat[n]]
            target = np.stack(known) / np.maximum(share, 1e-9)
            terms += [
                d(maps[b, c, y, x], target[c][y, x], settings.distance)
                for c in range(C) for y, x in np.argwhere(seen)
            ]  # fmt: skip
        elif method.bank:
            seen, target = np.ones((1, 1), bool), heat[n]
            terms += [d(maps[b, c].mean(), heat[n, c, 0, 0], settings.distance) for c in range(C)]
        if method.spec.term == "en":
            read = [np.clip(t[seen], 1 / 512, 1 - 1 / 512) for t in target]  # cells seen, no other
            presence = [sigmoid(np.mean(np.log(t / (1 - t)))) if len(t) else 0 for t in read]
            left_out = [] if left_out is None else left_out
            left_out.append(
                [p > t for p, t in zip(presence, method.tables["threshold"], strict=True)]
            )
    total = naive_supervised(maps, labels, left_out)
    if method.spec.consistency:
        total += settings.weight * min(1, (epoch - settings.start) / settings.ramp) * np.mean(terms)
    if left_out is not None:
        assert 0 < np.sum(left_out) < B * C
    return total


@pytest.mark.parametrize("name", PAPER_METHODS)
@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("epoch", [1.5, 4.0])
def test_the_loss_of_every_method_is_its_formula(name, kind, epoch):
    method = trained_method(name, kind)
    got = method.loss(*batch(), epoch).item()
    assert got == pytest.approx(naive_loss(method, epoch), rel=2e-4)


def test_full_is_an_with_all_labels():
    maps, _, indices, views = batch()
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    got = Method("full", N, C).loss(maps, labels, indices, views, 9.0).item()
    assert got == pytest.approx(naive_supervised(maps.double().numpy(), labels.numpy()), rel=1e-5)


@pytest.mark.parametrize("name", PAPER_METHODS)
def test_before_start_every_method_is_an(name):
    method = trained_method(name, start=3)
    method.begin_epoch(2, one_label_each(N, seed=5))
    maps, labels, indices, views = batch()
    an = assume_negative(maps.mean((2, 3)), labels)
    for epoch in (0.0, 1.5, 2.99):
        assert method.loss(maps, labels, indices, views, epoch) == an


@pytest.mark.parametrize("name", ["cl", "scl"])
def test_the_weight_of_consistency_grows_linearly_over_the_ramp(name):
    method, data = trained_method(name, start=2, ramp=4.0, weight=0.5), batch()
    an = assume_negative(data[0].mean((2, 3)), data[1])
    whole = (method.loss(*data, 100.0) - an).item()
    assert whole > 0.01
    for epoch, share in ((2.0, 0), (3.0, 0.25), (4.0, 0.5), (6.0, 1), (7.0, 1)):
        assert (method.loss(*data, epoch) - an).item() == pytest.approx(share * whole, abs=1e-6)


@pytest.mark.parametrize("name", ["cl", "scl", "en", "en_cl", "en_scl"])
def test_images_that_are_new_are_not_pulled_towards_zero(name):
    method, data = new_method(name, MethodSettings(start=0, ramp=0.0)), batch()
    assert method.loss(*data, 0.5) == pytest.approx(
        assume_negative(data[0].mean((2, 3)), data[1]).item(), abs=1e-6
    )


@pytest.mark.parametrize("name", PAPER_METHODS)
@pytest.mark.parametrize("kind", DISTANCES)
def test_the_gradient_is_that_of_the_formula_with_the_targets_held_still(name, kind):
    method = trained_method(name, kind)
    maps, labels, indices, views = batch()
    maps = maps.double().requires_grad_()
    method.loss(maps, labels, indices, views, 4.0).backward()
    for place in ((0, 0, 0, 0), (1, 2, 1, 2), (3, 1, 2, 0)):
        step = torch.zeros_like(maps)
        step[place] = 1e-2
        ahead, behind = (
            method.loss(maps.detach() + s, labels, indices, views, 4.0) for s in (step, -step)
        )
        slope = (ahead - behind).item() / 2e-2
        assert maps.grad[place].item() == pytest.approx(slope, rel=2e-3, abs=1e-5)


@pytest.mark.parametrize("name", ["cl", "scl", "en", "en_cl", "en_scl"])
def test_an_update_keeps_no_gradient_and_only_updates_change_the_averages(name):
    method = trained_method(name)
    maps, labels, indices, views = batch()
    maps.requires_grad_()
    before = method.bank.heatmaps.clone()
    method.loss(maps, labels, indices, views, 4.0).backward()
    assert torch.equal(method.bank.heatmaps, before)
    method.update(maps, indices, views, 4.0)
    assert not torch.equal(method.bank.heatmaps, before)
    assert not method.bank.heatmaps.requires_grad


@pytest.mark.parametrize("name", ["cl", "scl", "en", "en_cl", "en_scl"])
def test_the_averages_begin_one_epoch_before_they_are_used(name):
    method = Method(name, N, C, MethodSettings(start=3, bank_size=5))
    maps, _, indices, views = batch()
    method.update(maps, indices, views, 1.99)
    assert not method.bank.seen.any()
    method.update(maps, indices, views, 2.0)
    assert method.bank.seen[indices].flatten(1).any(1).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_method_gives_the_same_loss(name):
    method, restored = trained_method(name), new_method(name, trained_method(name).settings)
    restored.load_state_dict(method.state_dict())
    assert restored.loss(*batch(), 4.0) == method.loss(*batch(), 4.0)


@pytest.mark.parametrize(
    ("name", "side"), [("an", None), ("full", None), ("cl", 1), ("en", 1), ("en_cl", 1),
                       ("scl", 5), ("en_scl", 5)]
)  # fmt: skip
def test_methods_keep_the_averages_that_they_need(name, side):
    bank = Method(name, N, C, MethodSettings(bank_size=5)).bank
    assert (bank.size if bank else None) == side


def test_an_unknown_method_names_the_valid_ones():
    with pytest.raises(UserError, match="Did you mean 'scl'.*an, cl, scl, en"):
        Method("sccl", N, C)


@pytest.mark.parametrize("term", sorted(t for t in TERMS if TERMS[t].sees is None))
def test_a_name_adds_the_same_consistency_to_any_term(term):
    """NAME_scl is NAME and the term that SCL adds to AN; so with CL."""
    maps, labels, indices, views = batch()
    names = (
        {"cl": "cl", "scl": "scl"} if term == "an" else {c: f"{term}_{c}" for c in ("cl", "scl")}
    )
    for kind, name in names.items():
        both, alone = trained_method(name), trained_method(term)
        added, usual = trained_method(kind), trained_method("an")
        got = both.loss(maps, labels, indices, views, 4.0)
        own = usual.loss(maps, labels, indices, views, 4.0)
        extra = added.loss(maps, labels, indices, views, 4.0) - own
        if not TERMS[term].reads_averages:  # a selection by them differs between CL and SCL
            assert got.item() == pytest.approx(
                alone.loss(maps, labels, indices, views, 4.0).item() + extra.item(), rel=1e-4
            )
        assert torch.isfinite(got) and extra > 0


def test_a_term_with_state_needs_the_labels():
    with pytest.raises(ValueError, match="'role' keeps state: give labels"):
        Method("role", N, C)


def test_roles_estimates_are_learned_together_with_the_network():
    method = trained_method("role")
    (estimates,) = method.parameters()
    optimizer = torch.optim.SGD([estimates], lr=10.0)
    before = estimates.detach().clone()
    method.loss(*batch(), 1.0).backward()
    optimizer.step()
    changed = (estimates.detach() != before).any(1)
    assert changed[batch()[2]].all() and int(changed.sum()) == B
    assert trained_method("gr").parameters() == []
