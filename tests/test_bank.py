"""HeatmapBank agrees with the slow reference, for every storage and every kind of view."""

import copy
import io

import numpy as np
import pytest
import slow_reference as slow
import torch
from torch import nn

from spcl_lib import HeatmapBank, Method, Views, cells

COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(
    cells.compiled() is None, reason="this machine has no C compiler"
))  # fmt: skip
WAYS = ("pytorch", COMPILED)


def choose(way, monkeypatch):
    """Makes the banks use PyTorch's operations, or the compiled code."""
    if way == "pytorch":
        monkeypatch.setattr(cells, "compiled", lambda: None)


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


@pytest.mark.parametrize(("size", "grid"), [(1, 1), (4, 3), (7, 5), (12, 4), (5, 9)])
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


def test_the_first_value_of_a_cell_enters_whole_and_later_ones_by_momentum():
    bank, image = HeatmapBank(1, 1, 2, 0.8, torch.float32), torch.tensor([0])
    left = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
    bank.update(image, left, torch.full((1, 1, 2, 2), 0.5))
    assert bank.seen[0].tolist() == [[True, False], [True, False]]
    bank.update(image, Views.whole(1), torch.full((1, 1, 2, 2), 1.0))
    expected = torch.tensor([[0.8 * 0.5 + 0.2, 1.0]] * 2)
    torch.testing.assert_close(bank.heatmaps[0, 0], expected)
    assert bank.seen.all()


def test_a_cell_is_seen_if_half_of_what_is_read_was_and_its_target_is_not_diluted():
    bank, image = HeatmapBank(1, 1, 4, 0.8, torch.float32), torch.tensor([0])
    left = Views(torch.tensor([[0.0, 0.0, 0.26, 1.0]]), torch.tensor([False]))
    bank.update(image, left, torch.full((1, 1, 3, 3), 0.7))  # column 0 of 4
    target, seen = bank.read(image, Views.whole(1), 2)  # columns (0, 1) and (2, 3)
    assert seen[0, 0].tolist() == [[1, 0], [1, 0]]
    torch.testing.assert_close(target[0, 0], torch.tensor([[0.7, 0.0]] * 2))
    corner = Views(torch.tensor([[0.0, 0.0, 0.6, 1.0]]), torch.tensor([False]))
    _, seen = bank.read(image, corner, 1)  # its centre, 0.3, reads 30 % of column 0
    assert not seen.any()


def test_an_untouched_bank_has_seen_nothing_and_others_images_stay_untouched():
    bank = HeatmapBank(3, 2, 4)
    target, seen = bank.read(torch.arange(3), Views.whole(3), 4)
    assert not target.any() and not seen.any()
    bank.update(torch.tensor([1]), Views.whole(1), torch.full((1, 2, 4, 4), 0.9))
    _, seen = bank.read(torch.arange(3), Views.whole(3), 4)
    assert seen.flatten(1).all(1).tolist() == [False, True, False]
    assert bank.heatmaps.flatten(1).any(1).tolist() == [False, True, False]


def test_reading_whole_images_gives_the_same_with_and_without_the_shortcut_for_all_seen():
    bank = HeatmapBank(2, 2, 6, dtype=torch.float32)
    bank.update(torch.tensor([0]), Views.whole(1), torch.rand(1, 2, 6, 6))
    views = views_of_every_kind(5, np.random.default_rng(0))
    for i in range(5):
        alone, _ = bank.read(torch.tensor([0]), views[i : i + 1], 4)
        pair = Views(views.boxes[[i, i]], views.flipped[[i, i]])
        beside, _ = bank.read(torch.tensor([0, 1]), pair, 4)  # image 1 has not been seen
        torch.testing.assert_close(alone[0], beside[0], atol=1e-6, rtol=0)


def test_a_bank_of_one_cell_is_the_running_average_of_cl():
    bank, expected = HeatmapBank(4, 3, 1, 0.8, torch.float32), {}
    rng = np.random.default_rng(0)
    for _ in range(12):
        indices = rng.permutation(4)[:2]
        p = rng.random((2, 3), np.float32)
        maps = torch.from_numpy(p)[:, :, None, None]
        bank.update(torch.from_numpy(indices), Views.whole(2), maps)
        for n, row in zip(indices, p, strict=True):
            expected[n] = 0.8 * expected[n] + 0.2 * row if n in expected else row
    target, seen = bank.read(torch.arange(4), Views.whole(4), 1)
    assert seen.all()
    np.testing.assert_allclose(target[:, :, 0, 0], [expected[n] for n in range(4)], atol=1e-6)


# --- storage --------------------------------------------------------------------------------------


def apart_from_float32(momentum, dtype, updates=200):
    """(updates, ...) how far a storage is from float32, in steps of 1/255, on drifting averages."""
    exact = HeatmapBank(8, 4, 8, momentum, torch.float32)
    small = HeatmapBank(8, 4, 8, momentum, dtype)
    rng = np.random.default_rng(0)
    everything, whole = torch.arange(8), Views.whole(8)
    level = rng.random((8, 4, 8, 8))
    apart = []
    for _ in range(updates):
        level = np.clip(level + rng.normal(0, 0.02, level.shape), 0, 1)  # it drifts, as in training
        for bank in (exact, small):
            bank.update(everything, whole, torch.from_numpy(level).float())
        apart.append(255 * (small.heatmaps.float() / cells.SCALES[dtype] - exact.heatmaps))
    return torch.stack(apart)


@pytest.mark.parametrize("momentum", [0.5, 0.8, 0.9])
def test_uint8_stays_within_a_step_of_float32_over_200_updates(momentum):
    apart = apart_from_float32(momentum, torch.uint8)
    assert apart.abs().mean() < 1
    assert apart.mean().abs() < 0.03  # neither up nor down


def test_the_noise_of_uint8_is_what_its_documentation_says():
    """Above a step from a momentum of 0.95 on: whoever chooses that must be able to know."""
    said = " ".join(HeatmapBank.__doc__.split())
    for momentum, steps in ((0.8, 0.55), (0.9, 0.75), (0.95, 1.0), (0.99, 2.2)):
        assert f"{steps} steps at {momentum}" in said
        noise = apart_from_float32(momentum, torch.uint8, 400)[200:].abs().mean()
        assert noise == pytest.approx(steps, rel=0.1)
        assert noise == pytest.approx(0.33 / (1 - momentum**2) ** 0.5, rel=0.12)
    for momentum, steps in ((0.95, 0.06), (0.99, 0.15)):
        noise = apart_from_float32(momentum, torch.float16, 400)[200:].abs().mean()
        assert noise == pytest.approx(steps, abs=0.03)
        assert f"{steps} steps at {momentum}" in said or f"{steps} at {momentum}" in said


@pytest.mark.parametrize(("momentum", "steps"), [(0.95, 1.2), (0.99, 6)])
def test_float16_comes_to_rest_where_its_documentation_says(momentum, steps):
    short = {}
    for dtype in (torch.float16, torch.float32):
        bank = HeatmapBank(1, 1, 1, momentum, dtype)
        for value in [0.7] + [0.75] * 1000:
            bank.update(torch.tensor([0]), Views.whole(1), torch.full((1, 1, 1, 1), value))
        short[dtype] = 255 * (0.75 - bank.heatmaps.item())
    assert 0.8 * steps < short[torch.float16] < 1.1 * steps
    assert abs(short[torch.float32]) < 0.02


@pytest.mark.parametrize("momentum", [0.8, 0.9, 0.99])
@pytest.mark.parametrize("step", [-0.4 / 255, 0.4 / 255])
def test_steps_far_below_1_of_255_arrive_on_average(momentum, step):
    """Rounding to nearest would never leave 100: each step is at most 0.08 of a unit."""
    bank = HeatmapBank(16, 1, 16, momentum)
    everything, whole = torch.arange(16), Views.whole(16)
    bank.update(everything, whole, torch.full((16, 1, 16, 16), 100 / 255))
    expected = 100 / 255
    for _ in range(200):
        bank.update(everything, whole, torch.full((16, 1, 16, 16), 100 / 255 + step))
        expected = momentum * expected + (1 - momentum) * (100 / 255 + step)
    assert abs(bank.heatmaps.float().mean() / 255 - expected) < 0.15 / 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_certainty_stays_certain(dtype):
    """Averages at exactly 0 and 1 do not wrap around, nor leave [0, 1] when they are read."""
    bank = HeatmapBank(128, 2, 16, dtype=dtype)
    everything = torch.arange(128)
    maps = torch.ones(128, 2, 7, 7)
    maps[:, 1] = 0
    for seed in range(12):
        views = Views.sample(128, generator=torch.Generator().manual_seed(seed))
        bank.update(everything, Views.whole(128) if seed == 6 else views, maps)
        target, seen = bank.read(everything, views, 7)
        assert target.min() >= 0 and target.max() <= 1
        sure = target[:, 0][seen[:, 0] == 1]
        torch.testing.assert_close(sure, torch.ones_like(sure), atol=1e-5, rtol=0)
        assert not target[:, 1].any()


def test_the_noise_takes_each_value_once_and_starts_anywhere():
    noise = cells.rounding_noise(5, torch.device("cpu"))
    assert torch.equal(noise[: cells.NOISE].sort().values * cells.NOISE, torch.arange(2.0**16))
    assert torch.equal(noise[cells.NOISE :], noise[:25])  # a piece never ends before its plane
    pairs = torch.stack((noise[: cells.NOISE], noise[: cells.NOISE].roll(1)))
    assert torch.corrcoef(pairs)[0, 1].abs() < 0.02  # neighbouring cells are rounded apart


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [0.0, 0.3, 0.5, 100.25 / 255, 254.9 / 255, 1.0])
def test_the_rounding_is_unbiased_over_all_starts_of_the_noise(way, value, monkeypatch):
    """Not a sample: every start occurs once, so the mean of all results is the expectation."""
    choose(way, monkeypatch)
    count = cells.NOISE
    heatmaps = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    seen = torch.zeros(count, 2, 2, dtype=torch.bool)
    starts, maps = torch.arange(count)[:, None], torch.full((count, 1, 1, 1), value)
    arguments = torch.arange(count), Views.whole(count)
    cells.update_cells(heatmaps, seen, *arguments, maps, 0.2, starts)  # the first value: whole
    means = heatmaps.double().mean((0, 1))
    assert (means - 255 * value).abs().max() <= 1.1 * 2**-16
    before = heatmaps.clone()
    cells.update_cells(heatmaps, seen, *arguments, 1 - maps, 0.2, starts.roll(1, 0))  # an average
    expected = 0.8 * before.double().mean() + 0.2 * 255 * (1 - value)
    assert (heatmaps.double().mean((0, 1)) - expected).abs().max() < 0.01


@pytest.mark.parametrize("way", WAYS)
def test_no_noise_moves_certain_values_or_cells_outside_the_view(way, monkeypatch):
    choose(way, monkeypatch)
    count = cells.NOISE
    heatmaps = torch.randint(256, (count, 1, 1, 2), dtype=torch.uint8).expand(-1, -1, 2, -1).clone()
    heatmaps[:, :, :, 0] = 255
    before, seen = heatmaps.clone(), torch.ones(count, 2, 2, dtype=torch.bool)
    left = Views(torch.tensor([0.0, 0, 0.5, 1]).repeat(count, 1), torch.zeros(count) > 0)
    starts, maps = torch.arange(count)[:, None], torch.ones(count, 1, 3, 3)
    cells.update_cells(heatmaps, seen, torch.arange(count), left, maps, 0.2, starts)
    assert torch.equal(heatmaps, before)


@pytest.mark.skipif(cells.compiled() is None, reason="this machine has no C compiler")
@pytest.mark.parametrize(("size", "grid"), [(1, 1), (4, 3), (28, 7), (12, 4), (5, 9), (33, 1)])
def test_the_compiled_code_gives_the_bits_of_pytorch_and_of_any_number_of_threads(
    size, grid, monkeypatch
):
    results = []
    threads = torch.get_num_threads()
    for way, number in (("compiled", 1), ("compiled", 2), ("pytorch", 1), ("pytorch", 2)):
        with monkeypatch.context() as patch:
            choose(way, patch)
            patch.setattr(cells, "_AT_ONCE", 3 * 5 * size**2 + 1)  # parts of 3 images
            torch.set_num_threads(number)
            bank, read = HeatmapBank(9, 5, size, seed=4), []
            for indices, views, maps in updates(8, 9, 5, grid, seed=size):
                bank.update(indices, views, maps)
                read += bank.read(indices, views, grid)
            results.append([bank.heatmaps, bank.seen, *read])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_a_memory_mapped_bank_is_the_bank_in_memory(dtype, tmp_path):
    path = tmp_path / "new" / "folder" / "bank.bin"
    banks = [HeatmapBank(6, 3, 5, dtype=dtype, seed=3, path=p) for p in (None, path)]
    for indices, views, maps in updates(4, 6, 3, 4):
        for bank in banks:
            bank.update(indices, views, maps)
    assert torch.equal(banks[0].heatmaps, banks[1].heatmaps)
    assert torch.equal(banks[0].seen, banks[1].seen)
    views = views_of_every_kind(6, np.random.default_rng(1))
    for a, b in zip(*(bank.read(torch.arange(6), views, 3) for bank in banks), strict=True):
        assert torch.equal(a, b)
    assert path.read_bytes() == banks[0].heatmaps.numpy().tobytes()  # it is the file that changed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_a_bank_on_the_gpu_is_the_bank_in_memory(dtype):
    banks = [HeatmapBank(6, 3, 5, dtype=dtype, seed=3, device=d) for d in ("cpu", "cuda")]
    for indices, views, maps in updates(4, 6, 3, 4):
        banks[0].update(indices, views, maps)
        banks[1].update(indices, views.to("cuda"), maps.cuda())
    apart = banks[1].state_dict()["heatmaps"].float() - banks[0].heatmaps.float()
    assert (apart.abs() <= (1 if dtype == torch.uint8 else 1e-3)).all()
    for mine, theirs in zip(
        banks[0].read(indices, views, 4), banks[1].read(indices, views.to("cuda"), 4), strict=True
    ):
        assert theirs.device.type == "cuda"
        torch.testing.assert_close(theirs.cpu(), mine, atol=0.01, rtol=0)


def test_a_new_memory_mapped_bank_starts_empty_over_an_old_file(tmp_path):
    path = tmp_path / "bank.bin"
    path.write_bytes(b"\x77" * 1000)
    assert not HeatmapBank(2, 2, 4, path=path).heatmaps.any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_restored_bank_goes_on_bit_for_bit(dtype, mapped, tmp_path):
    bank = HeatmapBank(6, 3, 5, dtype=dtype, seed=1)
    steps = list(updates(8, 6, 3, 4))
    for step in steps[:4]:
        bank.update(*step)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    path = tmp_path / "bank.bin" if mapped else None
    restored = HeatmapBank(6, 3, 5, dtype=dtype, seed=2, path=path)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for step in steps[4:]:
        bank.update(*step)
        restored.update(*step)
    assert torch.equal(bank.heatmaps, restored.heatmaps)
    assert torch.equal(bank.seen, restored.seen)


def test_the_seed_decides_the_rounding_and_a_state_is_no_copy():
    one, again, other = (HeatmapBank(4, 2, 6, seed=s) for s in (0, 0, 1))
    step = next(updates(1, 4, 2, 6))
    state = one.state_dict()  # as in nn.Module: a bank may be as large as the memory
    for bank in (one, again, other):
        bank.update(*step)
    assert torch.equal(one.heatmaps, again.heatmaps)
    assert not torch.equal(one.heatmaps, other.heatmaps)
    assert torch.equal(state["heatmaps"], one.heatmaps) and state["seen"].any()


def test_no_gradient_flows_into_or_out_of_the_bank():
    bank = HeatmapBank(2, 1, 4, dtype=torch.float32)
    maps = torch.rand(2, 1, 4, 4, requires_grad=True)
    bank.update(torch.arange(2), Views.whole(2), maps)
    target, _ = bank.read(torch.arange(2), Views.whole(2), 4)
    assert not bank.heatmaps.requires_grad and not target.requires_grad


# --- mistakes -------------------------------------------------------------------------------------


def test_a_file_and_a_gpu_do_not_go_together(tmp_path):
    with pytest.raises(ValueError, match="on the CPU; got path"):
        HeatmapBank(2, 2, path=tmp_path / "bank.bin", device="cuda")
    assert not (tmp_path / "bank.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must"), ({"num_classes": 0}, "num_classes must"),
        ({"size": 0}, "size must"), ({"momentum": 1.0}, "momentum"),
        ({"momentum": -0.1}, "momentum"), ({"dtype": torch.int8}, "dtype"),
    ],
)  # fmt: skip
def test_impossible_banks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HeatmapBank(**({"num_images": 2, "num_classes": 2} | arguments))


@pytest.mark.parametrize(
    ("indices", "maps", "message"),
    [
        ([0, 3], torch.rand(2, 2, 4, 4), r"0\.\.2"),
        ([0, -1], torch.rand(2, 2, 4, 4), r"0\.\.2"),
        ([1, 1], torch.rand(2, 2, 4, 4), "once"),
        ([0], torch.rand(1, 2, 4, 4), "indices"),
        ([0.0, 1.0], torch.rand(2, 2, 4, 4), "int64"),
        ([0, 1], torch.rand(2, 3, 4, 4), r"\(2, 2, G, G\)"),
        ([0, 1], torch.rand(2, 2, 4), r"\(2, 2, G, G\)"),
        ([0, 1], torch.full((2, 2, 4, 4), 1.01), "sigmoid"),
        ([0, 1], torch.full((2, 2, 4, 4), -0.01), "sigmoid"),
        ([0, 1], torch.full((2, 2, 4, 4), float("nan")), "sigmoid"),
    ],
)
def test_impossible_updates_are_refused_and_change_nothing(indices, maps, message):
    bank = HeatmapBank(3, 2, 4)
    with pytest.raises(ValueError, match=message):
        bank.update(torch.tensor(indices), Views.whole(2), maps)
    assert not bank.heatmaps.any() and not bank.seen.any()


# --- as a part of a model -------------------------------------------------------------------------


class Model(nn.Module):
    """A user's model that keeps its bank, and the method of another training."""

    def __init__(self, path=None, size=4):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.bank = HeatmapBank(4, 3, size, dtype=torch.float32, path=path)
        self.method = Method("ren_scl", 4, 3, labels=torch.eye(4, 3))


def filled(model):
    indices, views = torch.arange(2), Views.whole(2)
    model.bank.update(indices, views, torch.rand(2, 3, 4, 4))
    model.method.update(torch.randn(2, 3, 4, 4), indices, views, epoch=9)
    model.method.end_epoch(9, torch.eye(4, 3))
    return model


def test_a_bank_is_saved_and_restored_with_the_model_it_is_a_part_of(tmp_path):
    model, file = filled(Model(tmp_path / "bank.bin")), tmp_path / "model.pt"
    torch.save(model.state_dict(), file)
    again = Model(tmp_path / "again.bin")
    again.load_state_dict(torch.load(file, weights_only=True))
    assert model.bank.seen.any() and (model.method.tables["priors"] > 0).any()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    on_disk = torch.from_file(str(tmp_path / "again.bin"), size=4 * 3 * 16)
    assert torch.equal(on_disk.view(4, 3, 4, 4), model.bank.heatmaps)
    for one in (model, again):  # the noise of the rounding goes on, too
        filled(one)


def test_a_move_or_another_type_of_the_model_leaves_its_bank(tmp_path):
    model = filled(Model(tmp_path / "bank.bin"))
    before = model.bank.heatmaps
    model.half().to(memory_format=torch.channels_last)
    assert model.head.weight.dtype == torch.float16
    assert model.bank.heatmaps is before and before.dtype == torch.float32
    assert [name for name, _ in model.named_parameters()] == ["head.weight", "head.bias"]


def test_the_state_of_a_model_with_another_bank_or_none_is_refused():
    state = filled(Model()).state_dict()
    with pytest.raises(RuntimeError, match="bank: heatmaps must be"):
        Model(size=5).load_state_dict(state)
    weights = {name: value for name, value in state.items() if name.startswith("head")}
    with pytest.raises(RuntimeError, match=r"Missing key.*bank.heatmaps"):
        Model().load_state_dict(weights)
    model = Model()
    missing, _ = model.load_state_dict(weights, strict=False)
    assert "method.bank.seen" in missing and torch.equal(model.head.weight, state["head.weight"])


def test_a_copy_of_a_model_has_a_bank_of_its_own():
    model = filled(Model())
    copied = copy.deepcopy(model)
    copied.bank.heatmaps.zero_()
    assert model.bank.heatmaps.any()
