"""The ranking and the boxes of the audit against slow loops, and its precision by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spcl_lib import HeatmapBank, Views
from spcl_lib.analysis.audit import (
    Suggestions,
    boxes,
    maps_of,
    out_of_fold,
    precision_of_missing,
    presence_of,
    suggest,
)
from spcl_lib.data.image_set import ImageSet
from spcl_lib.pooling import MEAN_POOLING, Pooling

IMAGES, CLASSES, GRID = 150, 4, 5  # more images than are read at a time


@pytest.fixture
def some():
    """Maps with many equal values, and single labels; the maps' means are the presence."""
    rng = torch.Generator().manual_seed(3)
    maps = torch.randint(0, 3, (IMAGES, CLASSES, GRID, GRID), generator=rng) / 4
    label = torch.randint(0, CLASSES, (IMAGES,), generator=rng)
    return maps, torch.nn.functional.one_hot(label, CLASSES).bool()


def reader(maps):
    return lambda indices: (maps[indices], maps[indices].mean((2, 3)))


def slow_box(heat, extent):
    """x0, y0, x1, y1 in cells, by a search from the highest cell to its eight neighbours."""
    grid = len(heat)
    cells = [(y, x) for y in range(grid) for x in range(grid)]
    peak = max(cells, key=lambda cell: heat[cell])  # of equals the first
    found, waiting = {peak}, [peak]
    while waiting:
        y, x = waiting.pop()
        for new in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
            inside = 0 <= new[0] < grid and 0 <= new[1] < grid
            if inside and new not in found and heat[new] >= extent * heat.max():
                found.add(new)
                waiting.append(new)
    ys, xs = zip(*found, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


@pytest.mark.parametrize("extent", [0.4, 0.8, 1.0])
def test_boxes_against_a_search_from_cell_to_cell(some, extent):
    maps = some[0].flatten(0, 1)
    maps[0] = 0  # a class that is nowhere
    found = boxes(maps, extent) * GRID
    expected = [slow_box(heat.numpy(), extent) for heat in maps]
    assert found.round().int().tolist() == expected
    assert {tuple(box) for box in expected} > {(0, 0, GRID, GRID)}  # not all are the whole image


@pytest.mark.parametrize("most", [40, 10_000])
def test_the_ranking_against_a_loop_over_all_pairs(some, most):
    maps, given = some
    missing, wrong = [], []
    for i, c in np.ndindex(IMAGES, CLASSES):
        presence = float(maps[i, c].mean())
        if given[i, c]:
            wrong.append((1 - presence, i, c))
        else:
            missing.append((presence, i, c))
    read = reader(maps)
    ranked = suggest(read, presence_of(read, IMAGES), given, most)
    for found, rows in zip(ranked, (missing, wrong), strict=True):
        rows = sorted(rows, key=lambda row: -row[0])[:most]  # of equals, the first image first
        assert found.image.tolist() == [i for _, i, _ in rows]
        assert found.label.tolist() == [c for _, _, c in rows]
        assert found.score.tolist() == pytest.approx([s for s, _, _ in rows])
        if found.kind == "missing":
            expected = boxes(maps[found.image, found.label])
        else:
            expected = torch.tensor([0, 0, 1.0, 1]).expand(len(rows), 4)
        assert torch.equal(found.box, expected)


# --- where the maps come from ---------------------------------------------------------------------


def run_with(bank, pooling=MEAN_POOLING):
    """A run whose network gives the logit 2 everywhere."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pooling, self.weight = pooling, torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.full((len(images), CLASSES, GRID, GRID), 2.0)

    config = SimpleNamespace(trained="all", eval_side=8, amp="off")
    train = SimpleNamespace(images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    return SimpleNamespace(bank=bank, model=Network().eval(), train=train, config=config)


def filled(bank, images=3):
    maps = torch.rand(images, CLASSES, GRID, GRID, generator=torch.Generator().manual_seed(0))
    bank.update(torch.arange(images), Views.whole(images), maps)
    return maps


def test_averages_are_read_and_pooled_as_the_network_pools():
    pooling = Pooling("lse", 1.0)
    bank = HeatmapBank(3, CLASSES, size=GRID, dtype=torch.float32)
    maps = filled(bank)
    found, presence = maps_of(run_with(bank, pooling))(torch.tensor([2, 0]))
    torch.testing.assert_close(found, maps[[2, 0]])
    expected = pooling(maps[[2, 0]].clamp(1 / 512, 511 / 512).logit()).sigmoid()
    torch.testing.assert_close(presence, expected)


def test_the_network_predicts_what_the_averages_do_not_know_or_if_it_is_asked():
    partly, full = (HeatmapBank(3, CLASSES, size=GRID) for _ in range(2))
    filled(partly, images=2)
    filled(full)
    for bank in (None, HeatmapBank(3, CLASSES, size=1), partly, full):
        found, presence = maps_of(run_with(bank), predict=bank is full)(torch.arange(3))
        assert found.shape == (3, CLASSES, GRID, GRID)
        torch.testing.assert_close(presence, torch.full((3, CLASSES), 2.0).sigmoid())


def test_precision_by_hand():
    images = torch.zeros(4, 3, 10, 10, dtype=torch.uint8)
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 0]]).bool()
    given = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]]).bool()
    image, label = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 2])
    found = Suggestions("missing", image, label, torch.ones(3), torch.zeros(3, 4))
    data = ImageSet(images, labels, tuple("abc"), tuple("0123"))
    text = precision_of_missing(found, data, given)
    assert text == "Of the first 3 missing labels, 67% are right (a random pair: 25.0%)."
    ignored = torch.zeros(4, 3).bool()
    ignored[2, 1] = True
    text = precision_of_missing(found, replace(data, ignored=ignored), given)
    assert text == "Of the first 2 missing labels, 100% are right (a random pair: 28.6%)."
    assert precision_of_missing(found, replace(data, labels=given), given) is None


def test_a_wrong_label_is_found_by_a_softmax_that_has_not_seen_it():
    rng = torch.Generator().manual_seed(0)
    true = torch.randint(0, CLASSES, (200,), generator=rng)
    features = torch.randn(200, 30, generator=rng)
    features[torch.arange(200), true] += 6
    wrong = torch.arange(0, 200, 20)
    label = true.clone()
    label[wrong] = (true[wrong] + 1) % CLASSES
    given = torch.nn.functional.one_hot(label, CLASSES).bool()
    likely = out_of_fold(features, given)
    assert torch.equal(likely, out_of_fold(features, given))
    assert out_of_fold(features[:2], given[:2]).isfinite().all()
    torch.testing.assert_close(likely.sum(1), torch.ones(200))
    read = reader(torch.ones(200, CLASSES, GRID, GRID))  # heatmaps that know nothing
    _, found = suggest(read, presence_of(read, 200), given, len(wrong), likely)
    assert len(set(found.image.tolist()) & set(wrong.tolist())) >= 8
    assert torch.equal(found.score.sort(descending=True).values, found.score)
