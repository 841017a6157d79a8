"""The scenes' backbone is pretrained once, and is the same on every machine."""

import pytest
import torch

from spcl_lib.model import build_backbone
from spcl_lib.runs import pretraining
from spcl_lib.runs.settings import make_config


@pytest.fixture(autouse=True)
def few_held_out(monkeypatch):
    monkeypatch.setattr(pretraining, "_HELD_OUT", 60)


def pretrained_in(folder, monkeypatch, images=150, epochs=1):
    monkeypatch.setenv("SPCL_CACHE", str(folder))
    return pretraining.pretrained_backbone(images, epochs)


def test_it_is_the_same_in_every_cache_and_leaves_the_random_state_alone(tmp_path, monkeypatch):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, accuracy = pretrained_in(tmp_path / "a", monkeypatch)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again, same = pretrained_in(tmp_path / "b", monkeypatch)
    assert one.read_bytes() == again.read_bytes() and accuracy == same
    build_backbone("small_resnet", one)


def test_it_is_trained_once_and_again_for_other_settings(tmp_path, monkeypatch):
    calls = []
    train = pretraining._pretrain
    monkeypatch.setattr(pretraining, "_pretrain", lambda *args: calls.append(args) or train(*args))
    paths = [pretrained_in(tmp_path, monkeypatch, images) for images in (64, 64, 80)]
    assert len(calls) == 2
    assert paths[0] == paths[1] != paths[2]


@pytest.mark.parametrize("suffix", [".safetensors", ".accuracy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_damaged_weights_are_trained_again_with_a_word(
    damage, suffix, tmp_path, monkeypatch, capsys
):
    path, accuracy = pretrained_in(tmp_path, monkeypatch, 64)
    weights, file = path.read_bytes(), path.with_suffix(suffix)
    content = file.read_bytes()
    at = -9
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    file.write_bytes({"empty": b"", "cut": content[:-30], "flipped": flipped}[damage])
    capsys.readouterr()
    for _ in range(2):
        assert pretrained_in(tmp_path, monkeypatch, 64) == (path, accuracy)
        assert path.read_bytes() == weights
    assert capsys.readouterr().out.count("is damaged") == 1


def test_another_number_in_the_note_is_damage_and_an_older_note_counts(
    tmp_path, monkeypatch, capsys
):
    path, accuracy = pretrained_in(tmp_path, monkeypatch, 64)
    note = path.with_suffix(".accuracy")
    first, sha256, _ = note.read_text().split()
    note.write_text(note.read_text().replace(first, "99.99"))
    assert pretrained_in(tmp_path, monkeypatch, 64) == (path, accuracy)
    assert "is damaged" in capsys.readouterr().out
    note.write_text(f"{first} {sha256}\n")
    monkeypatch.setattr(pretraining, "_pretrain", lambda *given: pytest.fail("trained again"))
    assert pretrained_in(tmp_path, monkeypatch, 64) == (path, accuracy)


def test_results_that_were_published_rest_on_the_long_schedule():
    long = pretraining.Schedule(batch=64, rate=3e-3, warmup=0.2, head_factor=1.0, least_crop=0.5)
    config = make_config("scenes", "an", profile="cpu")
    assert pretraining.schedule_for(config.pretrain_images, config.pretrain_epochs) == long
    assert pretraining.schedule_for(8000, 8) == long  # the tour


def test_a_few_passes_have_the_short_schedule_with_many_more_steps(results, monkeypatch):
    config = make_config("scenes", "an", profile="smoke")
    plan = pretraining.schedule_for(config.pretrain_images, config.pretrain_epochs)
    assert plan.batch * 4 <= pretraining.schedule_for(10_000, 12).batch
    rates = []

    def step(self):
        rates.append([group["lr"] for group in self.param_groups])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    pretraining._pretrain(160, 1, "off")
    assert len(rates) == 160 / plan.batch
    assert all(head == pytest.approx(plan.head_factor * rate) for rate, head in rates)
    assert max(rate for rate, _ in rates) <= plan.rate


def test_it_does_not_depend_on_the_number_of_threads(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    weights = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            path, _ = pretrained_in(tmp_path / str(threads), monkeypatch, images=256)
            weights.append(path.read_bytes())
            assert torch.get_num_threads() == threads  # as it was
    finally:
        torch.set_num_threads(before)
    assert weights[0] == weights[1]
