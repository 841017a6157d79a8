"""Every competing loss agrees with its formula: label by label, in float64, value and gradient.

The tests share only the functions under test with the library.
"""

import math

import pytest
import torch

from spcl_lib import Views, losses
from spcl_lib.methods import Method, MethodSettings
from spcl_lib.terms import TERMS

B, C = 5, 4
AVERAGES = torch.rand(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def each(logits, labels):
    """Every (s, p, z) of a table."""
    for row, marks in zip(logits, labels, strict=True):
        for s, z in zip(row, marks, strict=True):
            yield s, sigmoid(s), z


def mean_of(term):
    """The mean over all labels of term(s, p, z)."""
    return lambda logits, labels: sum(term(*x) for x in each(logits, labels)) / (B * C)


def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def an(s, p, z):
    return -math.log(p) if z else -math.log(1 - p)


def an_ls(s, p, z):
    t = 0.9 if z else 0.1
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def wan(s, p, z):
    return -math.log(p) if z else -math.log(1 - p) / (C - 1)


def em(s, p, z):
    return -math.log(p) if z else -0.2 * entropy(p)


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


def gr(s, p, z, progress=0.25, fixed=None):
    """With `fixed`, k and v are those of another p: they have no gradient."""
    if z:
        return -math.log(p)
    f = p if fixed is None else fixed
    w, b = 2 * progress, -2
    mu, sigma = 0.5 + 0.3 * progress, 2 - 1.5 * progress
    k, v = sigmoid(w * f + b), math.exp(-((f - mu) ** 2) / (2 * sigma**2))
    return v * (k * (1 - p**0.01) / 0.01 + (1 - k) * (1 - (1 - p) ** 1) / 1)


def epr(logits, labels, k=1.5):
    positive = sum(-math.log(p) for _, p, z in each(logits, labels) if z) / (B * C)
    count = sum(p for _, p, _ in each(logits, labels)) / B
    return positive + ((count - k) / C) ** 2


def asset(logits, labels, alpha=0.7):
    total = 0.0
    for row, marks, averages in zip(logits, labels, AVERAGES.tolist(), strict=True):
        for s, z, a in zip(row, marks, averages, strict=True):
            p = sigmoid(s)
            total += an(s, p, z) + alpha * (-a * math.log(p) - (1 - a) * math.log(1 - p))
    return total / (B * C)


def crisp(logits, labels, priors=(0.3, 0.5, 0.1, 0.2)):
    total = 0
    for c, prior in enumerate(priors):
        column = [sigmoid(row[c]) for row in logits]
        own = [1 - p for p, marks in zip(column, labels, strict=True) if marks[c]]
        total += 2 * prior * (sum(own) / len(own) if own else 0) + abs(sum(column) / B - prior)
    return total / C


PRESENCE = torch.rand(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
THRESHOLD = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)


def ren(logits, labels, r=0.7, hidden=0.0):
    total = weights = 0.0
    labelled = zip(
        each(logits, labels), PRESENCE.flatten().tolist(), B * THRESHOLD.tolist(), strict=True
    )
    for (_, p, z), q, t in labelled:
        odds = [math.log(x / (1 - x)) for x in (q, t)]
        w = 1 if z else 1 / (1 + math.exp(2 * (odds[0] - odds[1])))
        n = (1 - hidden) * (1 - (1 - p) ** r) / r - hidden * math.log(p)
        total += w * (-math.log(p) if z else n)
        weights += w
    return total / weights


CASES = {
    "an": (losses.assume_negative, mean_of(an)),
    "an_ls": (losses.label_smoothing, mean_of(an_ls)),
    "wan": (losses.weak_negatives, mean_of(wan)),
    "em": (losses.entropy_maximisation, mean_of(em)),
    "hill": (losses.hill, mean_of(hill)),
    "splc": (lambda s, z: losses.splc(s, z, 1.0), mean_of(splc)),
    "splc, first epoch": (
        lambda s, z: losses.splc(s, z, 0.9), mean_of(lambda s, p, z: splc(s, p, z, after=False)),
    ),
    "asl": (losses.asymmetric, mean_of(asl)),
    "epr": (lambda s, z: losses.expected_positive_regularisation(s, z, 1.5), epr),
    "asset": (lambda s, z: losses.asset_regularisation(s, z, AVERAGES, 0.7), asset),
    "ren": (
        lambda s, z: losses.robust_expected_negative(s, z, PRESENCE, THRESHOLD, 0.7), ren,
    ),
    "ren, hidden positives": (
        lambda s, z: losses.robust_expected_negative(s, z, PRESENCE, THRESHOLD, 0.7, 0.2),
        lambda s, z: ren(s, z, hidden=0.2),
    ),
    "crisp": (lambda s, z: losses.crisp(s, z, torch.tensor([0.3, 0.5, 0.1, 0.2]).to(s)), crisp),
}  # fmt: skip


def batch(seed=0):
    """Logits (B, C) float64 and labels with one 1 per row."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, C, generator=generator, dtype=torch.float64)
    labels = torch.zeros(B, C)
    labels[torch.arange(B), torch.randint(C, (B,), generator=generator)] = 1
    return logits.requires_grad_(), labels


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
    loss = function(logits, labels)
    loss.backward()
    rows, marks = logits.tolist(), labels.tolist()
    assert loss.item() == pytest.approx(slow(rows, marks), rel=1e-6, abs=1e-9)
    for b in range(B):
        for c in range(C):
            expected = slope(slow, rows, marks, b, c)
            assert logits.grad[b, c].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name, seed):
    check(*CASES[name], seed)


def test_gr_is_its_formula_and_its_weights_have_no_gradient():
    logits, labels = batch()
    fixed = [[sigmoid(s) for s in row] for row in logits.tolist()]

    def slow(rows, marks):
        return sum(
            gr(rows[b][c], sigmoid(rows[b][c]), marks[b][c], fixed=fixed[b][c])
            for b in range(B) for c in range(C)
        ) / (B * C)  # fmt: skip

    check(lambda s, z: losses.generalised_robust(s, z, 0.25), slow)


def test_gr_with_all_weight_on_its_positive_side_is_nearly_the_cross_entropy():
    """(1 - p^q) / q goes to -log p as q goes to 0."""
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    assert torch.allclose((1 - p**0.01) / 0.01, -p.log(), rtol=0.02)


POSSIBLE = torch.tensor(
    [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool
)


@pytest.mark.parametrize("seed", range(3))
def test_iun_has_the_annotated_positive_and_all_true_negatives(seed):
    term, (_, annotated) = TERMS["iun"], batch(seed)

    def slow(rows, marks):
        return sum(
            0.0 if POSSIBLE[b, c] and not marks[b][c] else an(0, sigmoid(rows[b][c]), marks[b][c])
            for b in range(B) for c in range(C)
        ) / (B * C)  # fmt: skip

    seen = term.sees(POSSIBLE | annotated.bool(), annotated.bool())
    assert not term.sees(annotated.bool(), annotated.bool()).sub(annotated).any()
    check(lambda s, z: term.loss(s, seen, None), slow, seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_gpr_is_its_formula_and_its_weights_have_no_gradient(progress, seed):
    fixed = [[sigmoid(s) for s in row] for row in batch(seed)[0].tolist()]
    mu, sigma = 0.5 + 0.3 * progress, 2 - 1.5 * progress

    def of_label(s, z, f, possible):
        p = sigmoid(s)
        if z or not possible:
            return gr(s, p, z, progress, fixed=f)
        w = min(max(1 - math.exp(-((f - mu) ** 2) / (2 * sigma**2)), 0.3), 0.7)
        return w * (-0.9 * math.log(p) - 0.1 * math.log(1 - p))

    def slow(rows, marks):
        total = sum(
            of_label(rows[b][c], marks[b][c], fixed[b][c], POSSIBLE[b, c])
            for b in range(B) for c in range(C)
        )  # fmt: skip
        count = sum(p for _, p, _ in each(rows, marks)) / B
        return total / (B * C) + 0.2 * ((count - 1.5) / C) ** 2

    def fast(s, z):
        return losses.pseudo_robust(s, z, POSSIBLE, progress, 1.5, 0.3, 0.2)

    check(fast, slow, seed)


@pytest.mark.parametrize(
    ("p", "weight"), [(0.001, 0.7), (0.2, 1 - math.exp(-0.72)), (0.7, 0.3), (0.999, 0.3)]
)
def test_gpr_weighs_a_pseudo_positive_between_its_limits_and_more_far_from_the_centre(p, weight):
    """At the end of the training the centre is 0.8 and the width 0.5."""
    logits = torch.tensor([[math.log(p / (1 - p))]], dtype=torch.float64)
    every = torch.ones(1, 1, dtype=torch.bool)
    got = losses.pseudo_robust(logits, torch.zeros(1, 1), every, 1.0, 1.0, 0.3, 0.0).item()
    assert got / (-0.9 * math.log(p) - 0.1 * math.log(1 - p)) == pytest.approx(weight)


def test_gpr_pulls_pseudo_positives_up_to_nine_tenths_and_leaves_the_annotated_label_alone():
    for p, sign in ((0.02, 1), (0.5, 1), (0.89, 1), (0.91, -1), (0.99, -1)):
        logits = torch.full((1, C), math.log(p / (1 - p)), dtype=torch.float64).requires_grad_()
        labels, every = torch.eye(C)[:1], torch.ones(1, C, dtype=torch.bool)
        losses.pseudo_robust(logits, labels, every, 0.5, 2.0, count_weight=0.0).backward()
        assert (logits.grad[0, 1:].sign() == -sign).all()
        assert logits.grad[0, 0].item() == pytest.approx((p - 1) / C)


def test_gpr_without_pseudo_positives_and_penalty_is_gr():
    logits, labels = batch()
    none = torch.zeros(B, C, dtype=torch.bool)
    got = losses.pseudo_robust(logits, labels, none, 0.25, 2.0, count_weight=0.0)
    assert got == losses.generalised_robust(logits, labels, 0.25)


def test_gpr_is_finite_where_the_network_is_sure():
    logits = torch.tensor([[-200.0, 0.0, 200.0, 1.0]] * B, requires_grad=True)
    loss = losses.pseudo_robust(logits, torch.zeros(B, C), POSSIBLE, 1.0, 2.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def whole_images(seed=3):
    """Maps of one cell, labels, numbers and views of all images of a tiny training set."""
    logits, labels = batch(seed)
    maps = logits.detach().float()[..., None, None]
    return maps, labels, torch.arange(B), Views.whole(B)


@pytest.mark.parametrize("method", ["gpr", "gpr_cl", "gpr_scl"])
def test_gpr_takes_its_pseudo_positives_as_en_does_and_is_gr_before(method):
    maps, labels, indices, views = whole_images()
    s = MethodSettings(start=2, bank_size=4, bank_dtype="float32", weight=0.0)
    both = [Method(name, B, C, s, epochs=8) for name in (method, method.replace("gpr", "en"))]
    for each_method in both:
        each_method.update(maps, indices, views, 1.0)
        for epoch in (1, 2):
            each_method.begin_epoch(epoch, labels)
    gpr, en = both
    threshold = gpr.tables["threshold"]
    assert torch.equal(threshold, en.tables["threshold"]) and torch.isfinite(threshold).any()
    possible = (maps[..., 0, 0].sigmoid() >= threshold) & ~labels.bool()
    assert int(possible.sum()) == B  # k = 2: one for each image, beside the annotated one
    before = gpr.loss(maps, labels, indices, views, 1.5)
    logits = maps[..., 0, 0]
    assert before == losses.generalised_robust(logits, labels, 1.5 / 8)
    after = gpr.loss(maps, labels, indices, views, 4.0)
    assert after.item() == pytest.approx(
        losses.pseudo_robust(logits, labels, possible, 0.5, 2.0, 0.4, 0.05).item(), rel=1e-6
    )


def test_em_pushes_undecided_unknown_labels_towards_one_half_and_never_down_to_zero():
    for s in (-3.0, -1.0, 1.0, 3.0):
        logits = torch.tensor([[s, 0.0]], dtype=torch.float64, requires_grad=True)
        losses.entropy_maximisation(logits, torch.tensor([[0, 1]])).backward()
        assert math.copysign(1, logits.grad[0, 0].item()) == math.copysign(1, s)


# --- large losses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reject", "correct"])
@pytest.mark.parametrize("count", [0, 1, 3, B * C])
def test_ll_treats_exactly_the_largest_unknown_losses(kind, count):
    logits, labels = batch()
    slow = [[an(s, sigmoid(s), z) for s, z in zip(r, m, strict=True)]
            for r, m in zip(logits.tolist(), labels.tolist(), strict=True)]  # fmt: skip
    unknown = sorted(
        ((slow[b][c], b, c) for b in range(B) for c in range(C) if not labels[b, c]), reverse=True
    )
    for _, b, c in unknown[:count]:
        slow[b][c] = 0.0 if kind == "reject" else -math.log(sigmoid(logits[b, c].item()))
    got = losses.large_loss(logits, labels, count, kind)
    assert got.item() == pytest.approx(sum(map(sum, slow)) / (B * C))
    got.backward()
    assert int((logits.grad == 0).sum()) == (min(count, len(unknown)) if kind == "reject" else 0)


def test_ll_rejects_more_with_every_epoch_and_nothing_in_the_first():
    counts = [losses.rejected_count(200, epochs, 0.2) for epochs in (0, 0.9, 1, 2.5, 10)]
    assert counts == [0, 0, 1, 1, 4]


def test_ll_cp_remembers_what_it_has_made_positive():
    logits, labels = batch()
    made = torch.zeros(B, C, dtype=torch.bool)
    losses.correct_for_good(logits, labels, made, 2)
    assert int(made.sum()) == 2 and not (made & labels.bool()).any()
    before = made.clone()
    loss = losses.correct_for_good(logits, labels, made, 0)
    assert torch.equal(made, before)
    assert torch.allclose(loss, losses.assume_negative(logits, labels.bool() | made))


# --- losses with state ----------------------------------------------------------------------------


def test_role_is_its_formula_for_the_network_and_for_the_estimates():
    estimates = torch.randn(B, C, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    fixed = batch()[0].tolist()

    def one_side(learning, other, marks):
        cross = 0.0
        for row, fixed_row in zip(learning, other, strict=True):
            for s, t in zip(row, fixed_row, strict=True):
                p, q = sigmoid(s), sigmoid(t)
                cross += -q * math.log(p) - (1 - q) * math.log(1 - p)
        return cross / (B * C) + epr(learning, marks)

    def of_network(rows, marks):
        constant = one_side(estimates.tolist(), fixed, marks)
        return (one_side(rows, estimates.tolist(), marks) + constant) / 2

    check(lambda s, z: losses.role(s, z, estimates, 1.5), of_network)
    learned = estimates.clone().requires_grad_()
    logits, labels = batch()
    losses.role(logits.detach(), labels, learned, 1.5).backward()
    for b in range(B):
        expected = slope(
            lambda rows, marks: one_side(rows, fixed, marks) / 2,
            learned.tolist(), labels.tolist(), b, 0,
        )  # fmt: skip
        assert learned.grad[b, 0].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_role_starts_sure_of_the_annotated_label_and_undecided_about_the_others():
    _, labels = batch()
    start = losses.first_estimates(labels, 0).sigmoid()
    assert torch.allclose(start[labels.bool()], torch.tensor(0.995))
    others = start[~labels.bool()]
    assert 0.4 <= others.min() < 0.5 < others.max() <= 0.6
    assert torch.equal(start, losses.first_estimates(labels, 0).sigmoid())


def test_apl_gives_pseudo_labels_to_the_lowest_predictions_of_every_class_until_ninety_percent():
    labels = torch.zeros(20, 2)
    labels[:10, 0] = labels[10:, 1] = 1
    predictions = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    pseudo = torch.full((20, 2), torch.nan)
    for epoch in range(1, 4):
        losses.add_pseudo_labels(pseudo, predictions, labels, 3)
        given = ~pseudo.isnan()
        assert given.sum(0).tolist() == [3 * epoch, 3 * epoch]
        for c in range(2):
            unknown = labels[:, c] == 0
            assert predictions[given[:, c], c].max() < predictions[unknown & ~given[:, c], c].min()
    assert not (given & labels.bool()).any()
    assert torch.equal(pseudo[given], predictions[given])


def test_apl_takes_predictions_and_pseudo_labels_of_different_types():
    pseudo, labels = torch.full((4, 1), torch.nan, dtype=torch.float16), torch.zeros(4, 1)
    losses.add_pseudo_labels(pseudo, torch.full((4, 1), 0.25), labels, 1)
    assert pseudo.nan_to_num(0).sum() == 0.75


def test_apl_weighs_pseudo_labels_and_keeps_em_for_the_rest():
    logits, labels = batch()
    pseudo = torch.full((B, C), torch.nan, dtype=torch.float64)
    pseudo[0] = 0.1
    total = 0.0
    for b in range(B):
        for c in range(C):
            p = sigmoid(logits[b, c].item())
            soft = -0.1 * math.log(p) - 0.9 * math.log(1 - p)
            total += 0.4 * soft if b == 0 and not labels[b, c] else em(0, p, labels[b, c])
    got = losses.entropy_maximisation(logits, labels, 0.2, pseudo, 0.4)
    assert got.item() == pytest.approx(total / (B * C))


def test_the_assets_averages_start_at_one_for_the_annotated_label_and_undecided_for_the_others():
    _, labels = batch()
    start = losses.first_averages(labels, 0)
    assert (start[labels.bool()] == 1).all()
    others = start[~labels.bool()]
    assert 0.4 <= others.min() < 0.5 < others.max() <= 0.6
    assert torch.equal(start, losses.first_averages(labels, 0))
    assert not torch.equal(start, losses.first_averages(labels, 1))


def test_the_assets_averages_move_with_every_step_and_only_for_the_images_that_were_shown():
    maps, labels, indices, views = whole_images()
    method = Method("asset", B, C, MethodSettings(asset_step=0.25, asset_weight=0.7), 0, labels)
    shown, expected = [3, 1], method.tables["slow_averages"].tolist()
    unseen = [expected[n] for n in (0, 2, 4)]
    for step in range(3):
        moved = maps[shown] + step
        slow = 0.0
        for row, n in zip(moved[..., 0, 0].tolist(), shown, strict=True):
            for c, s in enumerate(row):
                p, average = sigmoid(s), expected[n][c]  # before it moves
                slow += an(s, p, labels[n, c])
                slow += 0.7 * (-average * math.log(p) - (1 - average) * math.log(1 - p))
                expected[n][c] = 0.75 * average + 0.25 * p
        loss = method.loss(moved, labels[shown], indices[shown], Views.whole(2), 0.0)
        assert loss.item() == pytest.approx(slow / (2 * C), rel=1e-5)
        averages = method.tables["slow_averages"]
        assert torch.allclose(averages, torch.tensor(expected), atol=1e-6)
    assert averages[[0, 2, 4]].tolist() == unseen and not averages.requires_grad


@pytest.mark.parametrize("alpha", [0.0, 0.5, 4.0])
def test_asset_regularisation_is_an_pulled_towards_the_averages(alpha):
    """The loss is least where p = (z + alpha P) / (1 + alpha)."""
    logits, labels = batch()
    z = labels.double()
    best = ((z + alpha * AVERAGES) / (1 + alpha)).clamp(1e-12, 1 - 1e-12)
    at_best = best.logit().requires_grad_()
    losses.asset_regularisation(at_best, labels, AVERAGES, alpha).backward()
    assert at_best.grad.abs().max() < 1e-9


def test_crisp_estimates_how_often_a_class_is_there_from_a_few_annotated_images():
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(4000, 2, generator=generator) < torch.tensor([0.3, 0.7])
    scores = (there.float() + 0.3 * torch.randn(there.shape, generator=generator)).sigmoid()
    annotated = there & (torch.rand(there.shape, generator=generator) < 0.3)
    priors = losses.class_priors(scores, annotated)
    assert priors.tolist() == pytest.approx([0.3, 0.7], abs=0.07)


def test_crisp_gives_a_class_without_annotation_the_prior_zero():
    labels = torch.zeros(6, 2)
    labels[:, 0] = 1
    assert losses.class_priors(torch.rand(6, 2), labels)[1] == 0


@pytest.mark.parametrize("name", CASES)
def test_a_batch_without_a_positive_and_extreme_logits_give_a_finite_loss(name):
    logits = torch.tensor([[-200.0, 0.0, 200.0, 1.0]] * B, requires_grad=True)
    loss = CASES[name][0](logits, torch.zeros(B, C))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_ren_leaves_out_what_is_surely_there_and_is_near_bce_with_little_robustness():
    logits, labels = batch()
    unknown = ~labels.bool()
    there = torch.where(labels.bool(), 0.5, 1.0).double()
    losses.robust_expected_negative(logits, labels, there, THRESHOLD, 1.0).backward()
    assert logits.grad[unknown].abs().max() < 0.01 * logits.grad[~unknown].abs().max()
    logits, labels = batch()
    loss = losses.robust_expected_negative(logits, labels, None, THRESHOLD, 1e-3)
    assert loss.item() == pytest.approx(losses.assume_negative(logits, labels).item(), rel=0.01)


def test_ren_with_hidden_positives_lets_p_rest_at_their_odds():
    logits = torch.tensor([[0.2 / 0.8]]).logit().requires_grad_()
    none = torch.zeros(1, 1)
    losses.robust_expected_negative(logits, none, None, torch.rand(1), 1.0, 0.2).backward()
    assert logits.grad.abs().item() < 1e-6


def test_the_share_of_hidden_positives_follows_from_the_expected_number():
    labels, logits = torch.eye(4)[:2], torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    settings = MethodSettings(expected_positives=2.5, hidden_share=0.4)
    method = Method("ren", 2, 4, settings, labels=labels)
    found = method.loss(logits[..., None, None], labels, torch.arange(2), Views.whole(2), 0)
    expected = losses.robust_expected_negative(logits, labels, None, torch.rand(4), 1.0, 0.2)
    assert found.item() == pytest.approx(expected.item())


def test_ren_forgives_a_negative_that_the_network_is_sure_of():
    """With r = 1 the gradient at p = 0.99 is smaller than at p = 0.5; BCE's is the largest."""
    gradient = {}
    for r in (1.0, 1e-3):
        logits = torch.tensor([[0.0, 4.6, -9.0]], requires_grad=True)
        labels = torch.tensor([[0.0, 0.0, 1.0]])
        losses.robust_expected_negative(logits, labels, None, torch.rand(3), r).backward()
        gradient[r] = logits.grad[0, :2].abs()
    assert gradient[1.0][1] < 0.1 * gradient[1.0][0]
    assert gradient[1e-3][1] > gradient[1e-3][0]
