"""The training loop: every image once an epoch, the schedule, frozen blocks, and its end."""

import math

import pytest
import torch
import torch.nn.functional as F

from spcl_lib import UserError
from spcl_lib.data import scenes
from spcl_lib.methods import Method
from spcl_lib.model import SpatialClassifier, small_resnet
from spcl_lib.runs.settings import make_config
from spcl_lib.train import batches_of_epoch, learning_rate, make_optimizer, train


@pytest.fixture(scope="module")
def data():
    made = scenes.make_scenes(26, "train", 32)
    return made.images, F.one_hot(made.labels.int().argmax(1), 12).bool()


def config_of(method="an", **overrides):
    small = {"epochs": 2, "batch": 8, "crop_side": 32, "image_side": 32, "start": 1, "ramp": 1.0,
             "bank_size": 4, "amp": "off"}  # fmt: skip
    return make_config("scenes", method, overrides=small | overrides)


def optimizer_of(model, config):
    return make_optimizer(model, config.lr, config.head_lr_factor, config.weight_decay)


def parts_of(config, images=26):
    torch.manual_seed(config.seed)
    model = SpatialClassifier(small_resnet(), 128, 12, config.frozen)
    labels = F.one_hot(torch.arange(images) % 12, 12)
    method = Method(config.method, images, 12, config.settings, config.seed, labels)
    return model, optimizer_of(model, config), method


@pytest.mark.parametrize(("images", "batch"), [(26, 8), (8, 8), (9, 8), (5, 8), (1, 1), (100, 7)])
def test_an_epoch_visits_every_image_once_in_batches_of_nearly_equal_size(images, batch):
    batches = batches_of_epoch(images, batch, seed=0, epoch=0)
    assert sorted(sum(batches, [])) == list(range(images))
    sizes = {len(b) for b in batches}
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1
    assert len(batches) == math.ceil(images / batch)


def test_the_order_is_random_and_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return sum(batches_of_epoch(50, 8, seed, epoch), [])

    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(50))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    torch.rand(3)
    assert order(0, 1) == orders[1]


@pytest.mark.parametrize("warmup", [0.2, 0.5, 1.0])
def test_the_schedule_rises_from_a_25th_to_1_and_falls_to_0_along_cosines(warmup):
    rates, peak = [learning_rate(i / 1000, warmup) for i in range(1000)], round(1000 * warmup)
    assert rates[0] == pytest.approx(1 / 25) and learning_rate(warmup, warmup) == pytest.approx(1)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert learning_rate(warmup / 2, warmup) == pytest.approx((1 + 1 / 25) / 2)  # half way up
    assert warmup == 1 or learning_rate((1 + warmup) / 2, warmup) == pytest.approx(1 / 2)
    assert warmup == 1 or rates[-1] < 1e-4


def test_the_optimizer_gets_the_schedule_and_the_head_its_factor(data):
    config = config_of(lr=1e-2, head_lr_factor=5.0, epochs=3)
    model, optimizer, method = parts_of(config)
    rates = []
    train(model, optimizer, method, *data, config,
          on_step=lambda p: rates.append([g["lr"] for g in optimizer.param_groups]))  # fmt: skip
    expected = [1e-2 * learning_rate(i / 12, config.warmup) for i in range(12)]  # 4 steps, 3 epochs
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert [r[1] for r in rates] == pytest.approx([5 * e for e in expected])
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.parameters()}


class Recorder(Method):
    """A method that writes down what the loop hands it."""

    def __init__(self, config, labels):
        super().__init__(config.method, 26, 12, config.settings, labels=labels)
        self.losses, self.updates, self.values = [], [], []

    def loss(self, maps, labels, indices, views, epoch):
        self.losses.append((indices, views, epoch, labels))
        value = super().loss(maps, labels, indices, views, epoch)
        self.values.append(value.item())
        return value

    def update(self, maps, indices, views, epoch):
        self.updates.append((indices, views, epoch))
        super().update(maps, indices, views, epoch)


def test_every_step_shows_a_batch_its_views_and_its_labels_and_then_updates(data):
    crops = {"scale_min": 0.4, "scale_max": 0.5, "ratio_max": 1.1, "flip": 1.0}
    config = config_of("en_scl", **crops)  # which refuses to go on if an epoch has not ended
    model, optimizer, _ = parts_of(config)
    method = Recorder(config, data[1])
    done = train(model, optimizer, method, *data, config)
    assert len(method.losses) == 8
    epochs = torch.tensor(method.values).view(2, 4).mean(1).tolist()
    assert [row["loss"] for row in done.history] == pytest.approx(epochs)
    for epoch in (0, 1):
        visited = torch.cat([shown[0] for shown in method.losses[4 * epoch : 4 * epoch + 4]])
        assert sorted(visited.tolist()) == list(range(26))
    for step, (shown, updated) in enumerate(zip(method.losses, method.updates, strict=True)):
        assert shown[:3] == updated and shown[2] == pytest.approx(step / 4)
        assert torch.equal(shown[3], data[1][shown[0]])
    boxes = torch.cat([shown[1].boxes for shown in method.losses])
    assert len(boxes.unique(dim=0)) == 52  # no view twice
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert 0.399 < (width * height).min() and (width * height).max() < 0.501
    assert max((width / height).max(), (height / width).max()) < 1.101
    assert all(shown[1].flipped.all() for shown in method.losses)
    assert method.bank.seen.any(2).any(1).all()


def test_frozen_blocks_stay_as_they_are_even_when_it_is_evaluated_in_between(data):
    config = config_of("scl", frozen=3)
    model, optimizer, method = parts_of(config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, optimizer, method, *data, config, on_epoch=lambda p: model.eval().train() and {})
    for name, value in model.state_dict().items():
        kept = name.startswith("features.") and int(name.split(".")[1]) < 3
        assert torch.equal(value, before[name]) == kept, name


def test_a_loss_that_is_not_finite_ends_the_training_and_says_what_to_do(data):
    config = config_of("scl", lr=0.5)
    model, optimizer, state = parts_of(config)
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    with pytest.raises(UserError, match="loss became nan in epoch 1.*--set lr=0.05"):
        train(model, optimizer, state, *data, config)
    assert not state.bank.seen.any()
