"""SparseHeatmapBank agrees with loops, and with HeatmapBank where it keeps all classes."""

import numpy as np
import pytest
import slow_reference as slow
import torch
from test_bank import updates, views_of_every_kind

from spcl_lib import HeatmapBank, Views, spatial_consistency
from spcl_lib.runs import run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.sparse_bank import SparseHeatmapBank


def annotated_of(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize(("size", "grid"), [(1, 1), (12, 4)])
def test_with_all_classes_every_bit_is_the_dense_banks(dtype, size, grid):
    options = {"size": size, "momentum": 0.8, "dtype": dtype, "seed": 3}
    dense, sparse = (
        HeatmapBank(7, 4, **options),
        SparseHeatmapBank(7, 4, 4, annotated_of(7, 4), **options),
    )
    for indices, views, maps in updates(6, 7, 4, grid):
        for bank in (dense, sparse):
            bank.update(indices, views, maps)
        (target, seen), (same, known) = (b.read(indices, views, grid) for b in (dense, sparse))
        assert torch.equal(same, target) and torch.equal(known, seen.expand_as(known))
    for mine, theirs in zip(sparse.stored(slice(5)), dense.stored(slice(5)), strict=True):
        assert torch.equal(mine, theirs)


class SlowSparse:
    """One image and one class at a time: a dictionary of the kept classes' SlowBanks."""

    def __init__(self, annotated, kept, size, momentum):
        self.annotated, self.kept, self.size, self.momentum = annotated, kept, size, momentum
        self.banks = [{int(a): slow.SlowBank(1, 1, size, momentum)} for a in annotated]

    def score(self, bank):
        values = bank.maps[~np.isnan(bank.maps)]
        return values.mean() if len(values) else 0.0

    def update(self, image, box, flipped, maps):
        banks = self.banks[image]
        others = sorted(
            (c for c in range(len(maps)) if c not in banks), key=lambda c: -maps[c].mean()
        )
        for entering in others:
            if len(banks) < self.kept:
                banks[entering] = slow.SlowBank(1, 1, self.size, self.momentum)
                continue
            # A class that has just entered is not asked to leave: it was above all that remain.
            rivals = [c for c in banks if c != self.annotated[image] and c not in others]
            worst = min(rivals, key=lambda c: self.score(banks[c]), default=None)
            if worst is None or maps[entering].mean() <= self.score(banks[worst]):
                break
            del banks[worst]
            banks[entering] = slow.SlowBank(1, 1, self.size, self.momentum)
        for c, bank in banks.items():
            bank.update(0, box, flipped, maps[c : c + 1])


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_classes_enter_and_leave_as_in_the_slow_reference(kept):
    annotated = annotated_of(5, 6)
    bank = SparseHeatmapBank(5, 6, kept, annotated, size=6, momentum=0.8, dtype=torch.float32)
    reference = SlowSparse(annotated.tolist(), kept, 6, 0.8)
    changes = []
    for step, (indices, views, maps) in enumerate(updates(12, 5, 6, 4)):
        level = torch.rand(len(indices), 6, 1, 1, generator=torch.Generator().manual_seed(step))
        maps = 0.8 * level + 0.2 * maps  # classes differ: some are present, some are not
        before = bank.classes.clone()
        bank.update(indices, views, maps)
        changes.append(not torch.equal(before, bank.classes))
        for i, box, flipped, one in zip(indices, views.boxes, views.flipped, maps, strict=True):
            reference.update(int(i), box, flipped, one.numpy())
        for image in range(5):
            held = set(bank.classes[image].tolist()) - {-1}
            assert held == set(reference.banks[image])
    assert any(changes[4:]) == (kept > 1)  # not only at the beginning
    views = views_of_every_kind(5, np.random.default_rng(9))
    target, seen = bank.read(torch.arange(5), views, 3)
    for image in range(5):
        for c in range(6):
            if c not in reference.banks[image]:
                assert not target[image, c].any() and not seen[image, c].any()
                continue
            one = reference.banks[image][c]
            expected, share = one.read(0, views.boxes[image], views.flipped[image], 3)
            read = share >= 0.501
            np.testing.assert_array_equal(seen[image, c].numpy()[read], 1)
            np.testing.assert_allclose(target[image, c].numpy()[read], expected[0][read], atol=4e-4)


def test_classes_that_are_not_kept_count_as_if_they_agreed():
    maps, target = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    seen = (torch.rand(2, 1, 4, 4) < 0.7).float()
    all_kept = spatial_consistency(maps, target, seen.expand(-1, 3, -1, -1))
    torch.testing.assert_close(all_kept, spatial_consistency(maps, target, seen))
    some = seen * torch.tensor([1.0, 0, 1])[None, :, None, None]
    agreeing = target.clone()
    agreeing[:, 1] = maps[:, 1].sigmoid()
    torch.testing.assert_close(
        spatial_consistency(maps, target, some), spatial_consistency(maps, agreeing, seen)
    )


def test_a_run_with_few_classes_ends_and_can_be_loaded(results, tiny):
    config = make_config("scenes", "scl", 0, "smoke", tiny | {"bank_classes": 2})
    run.run(config)
    bank = store.Run.of(config).load().bank
    assert isinstance(bank, SparseHeatmapBank) and bank.kept == 2
    seen = bank.read(torch.arange(5), Views.whole(5), 4)[1]
    assert seen.amax((2, 3)).sum(1).tolist() == [2.0] * 5
