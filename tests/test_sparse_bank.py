"""SparseHeatmapBank agrees with loops, and with HeatmapBank where it keeps all classes."""

import copy
import dataclasses
import io

import numpy as np
import pytest
import slow_reference as slow
import torch
from test_bank import WAYS, choose, updates, views_of_every_kind

from spcl_lib import HeatmapBank, Views
from spcl_lib.losses import spatial_consistency
from spcl_lib.methods import Method, MethodSettings, place_of_averages
from spcl_lib.runs import run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.snapshots import load_snapshots
from spcl_lib.sparse_bank import SparseHeatmapBank, _pack, _unpack, bank_of
from spcl_lib.system.errors import UserError


def annotated_of(count, classes, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize(("size", "grid"), [(1, 1), (7, 5), (12, 4)])
def test_with_all_classes_every_bit_is_the_dense_banks(way, dtype, size, grid, monkeypatch):
    choose(way, monkeypatch)
    dense = HeatmapBank(7, 4, size, 0.8, dtype, seed=3)
    sparse = SparseHeatmapBank(7, 4, 4, annotated_of(7, 4), size, 0.8, dtype, seed=3)
    for indices, views, maps in updates(6, 7, 4, grid):
        for bank in (dense, sparse):
            bank.update(indices, views, maps)
        (target, seen), (same, known) = (b.read(indices, views, grid) for b in (dense, sparse))
        assert torch.equal(same, target) and torch.equal(known, seen.expand_as(known))
    everywhere = slice(None)
    for mine, theirs in zip(sparse.stored(everywhere), dense.stored(everywhere), strict=True):
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
            rivals = [c for c in banks if c != self.annotated[image]]
            # A class that has just entered is not asked to leave: it was above all that remain.
            rivals = [c for c in rivals if c not in others]
            worst = min(rivals, key=lambda c: self.score(banks[c]), default=None)
            if worst is None or maps[entering].mean() <= self.score(banks[worst]):
                break
            del banks[worst]
            banks[entering] = slow.SlowBank(1, 1, self.size, self.momentum)
        for c, bank in banks.items():
            bank.update(0, box, flipped, maps[c : c + 1])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kept", [1, 2, 4])
def test_classes_enter_and_leave_as_in_the_slow_reference(way, kept, monkeypatch):
    choose(way, monkeypatch)
    annotated = annotated_of(5, 6)
    bank = SparseHeatmapBank(5, 6, kept, annotated, 6, 0.8, torch.float32)
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


def test_the_annotated_class_stays_a_strong_one_enters_a_weak_one_leaves():
    bank = SparseHeatmapBank(1, 5, 2, torch.tensor([3]), 4, 0.5, torch.float32)
    image, whole = torch.tensor([0]), Views.whole(1)

    def update(*levels):
        bank.update(image, whole, torch.tensor(levels)[None, :, None, None].expand(1, 5, 2, 2))
        return bank.classes[0].tolist()

    assert update(0.1, 0.2, 0.5, 0.0, 0.3) == [3, 2]  # the annotated one has the lowest score
    assert update(0.1, 0.45, 0.1, 0.0, 0.3) == [3, 2]  # 0.45 is below 2's running 0.5
    assert update(0.1, 0.45, 0.1, 0.0, 0.3) == [3, 1]  # and above its 0.3
    target, seen = bank.read(image, whole, 2)
    assert seen[0].amax((1, 2)).tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(target[0, 1], torch.full((2, 2), 0.45))  # it entered whole
    assert not target[0, 2].any()


def test_a_class_that_enters_has_seen_only_the_view_with_which_it_entered():
    bank = SparseHeatmapBank(1, 3, 2, torch.tensor([0]), 4, 0.5)
    image, low = torch.tensor([0]), torch.tensor([0.5, 0.4, 0.1])[None, :, None, None]
    bank.update(image, Views.whole(1), low.expand(1, 3, 2, 2))
    left = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
    high = torch.tensor([0.5, 0.1, 0.9])[None, :, None, None]
    bank.update(image, left, high.expand(1, 3, 2, 2))
    _, seen = bank.read(image, Views.whole(1), 2)
    assert seen[0].flatten(1).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    heatmaps, of_image = bank.stored(slice(None))
    assert of_image.all() and heatmaps.shape == (1, 3, 4, 4)
    assert not heatmaps[0, 1].any() and not heatmaps[0, 2, :, 2:].any()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_restored_bank_goes_on_bit_for_bit_and_a_saved_one_reads_the_same(mapped, tmp_path):
    steps = list(updates(8, 6, 9, 4))
    path = tmp_path / "bank.bin" if mapped else None
    banks = [SparseHeatmapBank(6, 9, 3, annotated_of(6, 9, s), 5, seed=s) for s in (1, 2)]
    banks[1] = SparseHeatmapBank(6, 9, 3, annotated_of(6, 9, 2), 5, seed=2, path=path)
    for step in steps[:4]:
        banks[0].update(*step)
    file = io.BytesIO()
    torch.save(banks[0].state_dict(), file)
    file.seek(0)
    banks[1].load_state_dict(torch.load(file, weights_only=True))
    for step in steps[4:]:
        for bank in banks:
            bank.update(*step)
    a, b = (bank.state_dict() for bank in banks)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    if mapped:
        assert path.read_bytes() == banks[0].heatmaps.numpy().tobytes()
    again, views = bank_of(banks[0].tensors()), views_of_every_kind(6, np.random.default_rng(1))
    for mine, theirs in zip(
        again.read(torch.arange(6), views, 3), banks[0].read(torch.arange(6), views, 3), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("cells", [1, 7, 8, 9, 196])
def test_a_bit_per_cell_is_enough(cells):
    seen = torch.rand(3, 2, cells) < 0.5
    packed = _pack(seen)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 2, -(-cells // 8))
    assert torch.equal(_unpack(packed, cells), seen)


def test_the_documented_bytes_of_imagenet_are_those_of_the_tensors():
    bank = SparseHeatmapBank(4, 1000, 10, annotated_of(4, 1000), 14)
    images = 1_281_167 / 4
    rest = bank.seen.nbytes + bank.classes.nbytes
    said = f"{bank.heatmaps.nbytes * images / 1e9:.2f} GB and {rest * images / 1e9:.2f} GB"
    assert said in " ".join(SparseHeatmapBank.__doc__.split())


# --- in the method --------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["scl", "en_scl", "gpr_scl"])
def test_a_method_that_keeps_all_classes_has_the_losses_of_the_dense_one(name):
    labels = torch.eye(4)[torch.arange(6) % 4]
    settings = MethodSettings(start=1, ramp=1.0, bank_size=5)
    losses = []
    for kept in (0, 4, 9):  # more classes than there are: all
        more = dataclasses.replace(settings, bank_classes=kept)
        method = Method(name, 6, 4, more, labels=labels, epochs=4)
        assert isinstance(method.bank, SparseHeatmapBank) == (kept > 0)
        losses.append([])
        for step, (indices, views, maps) in enumerate(updates(6, 6, 4, 3)):
            epoch = step / 2
            method.begin_epoch(int(epoch), labels)
            loss = method.loss(maps, labels[indices], indices, views, epoch)
            method.update(maps, indices, views, epoch)
            losses[-1].append(float(loss))
    assert losses[0] == losses[1] == losses[2]


def test_cl_keeps_all_classes_and_scl_needs_the_labels():
    settings = MethodSettings(bank_classes=2)
    assert not isinstance(Method("cl", 6, 4, settings).bank, SparseHeatmapBank)
    with pytest.raises(ValueError, match="bank_classes.*give labels"):
        Method("scl", 6, 4, settings)


def test_the_memory_that_a_method_asks_for_is_that_of_the_kept_classes(monkeypatch):
    monkeypatch.setattr("spcl_lib.system.memory.available_memory", lambda: 2_000_000)
    dense, sparse = MethodSettings(bank_size=14), MethodSettings(bank_size=14, bank_classes=2)
    place_of_averages("scl", 1000, 20, sparse)
    with pytest.raises(UserError, match="20 classes"):
        place_of_averages("scl", 1000, 20, dense)


@pytest.mark.parametrize("kept", [2, 12])
def test_a_run_with_few_classes_ends_and_can_be_loaded(kept, results, tiny):
    config = make_config("scenes", "scl", 0, "smoke", tiny | {"bank_classes": kept, "snapshots": 5})
    metrics = run.run(config)
    bank = store.Run.of(config).load().bank
    assert isinstance(bank, SparseHeatmapBank) and bank.kept == kept
    heatmaps, seen = bank.stored(slice(5))
    kept_snapshots = load_snapshots(store.run_folder(config))
    assert torch.equal(kept_snapshots.heatmaps[-1], heatmaps)
    assert torch.equal(kept_snapshots.seen[-1], seen)
    if kept == 12:
        dense = run.run(make_config("scenes", "scl", 0, "smoke", tiny))
        assert metrics["mAP"] == dense["mAP"] and metrics["AP"] == dense["AP"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kept": 0}, r"1\.\.3.*got 0"), ({"kept": 4}, r"1\.\.3.*got 4"),
        ({"annotated": torch.zeros(3).long()}, r"\(2,\) int64"),
        ({"annotated": torch.zeros(2)}, r"\(2,\) int64"),
        ({"annotated": torch.tensor([0, 3])}, r"0\.\.2"), ({"size": 0}, "size must"),
        ({"momentum": 1.0}, "momentum"), ({"dtype": torch.int8}, "dtype"),
    ],
)  # fmt: skip
def test_impossible_sparse_banks_are_refused(arguments, message):
    usual = {"num_images": 2, "num_classes": 3, "kept": 2, "annotated": torch.zeros(2).long()}
    with pytest.raises(ValueError, match=message):
        SparseHeatmapBank(**(usual | arguments))


def test_an_impossible_update_changes_nothing():
    bank = SparseHeatmapBank(3, 4, 2, torch.zeros(3).long(), 4)
    before = copy.deepcopy(bank.state_dict())
    for maps in (torch.full((2, 4, 3, 3), 1.01), torch.rand(2, 2, 3, 3)):
        with pytest.raises(ValueError, match="sigmoid|must be"):
            bank.update(torch.tensor([0, 1]), Views.whole(2), maps)
    assert all(torch.equal(before[name], value) for name, value in bank.state_dict().items())
