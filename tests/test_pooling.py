"""Every pooling agrees with its formula, class by class, in float64: value, gradient, mask."""

import math

import pytest
import torch

from spcl_lib import UserError
from spcl_lib.pooling import KINDS, MEAN_POOLING, Pooling, parse_pooling, pooling_of

B, C, G = 3, 2, 4


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slow(kind, cells, strength):
    """The pooled logit of one map, given as a list of its cells."""
    n = len(cells)
    if kind == "mean":
        return sum(cells) / n
    if kind == "boost":
        return sum(strength * x if x > 0 else x for x in cells) / n
    if kind == "lse":
        return math.log(sum(math.exp(strength * x) for x in cells) / n) / strength
    if kind == "top":
        count = max(1, math.ceil(strength * n))
        return sum(sorted(cells, reverse=True)[:count]) / count
    if kind == "attention":
        total = sum(math.exp(x) for x in cells)
        return sum(math.exp(x) / total * x for x in cells)
    p = sum(sigmoid(x) for x in cells) / n
    return math.log(p / (1 - p))


USUAL = {"mean": 0, "boost": 5.0, "lse": 1.0, "top": 0.25, "attention": 0, "probability": 0}
CASES = [*USUAL.items(), ("boost", 2.0), ("lse", 3.0), ("top", 0.5), ("top", 1.0)]


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(B, C, G, G, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "strength"), CASES)
def test_a_pooling_is_its_formula_and_so_is_its_gradient(kind, strength):
    f = maps().requires_grad_()
    given = 0.0 if strength == USUAL[kind] else strength
    got = Pooling(kind, given)(f)
    got.sum().backward()
    for b in range(B):
        for c in range(C):
            cells = f[b, c].flatten().tolist()
            assert got[b, c].item() == pytest.approx(slow(kind, cells, strength), rel=1e-9)
            moved = [[x + s * (i == 5) for i, x in enumerate(cells)] for s in (1e-6, -1e-6)]
            up, down = (slow(kind, part, strength) for part in moved)
            gradient = f.grad[b, c].flatten()[5].item()
            assert gradient == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(("kind", "strength"), CASES)
def test_cells_that_nobody_has_seen_do_not_count(kind, strength):
    seen = torch.zeros(B, 1, G, G)
    seen[:, :, 1:3, :3] = 1
    f = maps()
    f[:, :, 0] = 100.0  # not seen
    got = Pooling(kind, strength)(f, seen)
    for b in range(B):
        for c in range(C):
            cells = f[b, c][seen[b, 0] > 0].tolist()
            assert got[b, c].item() == pytest.approx(slow(kind, cells, strength), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_presence_is_the_pooled_heatmap_and_0_where_nothing_has_been_seen(kind):
    pooling = Pooling(kind)
    heat = torch.full((2, C, G, G), 0.3)
    assert pooling.presence(heat).flatten().tolist()[0] == pytest.approx(
        slow_presence(kind, 0.3), rel=1e-4
    )
    seen = torch.ones(2, 1, G, G)
    seen[1] = 0
    presence = pooling.presence(heat, seen)
    assert presence[0].tolist() == pytest.approx(pooling.presence(heat)[0].tolist(), rel=1e-5)
    assert presence[1].tolist() == [0.0, 0.0]
    assert torch.isfinite(pooling.presence(torch.zeros(1, C, G, G), torch.ones(1, 1, G, G))).all()


def slow_presence(kind, p):
    return sigmoid(slow(kind, [math.log(p / (1 - p))] * G * G, USUAL[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    f = torch.tensor([-300.0, 0.0, 300.0, 1.0]).repeat(4).view(1, 1, 4, 4).requires_grad_()
    got = Pooling(kind)(f)
    got.backward()
    assert torch.isfinite(got).all() and torch.isfinite(f.grad).all()


def test_the_mean_is_what_it_was_to_the_last_bit():
    f = maps().float()
    assert torch.equal(MEAN_POOLING(f), f.mean((2, 3)))


def test_a_model_without_a_pooling_has_the_mean():
    assert pooling_of(torch.nn.Identity()) is MEAN_POOLING


@pytest.mark.parametrize(
    ("kind", "strength", "words"),
    [("max", 0.0, "unknown pooling 'max'"), ("top", 1.5, "must be in 0..1"),
     ("lse", -1.0, "must be in 0..1000")],
)  # fmt: skip
def test_what_is_no_pooling_is_named(kind, strength, words):
    with pytest.raises(UserError, match=words):
        Pooling(kind, strength)


def test_a_pooling_can_be_written_as_a_text():
    assert parse_pooling("lse") == Pooling("lse") and parse_pooling("lse:3") == Pooling("lse", 3.0)
    for text, words in (("lse:x", "no number; write lse:3"), ("lsee", "Did you mean 'lse'")):
        with pytest.raises(UserError, match=words):
            parse_pooling(text)
