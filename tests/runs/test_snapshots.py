"""Snapshots have the right content, do not change the run, and survive a stop."""

import pytest
import torch
from safetensors.torch import load_file
from small_folder import QUICK, make_folder

from spcl_lib.evaluate import predict_maps
from spcl_lib.runs.run import run
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.snapshots import FILE, as_bytes, load_trace
from spcl_lib.runs.store import run_folder
from spcl_lib.system.errors import UserError

FOLLOWED = 5


def config_of(method, tiny, **settings):
    return make_config("scenes", method, 0, "smoke", tiny | {"snapshots": FOLLOWED} | settings)


@pytest.mark.parametrize("method", ["an", "cl", "en_scl"])
def test_they_follow_the_first_images_over_all_epochs(method, results, tiny):
    config = config_of(method, tiny, bank_dtype="float32" if method == "en_scl" else "uint8")
    run(config)
    taken, trace = load_file(run_folder(config) / FILE), load_trace(config)
    assert taken["maps"].shape == (3, FOLLOWED, 12, 4, 4) and list(trace.epochs) == [1, 2, 3]
    maps = predict_maps(trace.model, trace.data.images, config.eval_side)
    assert torch.equal(taken["maps"][-1], as_bytes(maps.sigmoid()))
    assert trace.averaged == method.endswith("scl")
    size = 8 if trace.averaged else 4
    assert trace.heatmaps.shape == (3, FOLLOWED, 12, size, size)
    assert trace.seen.shape == (3, FOLLOWED, size, size)
    if method == "an":
        assert list(taken) == ["maps"]
        return
    kept = load_file(run_folder(config) / "bank.safetensors")
    assert torch.equal(taken["heatmaps"][-1], as_bytes(kept["heatmaps"][:FOLLOWED]))
    assert torch.equal(taken["seen"][-1], kept["seen"][:FOLLOWED])
    assert not torch.equal(taken["heatmaps"][1], taken["heatmaps"][2])  # the epochs differ


def test_more_than_there_are_means_all_and_damage_is_told(results, tiny):
    config = config_of("cl", tiny, snapshots=1000)
    run(config)
    assert load_trace(config).heatmaps.shape[1] == 48
    (run_folder(config) / FILE).write_bytes(b"torn")
    with pytest.raises(UserError, match="snapshots.safetensors' cannot be read"):
        load_trace(config)


def test_a_trace_of_a_users_folder_needs_no_fingerprint(results, tmp_path):
    folder = make_folder(tmp_path / "photos")
    settings = QUICK | {"snapshots": 4, "epochs": 2, "start": 1, "bank_size": 4}
    config = make_config("folder", "scl", 0, "smoke", settings)
    run(config, folder)
    trace = load_trace(config, folder)
    assert trace.heatmaps.shape == (2, 4, 2, 4, 4) and trace.averaged
    assert trace.data.files is not None and trace.region(0) is None


@pytest.mark.parametrize("method", ["scl", "an"])
def test_a_run_that_followed_no_image_has_the_same_bits_and_shows_its_last_epoch(
    method, results, tiny
):
    """One that followed some takes its place, and serves whoever asks for none."""
    plain, followed = configs = [config_of(method, tiny, snapshots=n) for n in (0, FOLLOWED)]
    folder, names = run_folder(plain), ["weights.safetensors", "bank.safetensors"]
    assert folder == run_folder(followed)
    metrics, contents, traces = [], [], []
    for config in configs:
        metrics.append(run(config))
        contents.append([(folder / name).read_bytes() for name in names[: 1 + (method != "an")]])
        assert (folder / FILE).exists() == (config == followed)
        traces.insert(0, load_trace(config))
    assert contents[0] == contents[1] and run(plain) == metrics[1]
    assert all(metrics[0][key] == metrics[1][key] for key in ("mAP", "AP", "history"))
    assert list(traces[0].epochs) == [1, 2, 3] and list(traces[1].epochs) == [3]
    assert traces[0].averaged == traces[1].averaged == (method == "scl")
    for name in ("heatmaps", "seen"):
        last = (getattr(trace, name)[-1, :FOLLOWED] for trace in traces)
        assert torch.equal(*last)
