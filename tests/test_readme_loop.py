"""The README's training loops run: plain PyTorch, Lightning, timm, and own crops."""

import math
import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import spcl_lib
from spcl_lib import Method, RandomView, Views, methods
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
SECTION = re.search(r"^## In your own training loop$(.*?)^## ", README, re.M | re.S)[1]
LOOP, CALLS, CROPS, LIGHTNING = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)
PLAIN = "".join(line for line in LOOP.splitlines(True) if "# +" not in line)
CLASSES, SIDE, STARTS = 3, 64, 3
LABELS = F.one_hot(torch.arange(4) % CLASSES, CLASSES).float()


@pytest.fixture
def dataset():
    """Four random images with their indices."""
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return list(zip(images, range(4), strict=True))


def two_layers():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers), 8


def resnet18():
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None)
    return nn.Sequential(*list(whole.children())[:-2]), 512


def mobilenet_v2():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2(weights=None).features, 1280


def timm_resnet18():
    pytest.importorskip("timm", reason="needs timm")
    torch.manual_seed(0)
    return spcl_lib.model.build_backbone("timm:resnet18", None)


class Ran:
    """What a text of the loop did."""

    def __init__(self, text, dataset, make_backbone, epochs=STARTS + 1, method=None, **replaced):
        self.methods, self.losses, self.consistency = [], [], []
        names = {}
        exec(text, names)
        names |= replaced
        backward, add_scl = torch.Tensor.backward, methods.spatial_consistency

        def make_method(name, *arguments, **settings):
            self.methods.append(Method(method or name, *arguments, **settings))
            return self.methods[-1]

        names["Method"] = make_method
        backbone, features = make_backbone()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "backward", lambda t: backward(self.record(self.losses, t)))
            patch.setattr(methods, "spatial_consistency",
                          lambda *args: self.record(self.consistency, add_scl(*args)))  # fmt: skip
            self.model = names["train"](dataset, LABELS, backbone, features, epochs=epochs)

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
    (method,) = ran.methods
    assert methods.title_of(method.name) == "REN + SCL" and "REN + SCL" in SECTION
    assert method.bank.seen.any(2).any(1).all()
    assert (method.bank.heatmaps > 0).any(3).any(2).all()
    assert method.tables["threshold"].isfinite().all() and (method.tables["priors"] > 0).all()
    assert len(ran.losses) == STARTS + 1 and all(map(math.isfinite, ran.losses))
    assert len(ran.consistency) == 1 and 0 < ran.consistency[0] < 1
    assert plain.methods == [] and not torch.equal(ran.weights(), plain.weights())


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
    same = Ran(LOOP, dataset, two_layers, method="an", Views=WholeViews)  # AN is BCE
    assert same.losses == plain.losses and torch.equal(same.weights(), plain.weights())
    without, ran = (
        Ran(LOOP, dataset, two_layers, method=name, Views=WholeViews) for name in ("gr", "gr_scl")
    )
    assert ran.losses[:STARTS] == without.losses[:STARTS]  # before the start: the same
    ran = Ran(LOOP, dataset, two_layers, epochs=STARTS + 2, Views=WholeViews)
    assert ran.losses[:STARTS] != plain.losses[:STARTS] and ran.consistency[1] > 0


def names_of_the_calls(**more):
    names = {}
    exec(LOOP, names)
    train = names["train"]
    return names | {"train": lambda *args: train(*args, epochs=1), "labels": LABELS, **more}


def test_the_call_with_torchvision(dataset, monkeypatch):
    models = torchvision.models
    make, weights = models.mobilenet_v2, models.get_model_weights("mobilenet_v2")
    assert 'weights="DEFAULT"' in CALLS and weights.DEFAULT.url
    monkeypatch.setattr(models, "mobilenet_v2", lambda weights: make())  # without the download
    exec(CALLS.splitlines()[0], names_of_the_calls(dataset=dataset, torchvision=torchvision))


def test_the_call_with_timm(dataset, monkeypatch):
    timm = pytest.importorskip("timm", reason="needs timm")
    make = timm.create_model
    assert timm.is_model_pretrained(re.search(r"timm:(\w+)", CALLS)[1])

    def make_small(name, pretrained, **options):
        assert pretrained
        return make("test_vit", **options)  # without the download

    monkeypatch.setattr(timm, "create_model", make_small)
    exec(CALLS.splitlines()[1], names_of_the_calls(dataset=dataset, spcl_lib=spcl_lib))


# --- a loader that crops by itself ----------------------------------------------------------------


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1)


IMAGE_KINDS = {"PIL": Image.fromarray, "tensor": as_tensor,
               "image": lambda array: tv_tensors.Image(as_tensor(array))}  # fmt: skip


class OwnCrops(Dataset):
    """Images of 48 x 64 pixels through the README's transform, with boxes and flips."""

    def __init__(self, kind, transform=None):
        self.kind, self.transform = IMAGE_KINDS[kind], transform
        x, y = np.meshgrid(np.linspace(0, 250, 64), np.linspace(0, 250, 48))  # smooth colours
        self.arrays = [np.stack((x, y, 0 * x + 9 * i), 2).astype(np.uint8) for i in range(4)]
        if transform is None:
            names = {"image": self.kind(self.arrays[0]), "v2": v2, "torch": torch,
                     "RandomView": RandomView}  # fmt: skip
            exec("\n".join(CROPS.splitlines()[:3]), names)
            assert names["crop"].shape == (3, 224, 224) and names["crop"].max() <= 1
            self.transform = names["transform"]

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        crop, box, flipped = self.transform(self.kind(self.arrays[index]))
        return crop, index, box, flipped


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_views_of_a_users_own_crops_are_those_crops(kind):
    torch.manual_seed(0)
    steps = [RandomView(32, (0.25, 0.5)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    data = OwnCrops(kind, v2.Compose(steps))
    seen = []
    for _ in range(4):
        crops, indices, boxes, flipped = next(iter(DataLoader(data, batch_size=4)))
        views = Views(boxes.float(), flipped)
        whole = torch.stack([as_tensor(data.arrays[i]) for i in indices]).float() / 255
        torch.testing.assert_close(views.crop(whole, 32), crops.as_subclass(torch.Tensor),
                                   atol=0.02, rtol=0)  # fmt: skip
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert ((0.2 < area) & (area < 0.6)).all()
        seen += flipped.tolist()
    assert 0 < sum(seen) < len(seen)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_the_loop_with_a_users_own_crops(kind):
    text = re.sub(r"^ *images = views\.crop.*\n", "", LOOP, flags=re.M)
    text = text.replace("images, indices in", "images, indices, boxes, flipped in")
    own = CROPS.splitlines()[-1].partition("  #")[0]
    text = re.sub(r"views = .*(?=  # \+)", own, text)
    assert len(text.splitlines()) == len(LOOP.splitlines()) - 1 and "sample" not in text
    torch.manual_seed(0)
    ran = Ran(text, OwnCrops(kind), two_layers)
    assert 0.25 < ran.methods[0].bank.seen.float().mean() <= 1
    assert all(map(math.isfinite, ran.losses)) and ran.consistency[0] > 0


# --- Lightning ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Lightning's, of its own and of workers
def test_lightning_trains_and_its_checkpoint_has_the_heatmaps(dataset, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    names = {"lightning": lightning}
    exec(LOOP, names)
    exec(LIGHTNING, names)

    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    model = names["Classifier"](LABELS, *two_layers())
    first = trainer(STARTS + 1)
    first.fit(model, DataLoader(dataset, batch_size=2, shuffle=True))
    assert model.method.bank.seen.any(2).any(1).all()
    assert (model.method.tables["priors"] > 0).all()
    first.save_checkpoint(tmp_path / "c.ckpt")

    again = names["Classifier"](LABELS, *two_layers())
    trainer(STARTS + 2).fit(again, DataLoader(dataset, batch_size=2), ckpt_path=tmp_path / "c.ckpt")
    assert again.current_epoch == STARTS + 2
    saved = torch.load(tmp_path / "c.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(saved["method.bank.heatmaps"], model.method.bank.heatmaps)
    fresh = names["Classifier"](LABELS, *two_layers())
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.method.bank.heatmaps, model.method.bank.heatmaps)
    assert torch.equal(fresh.method.tables["priors"], model.method.tables["priors"])
