"""Every loss agrees with its formula: label by label, in float64, value and gradient.

The tests share only the functions under test with the library.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from spcl_lib import MethodSettings, UserError
from spcl_lib.losses import DISTANCES, TERMS, Context, consistency, spatial_consistency, stateless
from spcl_lib.losses.consistency import cell_consistency, distance
from spcl_lib.losses.expected import class_priors, expected_negative_threshold

B, C, G = 5, 4, 3
SETTINGS = MethodSettings(expected_positives=1.5, pseudo_least=0.3, count_weight=0.2, rejected=5.0,
                          asset_weight=0.7, pseudo_weight=0.4, start=0)  # fmt: skip
POSSIBLE = torch.tensor(
    [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool
)
PRESENCE = torch.rand(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
THRESHOLD = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def batch(seed=0):
    """Logits (B, C) float64 and labels with one 1 per row."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    labels = torch.zeros(B, C)
    labels[torch.arange(B), torch.randint(C, (B,), generator=generator)] = 1
    return logits.requires_grad_(), labels


def each(logits, labels):
    """Every (s, p, z) of a table."""
    for row, marks in zip(logits, labels, strict=True):
        for s, z in zip(row, marks, strict=True):
            yield s, sigmoid(s), z


def mean_of(term):
    """The mean over all labels of term(s, p, z)."""
    return lambda logits, labels: sum(term(*x) for x in each(logits, labels)) / (B * C)


def cross(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def an(s, p, z):
    return -math.log(p) if z else -math.log(1 - p)


def wan(s, p, z):
    return -math.log(p) if z else -math.log(1 - p) / (C - 1)


def em(s, p, z):
    return -math.log(p) if z else -0.2 * cross(p, p)


def hill(s, p, z):
    q = sigmoid(s - 1)
    return -((1 - q) ** 2) * math.log(q) if z else (1.5 - p) * p**2


def splc(s, p, z, after=True):
    if z:
        q = sigmoid(s - 1)
        return -((1 - q) ** 2) * math.log(q)
    if after and p > 0.6:
        return -((1 - p) ** 2) * math.log(p)
    return -(p**2) * math.log(1 - p)


def asl(s, p, z):
    q = max(p - 0.05, 0)
    return -math.log(p) if z else -(q**4) * math.log(1 - q)


def gr_weight(p, progress):
    mu, sigma = 0.5 + 0.3 * progress, 2 - 1.5 * progress
    return math.exp(-((p - mu) ** 2) / (2 * sigma**2))


def gr(p, z, fixed, progress):
    """`fixed`: p of k and v, which have no gradient."""
    if z:
        return -math.log(p)
    k, v = sigmoid(2 * progress * fixed - 2), gr_weight(fixed, progress)
    return v * (k * (1 - p**0.01) / 0.01 + (1 - k) * p)


def gpr(p, z, fixed, progress, possible):
    if z or not possible:
        return gr(p, z, fixed, progress)
    return min(max(1 - gr_weight(fixed, progress), 0.3), 0.7) * cross(p, 0.9)


def count_penalty(logits, labels, k=1.5):
    return ((sum(p for _, p, _ in each(logits, labels)) / B - k) / C) ** 2


def epr(logits, labels):
    positive = sum(-math.log(p) for _, p, z in each(logits, labels) if z) / (B * C)
    return positive + count_penalty(logits, labels)


def annotated(logits, labels, smoothing=0.0):
    target = [[z * (1 - smoothing) + smoothing / C for z in marks] for marks in labels]
    return sum(-t * math.log(p) for _, p, t in each(logits, target)) / B


def crisp_loop(logits, labels, priors=(0.3, 0.5, 0.1, 0.2)):
    total = 0
    for c, prior in enumerate(priors):
        column = [sigmoid(row[c]) for row in logits]
        own = [1 - p for p, marks in zip(column, labels, strict=True) if marks[c]]
        total += 2 * prior * (sum(own) / len(own) if own else 0) + abs(sum(column) / B - prior)
    return total / C


def ren(logits, labels, r=0.7, hidden=0.0):
    total = weights = 0.0
    thresholds = B * THRESHOLD.tolist()
    labelled = zip(each(logits, labels), PRESENCE.flatten().tolist(), thresholds, strict=True)
    for (_, p, z), q, t in labelled:
        w = 1 if z else 1 / (1 + (q / (1 - q) * (1 - t) / t) ** 2)
        n = (1 - hidden) * (1 - (1 - p) ** r) / r - hidden * math.log(p)
        total += w * (-math.log(p) if z else n)
        weights += w
    return total / weights


def masked(logits, labels):
    losses = zip(each(logits, labels), POSSIBLE.flatten().tolist(), strict=True)
    return sum(0.0 if possible and not x[2] else an(*x) for x, possible in losses) / (B * C)


def context(epoch=3.0, presence=None, **more):
    return Context(torch.arange(B), epoch, 8, dataclasses.replace(SETTINGS, **more), presence)


def state_of(name, settings=SETTINGS, seed=0, **buffers):
    """The state of a term for B images."""
    state = TERMS[name].loss(batch()[1], settings, 8, seed).double()
    for buffer, value in buffers.items():
        setattr(state, buffer, value)
    return state


def ren_of(**more):
    """REN without Crisp's part, after the averages are known."""
    settings = dataclasses.replace(SETTINGS, robustness=0.7, **more)
    state = state_of("ren", settings, threshold=THRESHOLD)
    return lambda s, z, c: state(s, z, context(presence=PRESENCE))


PRIORS = torch.tensor([0.3, 0.5, 0.1, 0.2], dtype=torch.float64)
CASES = {
    "an": (stateless.assume_negative, mean_of(an)),
    "an_ls": (stateless.label_smoothing, mean_of(lambda s, p, z: cross(p, 0.9 if z else 0.1))),
    "wan": (stateless.weak_negatives, mean_of(wan)),
    "annotated": (stateless.annotated_only, annotated),
    "annotated, smooth": (
        stateless.smoothed_annotated_only, lambda s, z: annotated(s, z, SETTINGS.smoothing),
    ),
    "em": (stateless.entropy_maximisation, mean_of(em)),
    "hill": (stateless.hill, mean_of(hill)),
    "splc": (stateless.splc, mean_of(splc)),
    "splc, first epoch": (
        lambda s, z, c: stateless.splc(s, z, context(0.9)),
        mean_of(lambda s, p, z: splc(s, p, z, after=False)),
    ),
    "asl": (stateless.asymmetric, mean_of(asl)),
    "epr": (stateless.expected_positive_regularisation, epr),
    "iun": (
        lambda s, z, c: stateless.ignore_unobserved(
            s, TERMS["iun"].sees(POSSIBLE | z.bool(), z.bool()), c
        ),
        masked,
    ),
    "ren": (ren_of(), ren),
    "ren, hidden positives": (ren_of(hidden_share=1.2), lambda s, z: ren(s, z, hidden=0.2)),
    "crisp": (state_of("crisp", priors=PRIORS), crisp_loop),
}  # fmt: skip


def slope(function, logits, labels, b, c, step=1e-6):
    """The derivative of a function of nested lists by differences."""
    values = []
    for sign in (1, -1):
        moved = [list(row) for row in logits]
        moved[b][c] += sign * step
        values.append(function(moved, labels))
    return (values[0] - values[1]) / (2 * step)


def check(function, slow, seed=0):
    logits, labels = batch(seed)
    loss = function(logits, labels, context())
    loss.backward()
    rows, marks = logits.tolist(), labels.tolist()
    assert loss.item() == pytest.approx(slow(rows, marks), rel=1e-6, abs=1e-9)
    for b in range(B):
        for c in range(C):
            expected = slope(slow, rows, marks, b, c)
            assert logits.grad[b, c].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name, seed):
    check(*CASES[name], seed)


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("name", ["gr", "gpr"])
def test_gr_and_gpr_are_their_formulas_and_their_weights_have_no_gradient(name, progress):
    fixed = [[sigmoid(s) for s in row] for row in batch()[0].tolist()]
    gpr_state = state_of("gpr")
    gpr_state.possible = lambda presence: POSSIBLE

    def slow(rows, marks):
        total = sum(
            gpr(sigmoid(rows[b][c]), marks[b][c], fixed[b][c], progress,
                name == "gpr" and POSSIBLE[b, c])
            for b in range(B) for c in range(C)
        ) / (B * C)  # fmt: skip
        return total + (0.2 * count_penalty(rows, marks) if name == "gpr" else 0)

    loss = stateless.generalised_robust if name == "gr" else gpr_state
    check(lambda s, z, c: loss(s, z, context(8 * progress, PRESENCE)), slow)


# --- large losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ll_r", "ll_ct"])
@pytest.mark.parametrize(("epoch", "count"), [(0.9, 0), (1, 1), (2.5, 2), (9, 9), (99, B * C)])
def test_ll_treats_exactly_the_largest_unknown_losses_and_more_with_every_epoch(name, epoch, count):
    logits, labels = batch()
    slow = [[an(s, sigmoid(s), z) for s, z in zip(r, m, strict=True)]
            for r, m in zip(logits.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    unknown = sorted(
        ((slow[b][c], b, c) for b in range(B) for c in range(C) if not labels[b, c]), reverse=True
    )
    for _, b, c in unknown[:count]:  # 5 % of 20 labels in each epoch
        slow[b][c] = 0.0 if name == "ll_r" else -math.log(sigmoid(logits[b, c].item()))
    got = TERMS[name].loss(logits, labels, context(epoch))
    assert got.item() == pytest.approx(sum(map(sum, slow)) / (B * C))


def test_ll_cp_remembers_what_it_has_made_positive():
    logits, labels = batch()
    state = state_of("ll_cp")
    assert state(logits, labels, context(0.5)) == stateless.assume_negative(logits, labels)
    corrected = state(logits, labels, context())
    state.observe(logits, context())
    made = state.made.clone()
    assert int(made.sum()) == 1 and not (made & labels.bool()).any()  # 5 % of 20
    expected = stateless.correct_large(logits, labels, context(1))
    torch.testing.assert_close(corrected, expected)
    state.observe(logits, context())
    assert int(state.made.sum()) == 2 and (state.made & made).any()


# --- losses with state ----------------------------------------------------------------------------


def test_role_is_its_formula_for_the_network_and_for_the_estimates():
    state, fixed = state_of("role"), batch()[0].tolist()
    estimates = state.estimates.tolist()

    def one_side(learning, other, marks):
        pairs = zip(sum(learning, []), sum(other, []), strict=True)
        return sum(cross(sigmoid(s), sigmoid(t)) for s, t in pairs) / (B * C) + epr(learning, marks)

    def of_network(rows, marks):
        return (one_side(rows, estimates, marks) + one_side(estimates, fixed, marks)) / 2

    check(state, of_network)
    labels = batch()[1].tolist()
    for b in range(B):  # `check` has made the gradient of the estimates
        expected = slope(lambda y, z: one_side(y, fixed, z) / 2, estimates, labels, b, 0)
        assert state.estimates.grad[b, 0].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("name", "table", "sure"), [("role", "estimates", 0.995),
                                                     ("asset", "averages", 1.0)])  # fmt: skip
def test_first_estimates_are_sure_of_the_annotated_label_only(name, table, sure):
    labels = batch()[1].bool()
    start, again, other = (getattr(state_of(name, seed=seed), table).detach() for seed in (0, 0, 1))
    start = start.sigmoid() if name == "role" else start
    assert start[labels].tolist() == pytest.approx([sure] * B, rel=1e-5)
    assert 0.4 <= start[~labels].min() < 0.5 < start[~labels].max() <= 0.6
    assert torch.equal(start, again.sigmoid() if name == "role" else again)
    assert not torch.equal(again, other)


def test_the_assets_averages_move_only_for_the_images_that_were_shown():
    settings = MethodSettings(asset_step=0.25, asset_weight=0.7)
    state, (logits, labels) = state_of("asset", settings), batch()
    shown = Context(torch.tensor([3, 1]), 0.0, 8, settings)
    before, logits = state.averages.clone(), logits.detach()[[3, 1]]
    terms = zip(logits.flatten().tolist(), labels[[3, 1]].flatten().tolist(),
                before[[3, 1]].flatten().tolist(), strict=True)  # fmt: skip
    slow = sum(an(s, sigmoid(s), z) + 0.7 * cross(sigmoid(s), a) for s, z, a in terms) / (2 * C)
    assert state(logits, labels[[3, 1]], shown).item() == pytest.approx(slow)
    state.observe(logits, shown)
    torch.testing.assert_close(
        state.averages[[3, 1]], 0.75 * before[[3, 1]] + 0.25 * logits.sigmoid()
    )
    assert torch.equal(state.averages[[0, 2, 4]], before[[0, 2, 4]])


def test_apl_gives_pseudo_labels_to_the_lowest_predictions_until_ninety_percent_have_one():
    labels = torch.zeros(20, 2)
    labels[:10, 0] = labels[10:, 1] = 1
    state = TERMS["apl"].loss(labels, MethodSettings(start=1), 4, 0)
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
    state = state_of("apl")
    state.pseudo[0] = 0.1

    def slow(rows, marks):
        first, rest = (
            list(each(part, z)) for part, z in ((rows[:1], marks[:1]), (rows[1:], marks[1:]))
        )
        pseudo = sum(-math.log(p) if z else 0.4 * cross(p, 0.1) for _, p, z in first)
        return (pseudo + sum(em(*x) for x in rest)) / (B * C)

    check(state, slow)


def test_crisp_estimates_how_often_a_class_is_there_from_a_few_annotated_images():
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(4000, 3, generator=generator) < torch.tensor([0.3, 0.7, 0.5])
    scores = (there.float() + 0.3 * torch.randn(there.shape, generator=generator)).sigmoid()
    annotated_there = there & (torch.rand(there.shape, generator=generator) < 0.3)
    annotated_there[:, 2] = False
    assert class_priors(scores, annotated_there).tolist() == pytest.approx([0.3, 0.7, 0], abs=0.07)


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
    labels[3, 2] = 0  # nobody is annotated with the last class: it stays negative
    assert expected_negative_threshold(presence, labels, 100.0).isinf().tolist() == [0, 0, 1]


# --- consistency ----------------------------------------------------------------------------------


def d(logit, target, kind):
    """Distance between sigmoid(logit) and a target, from its definition."""
    p = sigmoid(logit)
    if kind != "bce":
        return abs(p - target) if kind == "l1" else (p - target) ** 2
    pairs = ((target, p), (1 - target, 1 - p))  # Kullback-Leibler
    return sum(t * math.log(t / q) for t, q in pairs if t > 0)


@pytest.mark.parametrize("kind", DISTANCES)
def test_cl_is_its_formula_and_0_without_a_slope_where_it_agrees(kind):
    logits = batch()[0]
    target = torch.rand(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target[0] = torch.tensor([0.0, 1, 0, 1])
    pairs = zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True)
    expected = np.mean([d(s, t, kind) for s, t in pairs])
    assert consistency(logits, target, kind).item() == pytest.approx(expected, rel=1e-6)
    value = consistency(logits, logits.detach().sigmoid(), kind)
    value.backward()
    assert value.abs() < 1e-6 and logits.grad.abs().max() < 1e-6
    with pytest.raises(UserError, match="bce, l1, l2"):
        distance(logits, target, "l3")


@pytest.mark.parametrize("kind", [*DISTANCES, "cells"])
def test_scl_is_the_mean_over_seen_cells(kind):
    generator = torch.Generator().manual_seed(2)
    maps, target = torch.randn(2, B, C, G, G, generator=generator, dtype=torch.float64)
    seen = (torch.rand(B, 1, G, G, generator=generator) < 0.6).double()
    target = target.softmax(1) if kind == "cells" else target.sigmoid()
    values = []
    for b, y, x in ((b, y, x) for b in range(B) for y in range(G) for x in range(G)):
        if not seen[b, 0, y, x]:
            continue
        s, t = maps[b, :, y, x].tolist(), target[b, :, y, x].tolist()
        if kind == "cells":
            total = sum(math.exp(v) for v in s)
            values.append(
                sum(q * math.log(q * total / math.exp(v)) for v, q in zip(s, t, strict=True))
            )
        else:
            values.append(np.mean([d(v, q, kind) for v, q in zip(s, t, strict=True)]))
    assert 0 < len(values) < B * G * G

    loss, more = (cell_consistency, []) if kind == "cells" else (spatial_consistency, [kind])
    assert loss(maps, target, seen, *more).item() == pytest.approx(np.mean(values), rel=1e-6)
    assert loss(maps, target, 0 * seen, *more) == 0
    if kind == "cells":  # nothing where it agrees
        assert cell_consistency(maps, maps.softmax(1), seen).abs() < 1e-9
