"""What the README says of results is what is kept; its code and the library's page's work."""

import csv
import math
import re
import shlex

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_folder import QUICK, make_folder, set_options
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from spcl_lib import Method, RandomView, Views, methods
from spcl_lib.__main__ import main
from spcl_lib.analysis.intervals import gain, summary
from spcl_lib.analysis.league import best_on_held_out, league_table
from spcl_lib.analysis.runs import load_runs, read_kept, table_of
from spcl_lib.losses.registry import TERMS, Term
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
PROSE = " ".join(README.split())


def section(title):
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title, language):
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.M | re.S)


def test_the_table_is_that_of_the_kept_runs():
    tables = [summary(table_of(load_runs("reference", d, "cpu"))) for d in ("scenes", "voc2007")]
    titles = table_of(load_runs("reference", "scenes", "cpu"))["title"].unique()
    both = zip(titles, *(table.itertuples() for table in tables), strict=True)
    for title, *rows in both:
        cells = [f"{x.mAP:.1f} | {x.gain:+.1f} ± {x.gain_high - x.gain:.1f}" for x in rows]
        if title == "AN":
            cells = [f"{x.mAP:.1f} |" for x in rows]
        expected = " | ".join(cells)
        assert f"| {title} | {expected} |" in README


def test_its_findings_are_settled_by_the_kept_results():
    drawn, photos = (table_of(load_runs("reference", d, "cpu")) for d in ("scenes", "voc2007"))
    shares = [summary(part).set_index("method").loc["en_scl", "share"] for part in (drawn, photos)]
    assert "closes {:.0f} % of the gap to Full on scenes, {:.0f} % on VOC".format(*shares) in README
    for method, other in (("scl", "cl"), ("en_scl", "en")):  # "beats CL, and helps EN, on both"
        assert gain(drawn, method, other).low > 0 and gain(photos, method, other).low > 0
    verdicts = []
    assert "Of 32 methods for single labels none is ahead** of REN + SCL on scenes (by the" in PROSE
    for name, first in (("scenes", "ren_scl"), ("voc2007", "cells"), ("coco18", "cells")):
        content = read_kept(f"league-{name}")
        searched = {entry["method"] for entry in content["final"]} - {"full", "iun"}
        assert len(searched) == 32
        for pooling, part in league_table(content).groupby("pooling"):
            ahead = {other for other in searched if gain(part, other, first).low > 0}
            assert ahead == ({"gr_scl"} if (name, pooling) == ("scenes", "mean") else set())
            rival = best_on_held_out(content, pooling, "another paper")
            verdicts.append(gain(part, "en_scl", rival).verdict)
    assert [verdicts.count(v) for v in ("ahead", "behind")] == [0, 6]  # "loses all six"
    frozen = [league_table(read_kept(f"league-{name}")) for name in ("voc2007", "coco18")]
    added = [gain(part, "scl").mean for t in frozen for _, part in t.groupby("pooling")]
    assert (round(min(added), 1), round(max(added), 1)) == (-0.4, 0.4)
    whole = league_table(read_kept("full-training-voc2007")).query("pooling == 'mean'")
    assert gain(whole, "en_scl", "gpr").verdict == "not settled"


def test_what_it_says_of_crops_is_measured():
    files = paths.reference().glob("crop-recovery-*-cpu.csv")
    table = pd.concat(pd.read_csv(file, comment="#") for file in files)
    table = table[(table["measure"] == "AUROC") & (table["method"] == "scl")]
    table = table[table["least"] == 0.1]
    means = table.groupby(["dataset", "group", "read"])["value"].mean().round().astype(int)
    for dataset, group, words in (
        ("scenes", "labelled", "{} to {} on scenes"),
        ("voc2007", "labelled", "{} to {} on VOC 2007"),
        ("voc2007", "unlabelled", "worse what else is there (VOC 2007: {} to {})"),
    ):
        assert words.format(*means[dataset, group][["whole", "view"]]) in PROSE

    worth = pd.read_csv(paths.reference() / "crop-worth-scenes-cpu.csv", comment="#")
    means = worth[worth["scale"] == 0.25].groupby(["label", "method", "target"])["mAP"].mean()
    for method in ("scl", "en_scl"):
        assert means["given", method, "empty"] > means["given", method, "view"]


def test_its_commands_lead_from_a_folder_to_predictions_and_an_audit(
    results, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # there, `results` is where results go
    make_folder(tmp_path / "photos")
    make_folder(tmp_path / "new", any=3)
    (block,) = blocks("Your own photographs", "bash")
    train, predict, audit = (shlex.split(line)[3:] for line in block.splitlines())
    assert main([*train, "--profile", "smoke", *set_options(QUICK)]) == 0
    (held_out,) = results.rglob("report_images.txt")
    assert [name.split("/")[0] for name in held_out.read_text().split()].count("cat") > 0
    assert main(predict) == 0 and main(audit) == 0, capsys.readouterr().err
    with open("predictions.csv", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "cat", "dog", "labels"]
    assert [row[0] for row in rows] == [f"any/any {i}.png" for i in range(3)]
    assert len(list((tmp_path / "overlays").rglob("*.jpg"))) == 3
    assert (tmp_path / "audit" / "audit.html").is_file()


STATEFUL = ["en_cl", *(f"{name}_scl" for name, term in TERMS.items() if term.has_state)]


@pytest.mark.parametrize("name", STATEFUL)
def test_its_loop_trains_with_every_kind_of_state(name):
    torch.manual_seed(0)
    labels, images = torch.eye(3)[[0, 1, 2, 0]], torch.rand(4, 3, 64, 64)
    layers = nn.Conv2d(3, 8, 32, 32), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
    losses = []
    names = {
        "torch": torch, "labels": labels, "model": nn.Sequential(*layers),
        "loader": [(images[i], torch.tensor(i)) for i in ([0, 1], [3, 2])],
    }  # fmt: skip
    (text,) = blocks("Your own loop", "python")
    assert len(text.splitlines()) <= 15
    text = text.replace("ren_scl", name).replace("loss.backward()", "loss.backward(); note(loss)")
    before = [p.detach().clone() for p in names["model"].parameters()]
    names["note"] = lambda loss: losses.append(loss.item())
    exec(text, names)
    assert len(losses) == 20 and all(map(math.isfinite, losses))
    after = names["model"].parameters()
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    first, last = names["Method"](name, 4, 3, labels=labels, epochs=10).term, names["method"].term
    pairs = zip(first.state_dict().values(), last.state_dict().values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)  # its state has changed


# --- the library's page ---------------------------------------------------------------------------


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
    monkeypatch.setitem(TERMS, "mine", None)  # removed after the test
    exec(LOSS.replace("of.", ""), {"TERMS": TERMS, "Term": Term, "F": nn.functional})
    every = methods._all_methods()
    assert every.keys() - methods.METHODS.keys() == {"mine", "mine_cl", "mine_scl"}
    for name in ("mine", "mine_cl", "mine_scl"):
        monkeypatch.setitem(methods.METHODS, name, every[name])
    metrics = run(make_config("scenes", "mine_scl", 0, "smoke", tiny))
    assert metrics["method"] == "mine_scl" and metrics["mAP"] > 0
    assert methods.title_of("mine_scl") == "Mine + SCL"
