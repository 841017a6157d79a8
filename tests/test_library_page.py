"""The code on the library's page works: own crops, Lightning, an own loss."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import logsigmoid
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from spcl_lib import Method, RandomView, Views, losses, methods
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

PAGE = (paths.project() / "spcl_lib" / "README.md").read_text()
CROPS, LIGHTNING, LOSS, _ = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


def test_views_of_own_crops_are_those_crops():
    x, y = np.meshgrid(np.linspace(0, 250, 64), np.linspace(0, 250, 48))  # smooth colours
    image = np.stack((x, y, 0 * x + 9), 2).astype(np.uint8)
    plain = CROPS.replace("v2.ColorJitter(0.4), ", "")
    for seed in range(6):
        torch.manual_seed(seed)
        names = {"v2": v2, "torch": torch, "RandomView": RandomView, "Views": Views,
                 "image": Image.fromarray(image)}  # fmt: skip
        exec(plain, names)
        whole = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        expected = names["views"].crop(whole, 224)[0]
        torch.testing.assert_close(names["crop"].as_subclass(torch.Tensor), expected,
                                   atol=0.02, rtol=0)  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # Lightning's, of its own and of workers
def test_lightning_trains_and_its_checkpoint_has_the_heatmaps(tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning")
    names = {"lightning": lightning, "torch": torch, "Method": Method, "Views": Views}
    exec(LIGHTNING, names)
    labels, data = torch.eye(3), [(torch.rand(3, 32, 32), i) for i in range(3)]

    def make():
        return names["Classifier"](labels, nn.Conv2d(3, 3, 8, 8), 6)

    trainer = lightning.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model, fresh = make(), make()
    trainer.fit(model, DataLoader(data, batch_size=3))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    fresh.load_state_dict(torch.load(tmp_path / "c.ckpt", weights_only=False)["state_dict"])
    assert model.method.bank.seen.any()
    assert torch.equal(fresh.method.bank.heatmaps, model.method.bank.heatmaps)


def test_a_function_and_a_row_make_three_methods_that_train(results, tiny, monkeypatch):
    monkeypatch.setitem(losses.TERMS, "mine", None)  # removed after the test
    exec(LOSS, {"TERMS": losses.TERMS, "Term": losses.Term, "logsigmoid": logsigmoid})
    every = methods._all_methods()
    assert every.keys() - methods.METHODS.keys() == {"mine", "mine_cl", "mine_scl"}
    for name in ("mine", "mine_cl", "mine_scl"):
        monkeypatch.setitem(methods.METHODS, name, every[name])
    metrics = run(make_config("scenes", "mine_scl", 0, "smoke", tiny))
    assert metrics["method"] == "mine_scl" and metrics["mAP"] > 0
    assert methods.title_of("mine_scl") == "Mine + SCL"
