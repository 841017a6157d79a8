"""Two ranks: the README's loop, what is made from all images, refusals, runs and their resume."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from small_folder import set_options
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from two_ranks import on_two_ranks

from spcl_lib import Method, MethodSettings, RankSampler, UserError, Views
from spcl_lib.__main__ import main
from spcl_lib.runs import checkpoint, store
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths, ranks
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.weights import load_tensors
from spcl_lib.train import batches_of_epoch

IMAGES, CLASSES, EPOCHS = 13, 4, 4
LABELS = F.one_hot(torch.arange(IMAGES) % CLASSES, CLASSES)
# With whole views all cells count, so the mean of two halves is the mean of a batch.
EXACT = ("an", "cl", "scl", "en", "en_scl", "gr_scl", "asset", "cells_scl")
OTHERS = ("ren_scl", "gpr", "crisp", "apl")


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return IMAGES

    def __getitem__(self, n):
        return torch.rand(3, 8, 8, generator=keyed_generator("image", n)), n


def new_parts(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, CLASSES, 1))
    settings = MethodSettings(start=1, ramp=1.0, bank_size=4, bank_dtype="float32", rejected=9.0)
    return model, Method(name, IMAGES, CLASSES, settings, labels=LABELS, epochs=EPOCHS)


def loop(name, model, method, batches_of):
    """The README's loop; gives the numbers of all batches and the gradients of all steps."""
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.5)
    shown, gradients = [], []
    for epoch in range(EPOCHS):
        for images, indices in batches_of(epoch):
            views = Views.whole(len(indices))
            maps = model(images)
            loss = method.loss(maps, LABELS[indices], indices, views, epoch)
            optimizer.zero_grad()
            loss.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
            optimizer.step()
            method.update(maps, indices, views, epoch)
            shown.append(indices)
        method.end_epoch(epoch)
    return shown, torch.stack(gradients)


def loop_of_rank(name):
    model, method = new_parts(name)
    sampler = RankSampler(IMAGES)
    loader = DataLoader(Images(), batch_size=3, sampler=sampler)
    shown, gradients = loop(name, DistributedDataParallel(model), method, lambda epoch: loader)
    tables = {k: v for k, v in method.state_dict().items() if isinstance(v, torch.Tensor)}
    return shown, gradients, tables, ranks.merge(tables)


def refusals():
    """What a loop without RankSampler gets, and what rank 0 tells the others."""
    method, found = new_parts("scl")[1], []
    numbers = torch.tensor([0, 1])
    for call in (
        lambda: method.update(torch.zeros(2, CLASSES, 2, 2), numbers, Views.whole(2), 0),
        lambda: ranks.from_first(lambda: (_ for _ in ()).throw(UserError(f"of {ranks.rank()}"))),
    ):
        try:
            call()
        except (ValueError, UserError) as error:
            found.append(str(error))
    return [*found, ranks.from_first(ranks.rank)]


class Both(nn.Module):
    """A method as a part of the module that is wrapped, as in Lightning."""

    def __init__(self, model, method):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, images):
        return self.model(images)


def wrapped(**options):
    """The images of this rank with heatmaps after two steps; or how the second is refused."""
    both, own = Both(*new_parts("scl")), torch.tensor([0, 2]) + ranks.rank()
    parallel = DistributedDataParallel(both, **options)
    try:
        for numbers in (own, own + 4):
            maps = parallel(torch.rand(2, 3, 8, 8))
            maps.sum().backward()
            both.method.update(maps, numbers, Views.whole(2), 1)
    except ValueError as error:
        return str(error)
    return both.method.bank.seen.flatten(1).any(1).nonzero().flatten().tolist()


def do_all():
    with ranks.join():
        loops = {name: loop_of_rank(name) for name in (*EXACT, *OTHERS)}
        return loops, refusals(), (wrapped(), wrapped(broadcast_buffers=False))


@pytest.fixture(scope="module")
def done():
    results, statuses = on_two_ranks(do_all)
    assert statuses == [0, 0]
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_the_readmes_loop_on_two_ranks_is_that_of_one_process_with_both_batches(name, done):
    (first, gradients, _, merged), (second, others, *_) = (of_rank[name] for of_rank in done[0])
    torch.testing.assert_close(gradients, others)
    for mine, theirs in zip(first, second, strict=True):
        assert (mine % 2 == 0).all() and (theirs % 2 == 1).all()
    both, data = [torch.cat(pair) for pair in zip(first, second, strict=True)], Images()
    per_epoch = len(both) // EPOCHS

    def batches_of(epoch):
        for numbers in both[per_epoch * epoch :][:per_epoch]:
            yield torch.stack([data[int(n)][0] for n in numbers]), numbers

    model, method = new_parts(name)
    _, expected = loop(name, model, method, batches_of)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)
    for table, value in method.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(merged[table], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "table"), [
    ("ren_scl", "threshold"), ("ren_scl", "priors"), ("gpr", "threshold"), ("crisp", "priors"),
    ("apl", "pseudo"),
])  # fmt: skip
def test_what_is_made_from_all_images_is_the_same_on_both_ranks(name, table, done):
    one, other = (of_rank[name][2][f"term.{table}"] for of_rank in done[0])
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert (one.nan_to_num(posinf=0) > 0).sum() > 1  # of more classes than one rank has


def test_images_of_another_rank_are_refused_and_errors_of_rank_0_reach_all(done):
    for rank, (refused, error, value) in enumerate(done[1]):
        assert f"rank {rank} of 2 got images of other ranks" in refused
        assert "spcl_lib.RankSampler(N)" in refused and (error, value) == ("of 0", 0)


def test_averages_that_another_rank_would_replace_are_refused(done):
    """With DistributedDataParallel's own choice rank 1 kept the images of its last batch only."""
    (_, first), (refused, second) = done[2]
    assert "rank 1 of 2 has the state of rank 0" in refused and "broadcast_buffers=False" in refused
    assert (first, second) == ([0, 2, 4, 6], [1, 3, 5, 7])


@pytest.mark.parametrize(("images", "batch", "count"), [(26, 8, 2), (25, 8, 2), (9, 4, 4)])
def test_every_image_is_with_one_rank_for_good(images, batch, count, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    shards, sampled = [], []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        epochs = [batches_of_epoch(images, batch, 0, epoch) for epoch in range(3)]
        assert len({len(batches) for batches in epochs}) == 1 and all(map(all, epochs))
        visited = [sum(batches, []) for batches in epochs]
        assert {tuple(sorted(v)) for v in visited} == {tuple(range(rank, images, count))}
        sampler = RankSampler(images)
        assert list(sampler) != list(sampler) and len(sampler) == images // count
        shards, sampled = shards + visited[0], sampled + list(sampler)
    assert sorted(shards) == list(range(images))
    assert sorted(sampled) == list(range(images - images % count))


# --- runs -----------------------------------------------------------------------------------------


def killed_main(arguments, saves):
    """Rank 1 dies as after kill -9, once so many checkpoints are complete."""
    save, saved = checkpoint.Checkpoint.save, []

    def save_and_die(self, progress):
        save(self, progress)
        saved.append(1)
        if len(saved) == saves and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpoint.save = save_and_die
    checkpoint.CHECKPOINT_SECONDS = 0.0
    return main(arguments)


def content_of(folder):
    names = ("weights", "bank", "scores", "snapshots")
    tensors = {name: load_tensors(folder / f"{name}.safetensors") for name in names}
    return store.Run.find(folder).metrics, tensors


def test_a_run_goes_on_after_one_rank_was_killed_to_the_same_bits(
    results, shared_cache, tmp_path, tiny, monkeypatch
):
    """With labels that the optimiser learns, heatmaps, and an odd number of images."""
    tiny |= {"train_images": 23, "eval_images": 65, "snapshots": 5, "epochs": 2}
    arguments = ["run", "--profile", "smoke", "--method", "role_scl", *set_options(tiny)]
    config = make_config("scenes", "role_scl", 0, "smoke", tiny)
    folders = []
    for name in ("whole", "killed"):
        monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / name))
        folders.append(store.run_folder(config))
        if name == "whole":
            assert on_two_ranks(main, arguments) == ([0, 0], [0, 0])
    _, statuses = on_two_ranks(killed_main, arguments, 5)
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None)
    state = torch.load(folders[1] / "checkpoint.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "spcl_lib", *arguments], capture_output=True, text=True, timeout=300,
        cwd=paths.project(), env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("role_scl seed 0: mAP") == 1
    (whole, tensors), (resumed, others) = map(content_of, folders)
    assert whole["history"] == resumed["history"] and whole["mAP"] == resumed["mAP"]
    assert resumed["machine"]["processes"] == 2
    for name, group in tensors.items():
        assert all(torch.equal(v, others[name][k]) for k, v in group.items()), name
    assert tensors["bank"]["seen"].any(2).any(1).all()  # of both ranks' images
    assert torch.equal(tensors["snapshots"]["heatmaps"][-1], tensors["bank"]["heatmaps"][:5])


def test_torchrun_is_only_for_run(spcl, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = spcl("reproduce", "--list")
    assert outcome.status == 2 and "torchrun is only for `run`" in outcome.err
