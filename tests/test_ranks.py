"""Two ranks give what one process gives: losses, gradients, state, evaluation, resume."""

import math
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from two_ranks import on_two_ranks

from spcl_lib import UserError, Views, evaluate
from spcl_lib.__main__ import main
from spcl_lib.methods import METHODS, Method, MethodSettings
from spcl_lib.model import SpatialClassifier
from spcl_lib.runs import checkpoint, run, store
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths, ranks
from spcl_lib.system.randomness import keyed_generator
from spcl_lib.system.replicas import replicate
from spcl_lib.train import batches_of_epoch, make_optimizer, train

IMAGES, CLASSES, CELLS = 11, 5, 6
# In a batch, row i is with rank i mod 2, and so is its image: even and odd numbers take turns.
BATCH = torch.tensor([4, 1, 0, 7, 10, 3, 2])
SETTINGS = MethodSettings(start=1, ramp=1.0, bank_size=CELLS, bank_dtype="float32", rejected=3.0)


def random(*shape, key):
    return torch.rand(shape, generator=keyed_generator(key), dtype=torch.float64)


def labels_of_all():
    return F.one_hot(torch.arange(IMAGES) % CLASSES, CLASSES).bool()


def filled_method(name, settings=SETTINGS):
    """A method whose state is the rank's part of the same random state of all images."""
    labels = ranks.part(labels_of_all())
    method = Method(name, len(labels), CLASSES, settings, labels=labels, epochs=5)
    with torch.no_grad():
        for table, own in method.tables.items():
            if own.dim() == 2:
                values = random(IMAGES, CLASSES, key=table)
                values = values > 0.8 if own.dtype == torch.bool else values
                if table == "pseudo":
                    values[values < 0.5] = math.nan
                own.copy_(ranks.part(values))
    if method.bank is not None:
        size = method.bank.size
        method.bank.heatmaps.copy_(ranks.part(random(IMAGES, CLASSES, size, size, key="heatmaps")))
        method.bank.seen.copy_(ranks.part(random(IMAGES, size, size, key="seen") > 0.4))
    return method


def step_of(name):
    """One step and the end of an epoch, on this rank's part of the batch."""
    method, labels = filled_method(name), labels_of_all()
    method.begin_epoch(3, ranks.part(labels))
    batch = ranks.part(BATCH)
    places = batch // ranks.count()
    maps = ranks.part(random(len(BATCH), CLASSES, 4, 4, key="maps") * 6 - 3).requires_grad_()
    views = Views.sample(len(BATCH), generator=keyed_generator("views"))
    views = Views(ranks.part(views.boxes), ranks.part(views.flipped))
    loss = method.loss(maps, labels[batch], places, views, 3.5)
    loss.backward()
    method.update(maps.detach(), places, views, 3.5)
    method.end_epoch(4, ranks.part(labels))
    grads = {f"grad of {k}": method.tables[k].grad for k in method.term.learned}
    state = method.state_dict()
    state.pop("bank.rounding", None)  # a rank has a stream of its own
    return {"loss": loss.detach(), "maps": maps.grad} | grads | state


def of_both(first, second):
    """The whole of two ranks' rows; what has no rows must be the same on both."""
    if first.dim() < 2:
        assert torch.equal(first, second)
        return first
    whole = first.new_empty(len(first) + len(second), *first.shape[1:])
    whole[::2], whole[1::2] = first, second
    return whole


def do_all():
    """What the tests below compare, in one go, because processes start slowly."""
    with ranks.join():
        steps = {name: step_of(name) for name in METHODS}
        return steps, {name: train_tiny(name) for name in TRAINED}, exchange()


@pytest.fixture(scope="module")
def done():
    results, statuses = on_two_ranks(do_all)
    assert statuses == [0, 0]
    return list(zip(*results, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_two_ranks_is_that_of_one_process(name, done):
    """Values, gradients and all state, with batches of 4 and 3 images."""
    alone = step_of(name)
    assert alone["maps"].abs().sum() > 0
    for part, expected in alone.items():
        got = of_both(*(of_rank[name][part] for of_rank in done[0]))
        # Reads of heatmaps, and the weights of REN, have float32's accuracy.
        is_exact = METHODS[name].consistency != "scl" and METHODS[name].term != "ren"
        is_exact = is_exact and expected.dtype == torch.float64
        accuracy = {"rtol": 1e-12, "atol": 1e-14} if is_exact else {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(
            got, expected, **accuracy, equal_nan=True, msg=lambda text, part=part: part + text
        )


# --- whole trainings ------------------------------------------------------------------------------

# With "norm" in the name, the network has batch normalisation.
TRAINED = [
    "an norm",
    "scl norm",
    "an",
    "ll_ct",
    "ll_cp",
    "epr",
    "role_cl",
    "apl",
    "crisp",
    "asset",
    "en_scl",
    "ren_scl",
]


def train_tiny(name):
    """Three epochs of one batch each, on whole images: nothing depends on the order."""
    name, _, norm = name.partition(" ")
    config = make_config("scenes", name, overrides={
        "epochs": 3, "batch": IMAGES, "crop_side": 8, "image_side": 8, "scale_min": 1.0,
        "ratio_max": 1.0, "flip": 0.0, "start": 1, "ramp": 1.0, "bank_size": 4, "amp": "off",
        "bank_dtype": "float32", "lr": 1e-2,
    })  # fmt: skip
    torch.manual_seed(ranks.rank())  # rank 0's weights count
    middle = nn.BatchNorm2d(6) if norm else nn.Identity()
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=not norm), middle, nn.Tanh())
    model = SpatialClassifier(backbone, 6, CLASSES)
    images = (random(IMAGES, 3, 8, 8, key="images") * 255).to(torch.uint8)
    method = filled_method(name, config.settings)
    optimizer = make_optimizer(model, config.lr, 2.0, 0.01, method.parameters())
    history = train(model, optimizer, method, images, labels_of_all(), config).history
    weights = torch.cat([value.flatten() for value in model.state_dict().values()])
    heatmaps = torch.zeros(0, 1) if method.bank is None else method.bank.heatmaps
    tables = {k: v for k, v in method.state_dict().items() if not k.startswith("bank.")}
    losses = torch.tensor([row["loss"] for row in history])
    return {"losses": losses, "weights": weights, "heatmaps": heatmaps} | tables


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_on_two_ranks_is_that_of_one_process(name, done):
    for part, expected in train_tiny(name).items():
        got = of_both(*(of_rank[name][part] for of_rank in done[1]))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


# --- shards, and what is collected ----------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch", "count"), [(26, 8, 2), (25, 8, 2), (19, 6, 3)])
def test_every_image_is_with_one_rank_for_good(images, batch, count, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    shards = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        epochs = [batches_of_epoch(images, batch, 0, epoch) for epoch in range(3)]
        visited = [ranks.numbers_at(torch.cat(batches)) for batches in epochs]
        assert {len(batches) for batches in epochs} == {math.ceil(images / batch)}
        assert all(len(b) > 0 for batches in epochs for b in batches)
        assert len({tuple(v.tolist()) for v in visited}) == 3  # shuffled
        assert {tuple(sorted(v.tolist())) for v in visited} == {tuple(ranks.numbers(images))}
        shards += visited[0].tolist()
    assert sorted(shards) == list(range(images))


KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.bool,
         torch.int32, torch.int64)  # fmt: skip


def exchange():
    found = []
    for rows in (1, 7, 8):
        for kind in KINDS:
            whole = (random(rows, 3, key=rows) * 9).to(kind)
            own = ranks.part(whole)
            assert torch.equal(ranks.gather(own), whole), (rows, kind)
            collected = ranks.collect(own)
            assert collected is None if ranks.rank() else torch.equal(collected, whole)
    whole = random(5, 2, key="own").requires_grad_()
    ranks.gather(ranks.part(whole)).square().sum().backward()
    assert torch.equal(ranks.part(whole.grad), 2 * ranks.part(whole.detach()))
    assert whole.grad[1 - ranks.rank() :: 2].abs().sum() == 0  # the other rank adds that
    found.append(ranks.from_first(lambda: f"of rank {ranks.rank()}"))

    def fail():
        raise UserError(f"rank {ranks.rank()} fails")

    try:
        ranks.from_first(fail)
    except UserError as error:
        found.append(str(error))
    try:
        ranks.gather(torch.zeros(2 + 3 * ranks.rank(), 4))
    except ValueError as error:
        found.append(str(error))
    return found


def test_rows_come_back_in_their_order_and_once(done):
    refused = ["rank 0 must have 4 of 7 rows; got 2", "rank 1 must have 3 of 7 rows; got 5"]
    assert list(done[2]) == [["of rank 0", "rank 0 fails", text] for text in refused]


# --- runs -----------------------------------------------------------------------------------------


def arguments_of(method, settings):
    pairs = [text for k, v in settings.items() for text in ("--set", f"{k}={v}")]
    return ["run", "--profile", "smoke", "--method", method, *pairs]


def killed_main(arguments, saves):
    """Rank 1 dies as after kill -9, once so many checkpoints are complete."""
    save, done = checkpoint.Checkpoint.save, []

    def save_and_die(self, progress):
        save(self, progress)
        done.append(1)
        if len(done) == saves and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.Checkpoint.save = save_and_die
    checkpoint.CHECKPOINT_SECONDS = 0.0
    return main(arguments)


def content_of(folder):
    files = ("weights", "bank", "scores", "snapshots")
    tensors = {name: store.read_tensors(folder / f"{name}.safetensors") for name in files}
    return store.Run.find(folder).metrics, tensors


def test_a_run_goes_on_after_one_rank_was_killed_to_the_same_bits(
    results, shared_cache, tmp_path, tiny, monkeypatch
):
    """On 23 images and 65 to report on, with labels that the optimiser learns, and a bank."""
    tiny |= {"train_images": 23, "eval_images": 65, "snapshots": 5, "epochs": 2}
    arguments = arguments_of("role_scl", tiny)
    config = make_config("scenes", "role_scl", 0, "smoke", tiny)
    run.prepare(config)
    folders = []
    for name in ("whole", "killed"):
        monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / name))
        folders.append(store.run_folder(config))
    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "whole"))
    assert on_two_ranks(main, arguments) == ([0, 0], [0, 0])

    monkeypatch.setenv("SPCL_RESULTS", str(tmp_path / "killed"))
    _, statuses = on_two_ranks(killed_main, arguments, 5)
    assert statuses[1] == -signal.SIGKILL and statuses[0] not in (0, None)
    state = torch.load(folders[1] / "checkpoint.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 2)
    assert state["method"]["bank.heatmaps"].shape == (23, 12, 8, 8)
    with pytest.raises(UserError, match="of a run with 2 processes; go on with torchrun"):
        run.run(config)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "spcl_lib", *arguments], capture_output=True, text=True, timeout=300,
        cwd=paths.project(), env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("role_scl seed 0: mAP") == 1
    assert not (folders[1] / "checkpoint.pt").exists()
    whole, resumed = map(content_of, folders)
    assert whole[0]["history"] == resumed[0]["history"] and whole[0]["mAP"] == resumed[0]["mAP"]
    assert resumed[0]["machine"]["processes"] == 2
    for name, tensors in whole[1].items():
        assert all(torch.equal(v, resumed[1][name][k]) for k, v in tensors.items()), name
    bank, found = whole[1]["bank"], store.Run.of(config).load()
    assert bank["heatmaps"].shape == (23, 12, 8, 8) and bank["seen"].any(2).any(1).all()
    assert torch.equal(whole[1]["snapshots"]["heatmaps"][-1], bank["heatmaps"][:5])
    scores = evaluate.predict_scores(found.model, found.report.images, 32, [found.model.pooling])
    torch.testing.assert_close(whole[1]["scores"]["scores"], scores[0])  # each image, in its place


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture
def two_started(monkeypatch):
    """The environment in which torchrun starts each of two processes."""
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("command", ["reproduce --list", "compare results", "explore --run r"])
def test_torchrun_is_only_for_run(command, two_started, spcl):
    outcome = spcl(*command.split())
    assert outcome.status == 2
    assert "torchrun is only for `run`; give this command to python -m spcl_lib" in outcome.err


def test_a_process_needs_a_gpu_of_its_own(two_started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(UserError, match="needs a GPU of its own; give --nproc_per_node=1"),
        ranks.join(),
    ):
        pass


@pytest.mark.parametrize(
    ("images", "batch", "report", "most"),
    [(11, 4, 50, 3), (9, 8, 50, 4), (48, 8, 2, 2), (5, 1, 9, 1)],
)
def test_more_processes_than_images_are_refused(images, batch, report, most, monkeypatch):
    config = make_config("scenes", "an", overrides={"batch": batch})
    for count in (1, most, most + 1):
        monkeypatch.setattr(ranks, "count", lambda count=count: count)
        if count <= most:
            run._require_images(config, images, report)
            batches = []
            for rank in range(count):  # and so no batch of any rank is empty
                monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
                batches += batches_of_epoch(images, batch, 0, 0)
            assert all(len(batch) for batch in batches)
            continue
        with pytest.raises(UserError, match=f"{images} training images .* --nproc_per_node={most}"):
            run._require_images(config, images, report)


class OwnNorm(nn.BatchNorm2d):
    """As timm's, which contain an activation."""


def test_batch_statistics_that_would_differ_by_rank_are_refused():
    model = SpatialClassifier(nn.Sequential(nn.Conv2d(3, 6, 3), OwnNorm(6)), 6, CLASSES)
    with pytest.raises(UserError, match="OwnNorm cannot be trained by several processes"):
        replicate(model.train())


def test_one_process_starts_nothing_of_torch_distributed(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with ranks.join():
        assert not torch.distributed.is_initialized()
        own = torch.ones(3, requires_grad=True)
        assert ranks.gather(own) is own and ranks.collect(own) is own and ranks.part(own) is own
        assert ranks.mean(own[0], own[1]).item() == 1 and ranks.numbers_at(own) is own
