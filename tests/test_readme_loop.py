"""The README's training loop runs, with and without the lines that add SCL."""

import math
import re

import pytest
import torch
import torchvision
from torchvision.transforms import v2

from spcl_lib import HeatmapBank, Views
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
SECTION = re.search(r"^## In your own training loop$(.*?)^## ", README, re.M | re.S)[1]
LOOP, CALLS = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)
PLAIN = "".join(line for line in LOOP.splitlines(True) if "# +" not in line)
CLASSES, SIDE, STARTS = 3, 64, 3


@pytest.fixture
def dataset():
    """Four random images with one label each: (image, class number, index)."""
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return [(image, i % CLASSES, i) for i, image in enumerate(images)]


def two_layers():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 8, 8), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers), 8


def resnet18():
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None)
    return torch.nn.Sequential(*list(whole.children())[:-2]), 512


def mobilenet_v2():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2(weights=None).features, 1280


def timm_resnet18():
    timm = pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(0)
    backbone = timm.create_model("resnet18", pretrained=False, num_classes=0, global_pool="")
    return backbone, backbone.num_features


class Ran:
    """What a text of the loop did."""

    def __init__(self, text, dataset, make_backbone, epochs=STARTS + 1, **replaced):
        self.banks, self.losses, self.consistency = [], [], []
        names = {}
        exec(text, names)
        names |= replaced
        names["HeatmapBank"] = self.make_bank
        backward, add_scl = torch.Tensor.backward, names.get("spatial_consistency")
        names["spatial_consistency"] = lambda *args: self.record(self.consistency, add_scl(*args))
        backbone, features = make_backbone()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda t: backward(self.record(self.losses, t)))
            self.model = names["train"](dataset, CLASSES, backbone, features, epochs=epochs)

    def make_bank(self, *args, **settings):
        self.banks.append(HeatmapBank(*args, **settings))
        return self.banks[-1]

    @staticmethod
    def record(values, tensor):
        values.append(tensor.item())
        return tensor

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def test_at_most_ten_lines_are_added():
    marked = [line for line in LOOP.splitlines() if "# +" in line]
    assert len(marked) == 9 and "nine lines" in SECTION
    assert "spcl" not in PLAIN  # without them it is a plain loop


@pytest.mark.parametrize("make_backbone", [resnet18, mobilenet_v2, timm_resnet18])
def test_the_loop_trains_with_scl(dataset, make_backbone):
    ran, plain = Ran(LOOP, dataset, make_backbone), Ran(PLAIN, dataset, make_backbone)
    (bank,) = ran.banks
    assert (bank.num_images, bank.num_classes) == (4, CLASSES)
    assert bank.seen.any(2).any(1).all() and (bank.heatmaps > 0).any(3).any(2).all()
    assert len(ran.losses) == STARTS + 1 and all(map(math.isfinite, ran.losses))
    assert len(ran.consistency) == 1 and 0 < ran.consistency[0] < 1
    assert plain.banks == [] and not torch.equal(ran.weights(), plain.weights())


class WholeViews(Views):
    """Views that leave images as they are, so that runs differ by the loss only."""

    @classmethod
    def sample(cls, batch):
        return cls.whole(batch)

    def to(self, device):
        return self

    def crop(self, images, size):
        return images if images.shape[-1] == size == SIDE else super().crop(images, size)


def test_it_is_the_loss_that_changes_the_training(dataset):
    plain = Ran(PLAIN, dataset, two_layers)
    ran = Ran(LOOP, dataset, two_layers, Views=WholeViews)
    assert ran.losses[:STARTS] == plain.losses[:STARTS]  # before the start: the same
    assert ran.losses[STARTS] > plain.losses[STARTS]
    assert not torch.equal(ran.weights(), plain.weights())
    zero = {"spatial_consistency": lambda *args: torch.zeros(())}
    nothing = Ran(LOOP, dataset, two_layers, Views=WholeViews, **zero)
    assert torch.equal(nothing.weights(), plain.weights())


def names_of_the_calls(**more):
    names = {}
    exec(LOOP, names)
    train = names["train"]
    return names | {"train": lambda *args: train(*args, epochs=1)} | more


def test_the_call_with_torchvision(dataset, monkeypatch):
    models = torchvision.models
    make, weights = models.mobilenet_v2, models.get_model_weights("mobilenet_v2")
    assert 'weights="DEFAULT"' in CALLS and weights.DEFAULT.url
    monkeypatch.setattr(models, "mobilenet_v2", lambda weights: make())  # without the download
    exec(CALLS.splitlines()[0], names_of_the_calls(dataset=dataset, torchvision=torchvision))


def test_the_call_with_timm(dataset, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs timm")
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: make(name, **rest))
    exec("\n".join(CALLS.splitlines()[1:]), names_of_the_calls(dataset=dataset, timm=timm))


# --- a loader that crops by itself ----------------------------------------------------------------


class OwnCrops(torch.utils.data.Dataset):
    """Images of 96 x 64 that torchvision crops and flips, with the boxes and flips."""

    def __init__(self):
        self.images = torch.rand(8, 3, 96, 64, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        params = v2.RandomResizedCrop(32, scale=(0.25, 0.5)).make_params([image])
        top, left, height, width = (params[k] for k in ("top", "left", "height", "width"))
        crop = v2.functional.crop(image, top, left, height, width)
        crop = v2.functional.resize(crop, [32, 32], antialias=False)
        flipped = bool(torch.rand(()) < 0.5)
        crop = v2.functional.horizontal_flip(crop) if flipped else crop
        _, h, w = image.shape
        box = torch.tensor([left / w, top / h, (left + width) / w, (top + height) / h])
        return crop, index % CLASSES, index, box, flipped


def test_views_of_a_users_own_crops_are_those_crops():
    torch.manual_seed(0)
    data = OwnCrops()
    crops, _, indices, boxes, flipped = next(iter(torch.utils.data.DataLoader(data, batch_size=8)))
    assert 0 < flipped.sum() < 8
    views = Views(boxes, flipped)
    torch.testing.assert_close(views.crop(data.images[indices], 32), crops)


def test_the_loop_with_a_users_own_crops():
    text = re.sub(r"^ *images = views\.crop.*\n", "", LOOP, flags=re.M)
    text = text.replace("indices in", "indices, boxes, flipped in")
    text = text.replace("Views.sample(len(images))", "Views(boxes, flipped)")
    assert len(text.splitlines()) == len(LOOP.splitlines()) - 1 and "sample" not in text
    torch.manual_seed(0)
    ran = Ran(text, OwnCrops(), two_layers)
    share = ran.banks[0].seen.float().mean()
    assert 0.25 < share < 0.9  # each image twice, through at most half of it
    assert all(map(math.isfinite, ran.losses)) and ran.consistency[0] > 0
