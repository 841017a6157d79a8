"""Every pooling agrees with its formula, class by class, in float64: value, gradient, mask."""

import math

import numpy as np
import pytest
import torch
from refusals import message_of
from slow_reference import sigmoid

from spcl_lib.pooling import KINDS, Pooling, parse_pooling

B, C, G = 3, 2, 4


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
COMPETING = {"softmax": 2.0, "cells": 2.0, "cells_top": 0.3, "cells_sure": 0.0}
CASES = [*USUAL.items(), ("lse", 3.0), ("top", 0.5)]


def maps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(B, C, G, G, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("kind", "strength"), CASES)
def test_a_pooling_of_all_or_of_the_seen_cells_is_its_formula_and_so_is_its_gradient(
    kind, strength
):
    f, seen = maps().requires_grad_(), torch.zeros(B, 1, G, G)
    seen[:, :, 1:3, :3] = 1
    pooling = Pooling(kind, 0.0 if strength == USUAL[kind] else strength)
    got, masked = pooling(f), pooling(f, seen)
    got.sum().backward()
    for b, c in np.ndindex(B, C):
        cells = f[b, c].flatten().tolist()
        assert got[b, c].item() == pytest.approx(slow(kind, cells, strength), rel=1e-9)
        some = f[b, c][seen[b, 0] > 0].tolist()
        assert masked[b, c].item() == pytest.approx(slow(kind, some, strength), rel=1e-6)
        moved = [[x + s * (i == 5) for i, x in enumerate(cells)] for s in (1e-6, -1e-6)]
        up, down = (slow(kind, part, strength) for part in moved)
        gradient = f.grad[b, c].flatten()[5].item()
        assert gradient == pytest.approx((up - down) / 2e-6, rel=1e-4, abs=1e-7)


def slow_competing(kind, maps, strength):
    """p (C,) of maps, a list of C lists of cells."""

    def softmax(values, temperature=1.0):
        total = sum(math.exp(v / temperature) for v in values)
        return [math.exp(v / temperature) / total for v in values]

    n = len(maps[0])
    if kind == "softmax":
        return softmax([sum(cells) / n for cells in maps], strength)
    is_top = kind == "cells_top"
    cells = [softmax([m[i] for m in maps], strength if kind == "cells" else 1) for i in range(n)]
    if kind == "cells_sure":
        sure = [1 + sum(p * math.log(p) for p in cell) / math.log(len(cell)) for cell in cells]
        return [np.average(plane, weights=sure) for plane in zip(*cells, strict=True)]
    planes = [sorted(plane, reverse=True) for plane in zip(*cells, strict=True)]
    count = math.ceil(strength * n) if is_top else n
    return [sum(plane[:count]) / count for plane in planes]


@pytest.mark.parametrize("is_usual", [True, False])
@pytest.mark.parametrize("kind", COMPETING)
def test_a_pooling_in_which_classes_compete_is_its_formula(kind, is_usual):
    usual = {"softmax": 1.0, "cells": 1.0, "cells_top": 0.1, "cells_sure": 0.0}[kind]
    strength, f, seen = usual if is_usual else COMPETING[kind], maps(), torch.zeros(B, 1, G, G)
    seen[:, :, 1:3, :3] = 1
    pooling = Pooling(kind, 0.0 if is_usual else strength)
    got, masked = pooling(f).sigmoid(), pooling(f, seen).sigmoid()
    for b in range(B):
        every = slow_competing(kind, f[b].flatten(1).tolist(), strength)
        some = slow_competing(kind, f[b][:, seen[b, 0] > 0].tolist(), strength)
        assert got[b].tolist() == pytest.approx(every, rel=1e-5)
        assert masked[b].tolist() == pytest.approx(some, rel=1e-5)
    if kind != "cells_top":
        torch.testing.assert_close(got.sum(1), torch.ones(B).double(), rtol=1e-5, atol=0)
        torch.testing.assert_close(pooling.heat(f).sum(1), torch.ones(B, G, G).double())


@pytest.mark.parametrize("kind", KINDS)
def test_the_presence_is_the_pooled_heatmap_and_0_where_nothing_has_been_seen(kind):
    pooling, seen = Pooling(kind), torch.ones(2, 1, G, G)
    heat = pooling.heat(maps()[:2]).float()
    seen[1] = 0
    presence = pooling.presence(heat, seen)
    expected = pooling(maps()[:1]).sigmoid().float()
    near = 0.02 if kind == "softmax" else 2e-3  # its heat is cut at half a step of a byte
    torch.testing.assert_close(presence[:1], expected, rtol=2e-3, atol=near)
    assert presence[1].tolist() == [0.0, 0.0]
    assert torch.isfinite(pooling.presence(torch.zeros(1, C, G, G), torch.ones(1, 1, G, G))).all()
    # In a bank of bytes the heat of classes that compete does not sum to 1.
    heat, seen = pooling.heat(maps().float().repeat(1, 9, 1, 1) / 9), torch.ones(B, 1, G, G)
    rounded = (255 * heat + torch.rand(1, 1, G, G)).floor() / 255
    assert (pooling.presence(rounded, seen) - pooling.presence(heat, seen)).abs().max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind):
    f = torch.tensor([-300.0, 0.0, 300.0, 1.0]).repeat(4).view(1, 1, 4, 4).requires_grad_()
    got = Pooling(kind)(f)
    got.backward()
    assert torch.isfinite(got).all() and torch.isfinite(f.grad).all()
    assert Pooling(kind)(f[:0]).shape == (0, 1)


def test_a_pooling_can_be_written_as_a_text():
    assert parse_pooling("lse") == Pooling("lse") and parse_pooling("lse:3") == Pooling("lse", 3.0)
    for text, words in (("lse:x", "no number; write lse:3"), ("lsee", "Did you mean 'lse'"),
                        ("top:1.5", "must be in 0..1"), ("mean:3", "must be in 0..0")):  # fmt: skip
        assert words in message_of(parse_pooling, text)
