"""Every loss agrees with its formula, written again in numpy: value and gradient, in float64."""

import dataclasses

import numpy as np
import pytest
import torch
from slow_reference import divergence, sigmoid

from spcl_lib import MethodSettings, spatial_consistency
from spcl_lib.losses import stateless
from spcl_lib.losses.consistency import cell_consistency
from spcl_lib.losses.expected import class_priors, expected_negative_threshold
from spcl_lib.losses.registry import TERMS
from spcl_lib.losses.settings import DISTANCES
from spcl_lib.losses.state import Context

B, C, G = 5, 4, 3
SETTINGS = MethodSettings(expected_positives=1.5, pseudo_least=0.3, count_weight=0.2, rejected=5.0,
                          asset_weight=0.7, pseudo_weight=0.4, start=0, robust_slope=10,
                          robust_offset=-8)  # fmt: skip
POSSIBLE = np.array([[1, 0, 0, 1], [0] * 4, [1] * 4, [0, 1, 0, 0], [0, 0, 1, 1]], bool)
PRESENCE = torch.rand(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
THRESHOLD = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
PRIORS = torch.tensor([0.3, 0.5, 0.1, 0.2], dtype=torch.float64)


def batch():
    """Logits (B, C) float64 and labels with one 1 per row."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    labels = torch.zeros(B, C)
    labels[torch.arange(B), torch.randint(C, (B,), generator=generator)] = 1
    return logits.requires_grad_(), labels


def context(epoch=3.0, presence=None):
    return Context(torch.arange(B), epoch, 8, SETTINGS, presence)


def state_of(name, settings=SETTINGS, seed=0, **buffers):
    """The state of a term for B images."""
    state = TERMS[name].loss(batch()[1], settings, 8, seed).double()
    for buffer, value in buffers.items():
        setattr(state, buffer, value)
    return state


def ren_of(priors=0 * PRIORS, **more):
    """REN after the averages are known; without Crisp's part, if no priors are."""
    settings = dataclasses.replace(SETTINGS, robustness=0.7, **more)
    state = state_of("ren", settings, threshold=THRESHOLD, priors=priors)
    return lambda s, z, c: state(s, z, context(presence=PRESENCE))


# --- formulas: functions of s, p = sigmoid(s) and z -----------------------------------------------


def cross(p, t):
    return -t * np.log(p) - (1 - t) * np.log(1 - p)


def either(z, positive, other):
    return np.where(z == 1, positive, other).mean()


def splc(s, p, z, after=True):
    q = sigmoid(s - 1)
    found = -((1 - p) ** 2) * np.log(p) if after else np.inf
    other = np.where(after & (p > 0.6), found, -(p**2) * np.log(1 - p))
    return either(z, -((1 - q) ** 2) * np.log(q), other)


def asl(s, p, z):
    fixed, q = (np.maximum(of - 0.05, 0) for of in (sigmoid(batch()[0].detach().numpy()), p))
    return either(z, -np.log(p), -(fixed**4) * np.log(1 - q))


def count_penalty(p, k=1.5):
    return ((p.sum(1).mean() - k) / C) ** 2


def epr(s, p, z):
    return either(z, -np.log(p), 0) + count_penalty(p)


def annotated(s, p, z, smoothing=0.0):
    return -((z * (1 - smoothing) + smoothing / C) * np.log(p)).sum() / B


def crisp(s, p, z):
    missed = ((1 - p) * z).sum(0) / np.maximum(z.sum(0), 1)
    return (2 * PRIORS.numpy() * missed + abs(p.mean(0) - PRIORS.numpy())).mean()


def ren(s, p, z, r=0.7, hidden=0.0):
    q, t = PRESENCE.numpy(), THRESHOLD.numpy()
    w = np.where(z == 1, 1, 1 / (1 + (q / (1 - q) * (1 - t) / t) ** 2))
    n = (1 - hidden) * (1 - (1 - p) ** r) / r - hidden * np.log(p)
    return (w * np.where(z == 1, -np.log(p), n)).sum() / w.sum()


def en_cells(s, p, z):
    possible = (PRESENCE.numpy() >= THRESHOLD.numpy()) & (z == 0)
    left = np.maximum(1 - (p * possible).sum(1), 1e-3)
    return annotated(s, p, z) + np.log(left).mean()


CASES = {
    "an": (stateless.assume_negative, lambda s, p, z: cross(p, z).mean()),
    "an_ls": (stateless.label_smoothing, lambda s, p, z: cross(p, 0.1 + 0.8 * z).mean()),
    "wan": (
        stateless.weak_negatives, lambda s, p, z: either(z, -np.log(p), -np.log(1 - p) / (C - 1))
    ),
    "annotated": (stateless.annotated_only, annotated),
    "smooth": (stateless.smoothed_annotated_only, lambda *a: annotated(*a, SETTINGS.smoothing)),
    "em": (
        stateless.entropy_maximisation, lambda s, p, z: either(z, -np.log(p), -0.2 * cross(p, p))
    ),
    "hill": (stateless.hill, lambda s, p, z: either(
        z, -((1 - sigmoid(s - 1)) ** 2) * np.log(sigmoid(s - 1)), (1.5 - p) * p**2)),
    "splc": (stateless.splc, splc),
    "splc, first epoch": (
        lambda s, z, c: stateless.splc(s, z, context(0.9)), lambda *a: splc(*a, after=False)
    ),
    "asl": (stateless.asymmetric, asl),
    "epr": (stateless.expected_positive_regularisation, epr),
    "iun": (
        lambda s, z, c: stateless.ignore_unobserved(
            s, TERMS["iun"].sees(torch.from_numpy(POSSIBLE) | z.bool(), z.bool()), c),
        lambda s, p, z: np.where(POSSIBLE & (z == 0), 0, cross(p, z)).mean(),
    ),
    "ren": (ren_of(), ren),
    "ren, hidden positives": (ren_of(hidden_share=1.2), lambda *a: ren(*a, hidden=0.2)),
    "ren, priors": (ren_of(PRIORS, prior_weight=0.6), lambda *a: ren(*a) + 0.6 * crisp(*a)),
    "crisp": (state_of("crisp", priors=PRIORS), crisp),
    "en_cells": (
        lambda s, z, c: state_of("en_cells", threshold=THRESHOLD)(s, z, context(presence=PRESENCE)),
        en_cells,
    ),
}  # fmt: skip


def slope(function, values, place, step=1e-6):
    """The derivative of a function of an array by differences."""
    moved = np.zeros_like(values)
    moved[place] = step
    return (function(values + moved) - function(values - moved)) / (2 * step)


def check(loss, formula):
    logits, labels = batch()
    loss = loss(logits, labels, context())
    loss.backward()
    s, z = logits.detach().numpy(), labels.double().numpy()
    assert loss.item() == pytest.approx(formula(s, sigmoid(s), z), rel=1e-6, abs=1e-9)
    for place in np.ndindex(B, C):
        expected = slope(lambda s: formula(s, sigmoid(s), z), s, place)
        assert logits.grad[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name):
    check(*CASES[name])


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", ["gr", "gpr"])
def test_gr_and_gpr_are_their_formulas_and_their_weights_have_no_gradient(name, progress):
    fixed = sigmoid(batch()[0].detach().numpy())  # p of k and v, which have no gradient
    k = sigmoid(10 * progress * fixed - 2 - 6 * progress)
    v = np.exp(-((fixed - 0.5 - 0.3 * progress) ** 2) / (2 * (2 - 1.5 * progress) ** 2))
    state = state_of("gpr")
    state.possible = lambda presence: torch.from_numpy(POSSIBLE)

    def formula(s, p, z):
        other = v * (k * (1 - p**0.01) / 0.01 + (1 - k) * p)
        if name == "gr":
            return either(z, -np.log(p), other)
        other = np.where(POSSIBLE, np.clip(1 - v, 0.3, 0.7) * cross(p, 0.9), other)
        return either(z, -np.log(p), other) + 0.2 * count_penalty(p)

    loss = stateless.generalised_robust if name == "gr" else state
    check(lambda s, z, c: loss(s, z, context(8 * progress, PRESENCE)), formula)


# --- large losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ll_r", "ll_ct"])
@pytest.mark.parametrize(("epoch", "count"), [(0.9, 0), (1, 1), (2.5, 2), (9, 9), (99, B * C)])
def test_ll_treats_exactly_the_largest_unknown_losses_and_more_with_every_epoch(name, epoch, count):
    logits, labels = batch()
    s, z = logits.detach().numpy().ravel(), labels.numpy().ravel()
    losses = cross(sigmoid(s), z)
    largest = [i for i in np.argsort(-losses) if not z[i]][:count]  # 5 % of 20 in each epoch
    losses[largest] = 0 if name == "ll_r" else -np.log(sigmoid(s[largest]))
    found = TERMS[name].loss(logits, labels, context(epoch))
    assert found.item() == pytest.approx(losses.mean())


def test_ll_cp_remembers_what_it_has_made_positive():
    logits, labels = batch()
    state = state_of("ll_cp")
    assert state(logits, labels, context(0.5)) == stateless.assume_negative(logits, labels)
    expected = stateless.correct_large(logits, labels, context(1))
    torch.testing.assert_close(state(logits, labels, context()), expected)
    for count in (1, 2):  # 5 % of 20 more with every step
        before = state.made.clone()
        state.observe(logits, context())
        assert int(state.made.sum()) == count and (state.made | ~before).all()


# --- losses with state ----------------------------------------------------------------------------


def test_role_is_its_formula_for_the_network_and_for_the_estimates():
    state, fixed = state_of("role"), batch()[0].detach().numpy()
    estimates = state.estimates.detach().numpy()

    def one_side(learning, other, z):
        p = sigmoid(learning)
        return cross(p, sigmoid(other)).mean() + epr(learning, p, z)

    check(state, lambda s, p, z: (one_side(s, estimates, z) + one_side(estimates, fixed, z)) / 2)
    labels = batch()[1].numpy()
    for place in np.ndindex(B, C):  # `check` has made the gradient of the estimates
        expected = slope(lambda y: one_side(y, fixed, labels) / 2, estimates, place)
        assert state.estimates.grad[place].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("name", "table", "sure"), [("role", "estimates", 0.995),
                                                     ("asset", "averages", 1.0)])  # fmt: skip
def test_first_estimates_are_sure_of_the_annotated_label_only(name, table, sure):
    labels = batch()[1].bool()
    start, again, other = (getattr(state_of(name, seed=seed), table).detach() for seed in (0, 0, 1))
    assert torch.equal(start, again) and not torch.equal(again, other)
    start = start.sigmoid() if name == "role" else start
    assert start[labels].tolist() == pytest.approx([sure] * B, rel=1e-5)
    assert 0.4 <= start[~labels].min() < 0.5 < start[~labels].max() <= 0.6


def test_the_assets_averages_move_only_for_the_images_that_were_shown():
    settings = MethodSettings(asset_step=0.25, asset_weight=0.7)
    state, (logits, labels) = state_of("asset", settings), batch()
    shown, which = Context(torch.tensor([3, 1]), 0.0, 8, settings), [3, 1]
    before, logits, z = state.averages.clone(), logits.detach()[which], labels[which]
    p = logits.sigmoid().numpy()
    expected = cross(p, z.numpy()).mean() + 0.7 * cross(p, before[which].numpy()).mean()
    assert state(logits, z, shown).item() == pytest.approx(expected)
    state.observe(logits, shown)
    moved = 0.75 * before[which] + 0.25 * logits.sigmoid()
    torch.testing.assert_close(state.averages[which], moved)
    assert torch.equal(state.averages[[0, 2, 4]], before[[0, 2, 4]])


@pytest.mark.parametrize("start", [0, 1])
def test_apl_gives_pseudo_labels_to_the_lowest_predictions_until_ninety_percent_have_one(start):
    labels = torch.zeros(20, 2)
    labels[:10, 0] = labels[10:, 1] = 1
    state = TERMS["apl"].loss(labels, MethodSettings(start=start), 4, 0)
    state.predictions.copy_(torch.rand(20, 2, generator=torch.Generator().manual_seed(0)))
    for done in range(1, 4):
        state.end_epoch(done, None, labels)
        given = ~state.pseudo.isnan()
        assert given.sum(0).tolist() == [3 * done, 3 * done]
        for c in range(2):
            rest = (labels[:, c] == 0) & ~given[:, c]
            assert state.predictions[given[:, c], c].max() < state.predictions[rest, c].min()
    assert not (given & labels.bool()).any()
    assert torch.equal(state.pseudo[given], state.predictions[given])


def test_apl_weighs_pseudo_labels_and_keeps_em_for_the_rest():
    state, first = state_of("apl"), np.arange(B)[:, None] == 0
    state.pseudo[0] = 0.1
    check(state, lambda s, p, z: either(
        z, -np.log(p), np.where(first, 0.4 * cross(p, 0.1), -0.2 * cross(p, p))))  # fmt: skip


def test_crisp_estimates_how_often_a_class_is_there_from_a_few_annotated_images():
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(4000, 3, generator=generator) < torch.tensor([0.3, 0.7, 0.5])
    scores = (there.float() + 0.3 * torch.randn(there.shape, generator=generator)).sigmoid()
    annotated_there = there & (torch.rand(there.shape, generator=generator) < 0.3)
    annotated_there[:, 2] = False
    assert class_priors(scores, annotated_there).tolist() == pytest.approx([0.3, 0.7, 0], abs=0.07)
    state = TERMS["crisp"].loss(annotated_there, SETTINGS, 8, 0)
    state.observe(scores[:1000].logit(), Context(torch.arange(1000), 0.0, 8, SETTINGS))
    state.end_epoch(1, None, annotated_there)  # images without a step say nothing
    assert state.priors.tolist() == pytest.approx([0.3, 0.7, 0], abs=0.1)


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
    # A sparse bank keeps few classes of an image, and the others read as 0: they stay negative.
    kept = presence * (presence >= 0.5)
    kept[3, 2] = 0  # the only image that is annotated with this class
    threshold = expected_negative_threshold(kept, labels, 3.0)
    assert ((kept >= threshold) & (labels == 0)).nonzero().tolist() == [[1, 1]]
    labels[3, 2] = 0  # nobody is annotated with the last class: it stays negative
    assert expected_negative_threshold(presence, labels, 100.0).isinf().tolist() == [0, 0, 1]


def test_where_nothing_is_a_possible_positive_every_wrong_label_weighs_the_same_in_ren():
    state, (s, z) = state_of("ren", threshold=torch.full((C,), torch.inf)), batch()
    sure, unsure = (state(s, z, context(presence=torch.full((B, C), q))) for q in (0.9999, 0.1))
    torch.testing.assert_close(sure, unsure, rtol=1e-9, atol=0)


# --- consistency ----------------------------------------------------------------------------------


def d(logits, target, kind):
    """Distance between sigmoid(logits) and a target, from its definition."""
    if kind == "bce":
        return divergence(logits, target)
    p = sigmoid(logits)
    return abs(p - target) if kind == "l1" else (p - target) ** 2


@pytest.mark.parametrize("kind", [*DISTANCES, "cells"])
def test_scl_is_the_mean_over_seen_cells_and_0_without_a_slope_where_it_agrees(kind):
    generator = torch.Generator().manual_seed(2)
    maps, target = torch.randn(2, B, C, G, G, generator=generator, dtype=torch.float64)
    seen = (torch.rand(B, 1, G, G, generator=generator) < 0.6).double()
    target = target.softmax(1) if kind == "cells" else target.sigmoid()
    target[0] = torch.eye(C)[1][:, None, None]  # the logarithm of 0 is no trouble
    f, t, shown = maps.numpy(), target.numpy(), seen[:, 0].numpy() > 0
    if kind == "cells":
        q = np.exp(f) / np.exp(f).sum(1, keepdims=True)
        with np.errstate(all="ignore"):
            values = np.nan_to_num(t * np.log(t / q)).sum(1)
    else:
        values = d(f, t, kind).mean(1)
    loss, more = (cell_consistency, []) if kind == "cells" else (spatial_consistency, [kind])
    expected = values[shown].mean()
    assert loss(maps, target, seen, *more).item() == pytest.approx(expected, rel=1e-6)
    assert loss(maps, target, 0 * seen, *more) == 0
    assert loss(maps.half(), target.half(), seen.half(), *more).isfinite()
    same = maps.softmax(1) if kind == "cells" else maps.sigmoid()
    value = loss(maps.requires_grad_(), same, seen, *more)
    value.backward()
    assert value.abs() < 1e-6 and maps.grad.abs().max() < 1e-6
