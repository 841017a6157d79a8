"""SpatialClassifier: its shapes, its pooling, frozen blocks, and weights from files."""

import contextlib
from pathlib import Path

import pytest
import torch
from refusals import message_of
from torch import nn
from torchvision.transforms.functional import normalize

from spcl_lib import UserError
from spcl_lib import model as model_module
from spcl_lib.model import SpatialClassifier, build_backbone, normalise, small_resnet
from spcl_lib.system.weights import save_tensors


@pytest.mark.parametrize(
    ("name", "side", "grid", "width"),
    [("small_resnet", 64, 8, 128), ("mobilenet_v2", 96, 3, 1280), ("resnet18", 64, 2, 512),
     ("resnet50", 64, 2, 2048)],
)  # fmt: skip
def test_a_backbone_keeps_the_spatial_axes(name, side, grid, width):
    features, num_features = build_backbone(name, None)
    assert num_features == width
    model = SpatialClassifier(features, num_features, 5).eval()
    with torch.no_grad():
        maps = model(torch.zeros(2, 3, side, side))
    assert maps.shape == (2, 5, grid, grid)


def mobilenet(frozen):
    """With batch statistics and biases that are not those of a new network."""
    torch.manual_seed(0)
    features, width = build_backbone("mobilenet_v2", None)
    for layer in features.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_mean, layer.bias):
                nn.init.normal_(values, 0.0, 0.1)
            for values in (layer.running_var, layer.weight):
                nn.init.uniform_(values, 0.8, 1.2)
    return SpatialClassifier(features, width, 4, frozen)


def test_frozen_blocks_compute_what_they_did_before_they_were_merged():
    model, images = mobilenet(frozen=7).eval(), torch.randn(2, 3, 64, 64)
    names = list(model.state_dict())
    with torch.no_grad():
        expected = model.head(model.features(images))
        maps = model(images)
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-3)
    assert not torch.equal(maps, expected)  # they were merged
    assert list(model.state_dict()) == names == list(mobilenet(7).state_dict())


def test_a_strided_depthwise_layer_gives_in_bfloat16_what_any_convolution_gives():
    layers = [x for x in mobilenet(3).modules() if isinstance(x, model_module._StridedDepthwise)]
    assert len(layers) == 3  # those of blocks 4, 7 and 14
    images = torch.randn(2, layers[0].in_channels, 8, 8).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layers[0](images)
    expected = nn.Conv2d.forward(layers[0], images.float())
    assert found.dtype == torch.bfloat16
    for one, other in zip(*(
        (out.float(), *torch.autograd.grad(out.float().sum(), [images, layers[0].weight]))
        for out in (found, expected)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.01)


def test_a_gpu_that_has_no_bfloat16_computes_in_float32(monkeypatch):
    """torch would emulate it, slowly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    kind = type(model_module.autocast(torch.device("cuda"), "auto"))
    assert kind is contextlib.nullcontext


def test_images_are_normalised_as_torchvision_does():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    expected = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalise(images), expected)
    assert normalise(images).is_contiguous(memory_format=torch.channels_last)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_from_a_file_even_if_it_is_float16(suffix, tmp_path):
    saved, file = small_resnet(), tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_tensors(saved.to(memory_format=torch.channels_last).state_dict(), file)
    else:
        saved = saved.half()
        torch.save(saved.state_dict(), file)
    loaded, _ = build_backbone("small_resnet", file)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name].to(value.dtype))


UNUSABLE = {
    "text": b"no weights",
    "torn": "torn",
    "other network": nn.Linear(2, 2).state_dict(),
    "module": nn.Linear(2, 2),  # unpickling it could run anything: refused
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_weights_that_cannot_be_used_give_one_line_that_names_the_file(kind, tmp_path):
    file, content = tmp_path / ("w.safetensors" if kind == "text" else "w.pth"), UNUSABLE[kind]
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif kind == "torn":
        torch.save(small_resnet().state_dict(), file)
        file.write_bytes(file.read_bytes()[:5000])
    else:
        torch.save(content, file)
    assert str(file) in message_of(build_backbone, "small_resnet", file)


@pytest.fixture
def hub_file(monkeypatch, tmp_path):
    """The place of mobilenet_v2's weights in torch's hub cache; no file is there yet."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    file = tmp_path / "hub" / "checkpoints" / "mobilenet_v2-7ebf99e0.pth"
    file.parent.mkdir(parents=True)
    return file


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch, hub_file):
    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="no network.*--set weights=FILE.*weights=none"):
        build_backbone("mobilenet_v2", "torchvision")


class Code:
    """Pickled, it is code that runs when the pickle is loaded: it makes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("kind", ["code", "torn"])
def test_a_file_in_the_hub_cache_runs_no_code_and_its_folder_is_named(kind, hub_file, tmp_path):
    ran = tmp_path / "ran"
    if kind == "code":
        torch.save({"x": Code(ran)}, hub_file)
    else:
        hub_file.write_bytes(b"PK\x03\x04 half")
    said = message_of(build_backbone, "mobilenet_v2", "torchvision")
    assert f"delete a damaged file in '{tmp_path / 'hub'}'" in said
    assert not ran.exists()
