"""HeatmapBank agrees with the slow reference, for every storage and every kind of view."""

import copy

import numpy as np
import pytest
import slow_reference as slow
import torch
from torch import nn

from spcl_lib import HeatmapBank, Method, UserError, Views, spatial_consistency
from spcl_lib.losses.registry import TERMS
from spcl_lib.methods import MethodSettings, bytes_of_averages
from spcl_lib.runs import run, splits, store
from spcl_lib.runs.settings import make_config
from spcl_lib.sparse_bank import SparseHeatmapBank, bank_of
from spcl_lib.views import resample

TYPES = (torch.uint8, torch.float16, torch.float32)


def views_of_every_kind(count, rng):
    """Random, tiny, border-flush, narrow and whole boxes, in random order, some flipped."""
    sizes = rng.uniform(0.1, 1, (count, 2))
    kinds = rng.permutation(np.arange(count) % 5)
    sizes[kinds == 1] = rng.uniform(0.005, 0.1, sizes[kinds == 1].shape)
    sizes[kinds == 2, 0] = 0.08
    corners = rng.uniform(0, 1, (count, 2)) * (1 - sizes)
    corners[kinds == 3] = np.rint(corners[kinds == 3]) * (1 - sizes[kinds == 3])
    boxes = np.concatenate((corners, np.minimum(corners + sizes, 1)), 1)
    boxes[kinds == 4] = (0, 0, 1, 1)
    flipped = torch.from_numpy(rng.random(count) < 0.5)
    return Views(torch.tensor(boxes, dtype=torch.float32), flipped)


def updates(count, num_images, num_classes, grid, seed=0):
    """Batches of (indices, views, maps) as a training would give them."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        indices = torch.from_numpy(rng.permutation(num_images)[: max(1, num_images - 1)])
        maps = torch.from_numpy(rng.random((len(indices), num_classes, grid, grid), np.float32))
        yield indices, views_of_every_kind(len(indices), rng), maps


@pytest.mark.parametrize(("size", "grid"), [(1, 1), (4, 3), (12, 4), (5, 9)])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_updates_and_reads_are_the_slow_reference(size, grid, momentum):
    bank = HeatmapBank(7, 2, size, momentum, torch.float32)
    reference = slow.SlowBank(7, 2, size, momentum)
    for indices, views, maps in updates(6, 7, 2, grid):
        bank.update(indices, views, maps)
        for i, box, flipped, one in zip(indices, views.boxes, views.flipped, maps, strict=True):
            reference.update(int(i), box, flipped, one.numpy())

    known = ~np.isnan(reference.maps)
    np.testing.assert_array_equal(bank.seen, known[:, 0])
    np.testing.assert_allclose(bank.heatmaps.numpy()[known], reference.maps[known], atol=2e-4)

    everything = torch.arange(7)
    views = views_of_every_kind(7, np.random.default_rng(9))
    target, seen = bank.read(everything, views, grid)
    assert target.shape == (7, 2, grid, grid) and seen.shape == (7, 1, grid, grid)
    for i in range(7):
        expected, share = reference.read(i, views.boxes[i], views.flipped[i], grid)
        clear = np.abs(share - 0.5) > 1e-4  # not on the threshold
        np.testing.assert_array_equal(seen[i, 0].numpy()[clear], (share >= 0.5)[clear])
        read = clear & (share >= 0.5)
        np.testing.assert_allclose(target[i].numpy()[:, read], expected[:, read], atol=4e-4)
        assert not target[i][:, seen[i, 0] == 0].any()  # what is not seen reads as 0


# --- storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.3, 100.25 / 255, 254.9 / 255, 1.0])
def test_the_rounding_of_uint8_is_unbiased_and_moves_nothing_that_is_certain(value):
    bank = HeatmapBank(2000, 1, 4, 0.8)
    everything, whole = torch.arange(2000), Views.whole(2000)
    bank.update(everything, whole, torch.full((2000, 1, 4, 4), value))
    assert bank.heatmaps.double().mean().item() == pytest.approx(255 * value, abs=0.015)
    if value in (0, 1):
        assert (bank.heatmaps == 255 * value).all()
    bank.update(everything, whole, torch.full((2000, 1, 4, 4), 1 - value))
    expected = 255 * (0.8 * value + 0.2 * (1 - value))
    assert bank.heatmaps.double().mean().item() == pytest.approx(expected, abs=0.02)


def test_no_byte_overflows_where_matrix_products_are_rounded(monkeypatch):
    monkeypatch.setattr("spcl_lib.views.resample", lambda *given: 1.002 * resample(*given))
    bank = HeatmapBank(2, 1, 4)
    bank.update(torch.arange(2), Views.whole(2), torch.ones(2, 1, 4, 4))
    assert (bank.heatmaps == 255).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TYPES)
def test_a_bank_on_the_gpu_is_the_bank_in_memory(dtype):
    banks = [HeatmapBank(6, 3, 5, dtype=dtype, seed=3, device=d) for d in ("cpu", "cuda")]
    for indices, views, maps in updates(4, 6, 3, 4):
        banks[0].update(indices, views, maps)
        banks[1].update(indices, views.to("cuda"), maps.cuda())
    apart = banks[1].heatmaps.cpu().float() - banks[0].heatmaps.float()
    assert (apart.abs() <= (1 if dtype == torch.uint8 else 1e-3)).all()
    for mine, theirs in zip(
        banks[0].read(indices, views, 4), banks[1].read(indices, views.to("cuda"), 4), strict=True
    ):
        assert theirs.device.type == "cuda"
        torch.testing.assert_close(theirs.cpu(), mine, atol=0.01, rtol=0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_restored_bank_goes_on_bit_for_bit_and_a_saved_one_reads_the_same(
    dtype, sparse, tmp_path
):
    def make():
        options = {"size": 5, "dtype": dtype, "seed": 1}
        if sparse:
            return SparseHeatmapBank(6, 3, 2, torch.zeros(6, dtype=torch.int64), **options)
        return HeatmapBank(6, 3, **options)

    bank, restored, steps = make(), make(), list(updates(8, 6, 3, 4))
    for step in steps[:4]:
        bank.update(*step)
    torch.save(bank.state_dict(), tmp_path / "state.pt")
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in steps[4:]:
        bank.update(*step)
        restored.update(*step)
    for name, value in bank.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name
    indices, views, _ = steps[0]
    pairs = zip(*(b.read(indices, views, 3) for b in (bank, bank_of(bank.tensors()))), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "maps", "message"),
    [
        ([0, 3], torch.rand(2, 2, 4, 4), r"0\.\.2"),
        ([1, 1], torch.rand(2, 2, 4, 4), "once"),
        ([0, 1], torch.full((2, 2, 4, 4), float("nan")), "sigmoid"),
    ],
)
def test_impossible_updates_are_refused_and_change_nothing(indices, maps, message):
    bank = HeatmapBank(3, 2, 4)
    before = copy.deepcopy(bank.state_dict())
    with pytest.raises(ValueError, match=message):
        bank.update(torch.tensor(indices), Views.whole(2), maps)
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())


def test_a_restored_bank_has_the_type_of_the_saved_one():
    with pytest.raises(ValueError, match="are torch.uint8, those here torch.float32"):
        HeatmapBank(2, 3, 4, dtype=torch.float32).load_state_dict(HeatmapBank(2, 3, 4).state_dict())


@pytest.mark.parametrize(
    ("name", "more"), [("an", {}), ("cl", {}), ("scl", {}), ("scl", {"bank_classes": 2})]
)
def test_the_bytes_of_averages_are_known_before_they_are_made(name, more):
    settings, labels = MethodSettings(bank_size=14, **more), torch.eye(20)[torch.arange(1000) % 20]
    bank = Method(name, 1000, 20, settings, labels=labels).bank
    needed = bytes_of_averages(name, 1000, 20, settings)
    assert needed == sum(table.nbytes for table in bank.buffers()) if bank else needed == 0


def test_averages_that_do_not_fit_are_refused_before_the_images_are_decoded(results, monkeypatch):
    monkeypatch.setattr(splits, "bytes_of_averages", lambda *given: 10**15)
    monkeypatch.setattr(splits, "_decode", lambda *given: pytest.fail("they were decoded"))
    with pytest.raises(UserError, match="500 images x 12 classes need 1,000,000.0 GB"):
        splits.load_splits(make_config("scenes", "scl", 0, "smoke"), None)


@pytest.mark.parametrize("name", [name for name, term in TERMS.items() if term.has_state])
def test_the_bytes_of_a_losss_state_are_counted(name):
    method = Method(name, 1000, 20, labels=torch.eye(20)[torch.arange(1000) % 20], epochs=4)
    kept = sum(table.nbytes for table in (*method.buffers(), *method.parameters()))
    assert bytes_of_averages(name, 1000, 20, MethodSettings()) >= kept


def test_a_move_or_another_type_of_the_model_leaves_its_banks():
    model = nn.ModuleDict({
        "head": nn.Linear(2, 3), "bank": HeatmapBank(4, 3, 4, dtype=torch.float32),
        "method": Method("ren_scl", 4, 3, labels=torch.eye(4, 3)),
    })  # fmt: skip
    banks = (model["bank"].heatmaps, model["method"].bank.heatmaps)
    model.half().to("meta").to(memory_format=torch.channels_last)
    assert model["head"].weight.dtype == torch.float16
    assert model["head"].weight.device.type == "meta"
    assert (model["bank"].heatmaps, model["method"].bank.heatmaps) == banks
    assert banks[0].dtype == torch.float32 and banks[1].device.type == "cpu"
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]


# --- the bank of some classes ---------------------------------------------------------------------


def annotated_of(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize(("size", "grid"), [(1, 1), (12, 4)])
def test_with_all_classes_every_bit_is_the_dense_banks(dtype, size, grid):
    options = {"size": size, "momentum": 0.8, "dtype": dtype, "seed": 3}
    dense = HeatmapBank(7, 4, **options)
    sparse = SparseHeatmapBank(7, 4, 4, annotated_of(7, 4), **options)
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
        others = [c for c in range(len(maps)) if c not in banks]
        others.sort(key=lambda c: -maps[c].mean())
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
    of_some = spatial_consistency(maps, target, some)
    torch.testing.assert_close(of_some, spatial_consistency(maps, agreeing, seen))


def test_a_run_with_few_classes_ends_and_can_be_loaded(results, tiny):
    config = make_config("scenes", "scl", 0, "smoke", tiny | {"bank_classes": 2})
    run.run(config)
    bank = store.Run.of(config).load().bank
    assert isinstance(bank, SparseHeatmapBank) and bank.kept == 2
    seen = bank.read(torch.arange(5), Views.whole(5), 4)[1]
    assert seen.amax((2, 3)).sum(1).tolist() == [2.0] * 5


@pytest.mark.parametrize("dtype", TYPES)
def test_a_better_class_takes_the_place_of_a_worse_one_in_every_storage(dtype):
    bank = SparseHeatmapBank(1, 3, 2, torch.tensor([0]), size=4, dtype=dtype)
    for values in ([0.9, 0.5, 0.4], [0.9, 0.1, 0.8]):
        maps = torch.tensor(values).view(1, 3, 1, 1).expand(-1, -1, 4, 4)
        bank.update(torch.tensor([0]), Views.whole(1), maps)
    assert bank.classes.tolist() == [[0, 2]]
