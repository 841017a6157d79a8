"""The README's training loops run: plain PyTorch, own crops, Lightning."""

import math
import re

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from spcl_lib import Method, RandomView, Views, methods
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
SECTION = re.search(r"^## In your own training loop$(.*?)^## ", README, re.M | re.S)[1]
LOOP, CALLS, CROPS, LIGHTNING = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)
MARKED = [line for line in LOOP.splitlines() if "# +" in line]
PLAIN = "".join(line for line in LOOP.splitlines(True) if "# +" not in line)
PLAIN = PLAIN.replace(", *method.parameters()", "")
CLASSES, SIDE, STARTS = 3, 64, 3
LABELS = F.one_hot(torch.arange(4) % CLASSES, CLASSES).float()


@pytest.fixture
def dataset():
    """Four random images with their indices."""
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return list(zip(images, range(4), strict=True))


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8), nn.ReLU()), 8


def ran(text, dataset, monkeypatch, epochs=STARTS + 2, name=None, **replaced):
    """The weights that a text of the loop has trained, its losses and its method."""
    names, losses, made = {}, [], []
    exec(text, names)

    def make(*arguments, **settings):
        made.append(Method(name or arguments[0], *arguments[1:], **settings))
        return made[-1]

    def backward(loss):
        losses.append(loss.item())
        torch.autograd.backward(loss)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    names.update(replaced, Method=make)
    backbone, features = two_layers()
    torch.manual_seed(1)
    model = names["train"](dataset, LABELS, backbone, features, epochs=epochs)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert len(losses) == epochs and all(map(math.isfinite, losses))
    return weights, losses, *made


def test_the_marked_lines_make_the_loop_the_method_that_the_text_names(dataset, monkeypatch):
    assert len(MARKED) == 8 and "eight lines" in SECTION
    assert "spcl" not in PLAIN  # without them it is a plain loop
    weights, _, method = ran(LOOP, dataset, monkeypatch)
    assert methods.title_of(method.name) == "REN + SCL" and "REN + SCL" in SECTION
    assert method.bank.seen.any(2).any(1).all() and (method.bank.heatmaps > 0).any(3).any(2).all()
    assert method.term.threshold.isfinite().any() and (method.term.priors > 0).all()
    assert not torch.equal(weights, ran(PLAIN, dataset, monkeypatch)[0])


class WholeViews(Views):
    """Views that leave images as they are, so that runs differ by the loss only."""

    @classmethod
    def sample(cls, batch):
        return cls.whole(batch)

    def to(self, device):
        return self

    def crop(self, images, size):
        return images if images.shape[-1] == size == SIDE else super().crop(images, size)


def test_it_is_the_loss_that_changes_the_training(dataset, monkeypatch):
    plain = ran(PLAIN, dataset, monkeypatch)
    an, gr, gr_scl, role = (
        ran(LOOP, dataset, monkeypatch, name=name, Views=WholeViews)
        for name in ("an", "gr", "gr_scl", "role")
    )
    assert an[1] == plain[1] and torch.equal(an[0], plain[0])  # AN is BCE
    assert gr_scl[1][:STARTS] == gr[1][:STARTS] and gr_scl[1][STARTS] > gr[1][STARTS]
    estimates, first = role[2].term.estimates, Method("role", 4, CLASSES, labels=LABELS).term
    assert (estimates != first.estimates).any(1).all()  # the optimiser has them


def test_the_call_with_torchvision(dataset, monkeypatch):
    models, names = torchvision.models, {"dataset": dataset, "labels": LABELS}
    make, weights = models.mobilenet_v2, models.get_model_weights("mobilenet_v2")
    assert 'weights="DEFAULT"' in CALLS and weights.DEFAULT.url
    monkeypatch.setattr(models, "mobilenet_v2", lambda weights: make())  # without the download
    exec(LOOP.replace("epochs=10", "epochs=1"), names)
    exec(CALLS.splitlines()[0], names | {"torchvision": torchvision})


def test_the_loop_with_a_users_own_crops(monkeypatch):
    """The crops of the README's transform are those of their views."""
    x, y = torch.meshgrid(torch.linspace(0, 1, 48), torch.linspace(0, 1, 64), indexing="ij")
    whole = [torch.stack((x, y, 0 * x + i / 8)) for i in range(4)]  # smooth colours
    names = {"v2": v2, "torch": torch, "RandomView": RandomView, "Views": Views}
    names["image"] = Image.new("RGB", (64, 48))
    exec("\n".join(CROPS.splitlines()[:3]).replace("v2.ColorJitter(0.4), ", ""), names)
    assert names["crop"].shape == (3, 224, 224) and names["crop"].max() <= 1

    class Crops(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            image = v2.functional.to_pil_image(whole[index])
            crop, box, flipped = names["transform"](image)
            return crop, index, box, flipped

    crops, indices, boxes, flipped = next(iter(DataLoader(Crops(), batch_size=4)))
    expected = Views(boxes, flipped).crop(torch.stack(whole), 224)
    torch.testing.assert_close(crops.as_subclass(torch.Tensor), expected, atol=0.03, rtol=0)

    text = re.sub(r"^ *images = views\.crop.*\n", "", LOOP, flags=re.M)
    text = text.replace("images, indices in", "images, indices, boxes, flipped in")
    own = CROPS.splitlines()[-1].partition("  #")[0]
    text = re.sub(r"views = .*(?=  # \+)", own, text)
    assert "sample" not in text
    method = ran(text, Crops(), monkeypatch)[2]
    assert 0.25 < method.bank.seen.float().mean() <= 1


@pytest.mark.filterwarnings("ignore")  # Lightning's, of its own and of workers
def test_lightning_trains_and_its_checkpoint_has_the_heatmaps(dataset, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    names = {"lightning": lightning}
    exec(LOOP, names)
    exec(LIGHTNING, names)
    model = names["Classifier"](LABELS, *two_layers())
    trainer = lightning.Trainer(
        max_epochs=STARTS + 1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(dataset, batch_size=2, shuffle=True))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    assert model.method.bank.seen.any(2).any(1).all() and (model.method.term.priors > 0).all()
    fresh = names["Classifier"](LABELS, *two_layers())
    fresh.load_state_dict(torch.load(tmp_path / "c.ckpt", weights_only=False)["state_dict"])
    assert torch.equal(fresh.method.bank.heatmaps, model.method.bank.heatmaps)
    assert torch.equal(fresh.method.term.priors, model.method.term.priors)
