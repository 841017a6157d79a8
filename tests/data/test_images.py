"""Pictures of every kind and form become the same squares; what is no picture is named."""

import hashlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from small_folder import save_noise
from torch.utils.data import DataLoader, TensorDataset

from spcl_lib import UserError
from spcl_lib.data import images
from spcl_lib.data.images import read_image, squares, try_image

# SHA-256 of the squares of all kinds below; with another one, `images.VERSION` must change, too.
GOLDEN = {1: "4110ec4c"}


def noise(height=10, width=14):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain(file, side):
    """The image as (3, side, side), the plain way."""
    with Image.open(file) as image:
        square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def turned(file, orientation, pixels):
    """A picture that EXIF data say to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    return file


# --- kinds of pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["CMYK", "1", "YCbCr"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    file = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    Image.fromarray(noise()).convert(mode).save(file)
    np.testing.assert_array_equal(read_image(file, 4), plain(file, 4))


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255  # the right half can be seen
    black = Image.new("RGB", (8, 8))  # also below the transparent half, as is usual
    palette = Image.fromarray(alpha // 255).convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    for mode in ("RGBA", "LA"):
        picture = black.convert(mode)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / f"{mode}.png")
    for name in ("palette", "RGBA", "LA"):
        image = read_image(tmp_path / f"{name}.png", 8)
        assert (image[:, :, :4] == 255).all() and (image[:, :, 4:] == 0).all()


def test_of_16_bits_the_upper_8_are_kept_and_32_bits_are_refused(tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    for name in ("image.png", "image.pgm"):
        Image.fromarray(values).save(tmp_path / name)
        image = read_image(tmp_path / name, 8)
        np.testing.assert_array_equal(image, np.broadcast_to(values >> 8, (3, 8, 8)))
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match="image.tif' cannot be read: its pixels have 32 bits"):
        read_image(tmp_path / "image.tif", 8)


# What EXIF says -> the quarter (of four, by rows) where a bright top left one is to be seen.
@pytest.mark.parametrize(
    ("orientation", "seen"), {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}.items()
)
def test_images_are_turned_as_their_exif_data_say(orientation, seen, tmp_path):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12] = 255
    image = read_image(turned(tmp_path / "turned.png", orientation, pixels), 8)
    quarters = [bool(image[:, y, x].mean() > 128) for y in (1, 6) for x in (1, 6)]
    assert quarters == [i == seen for i in range(4)]


def test_big_jpegs_are_read_at_a_lower_resolution_with_the_same_result(tmp_path):
    y, x = np.mgrid[:600, :800]
    smooth = np.stack([255 * x / 800, 255 * y / 600, 128 + 0 * x], 2).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "big.jpg", quality=95)
    exact = plain(tmp_path / "big.jpg", 16).astype(int)
    np.testing.assert_allclose(read_image(tmp_path / "big.jpg", 16).astype(int), exact, atol=2)


@pytest.mark.skipif(PIL.__version__ != "13.0.0", reason="other versions may round otherwise")
def test_the_pixels_of_a_square_never_change_without_a_new_version(tmp_path):
    digest = hashlib.sha256()
    for mode in ("RGB", "L", "P", "RGBA", "I;16"):
        picture = Image.fromarray(noise()).convert(mode.replace("I;16", "L"))
        picture.convert(mode).save(tmp_path / "image.png")
        digest.update(read_image(tmp_path / "image.png", 8).tobytes())
    for orientation in (1, 6):
        digest.update(read_image(turned(tmp_path / "x.png", orientation, noise()), 8).tobytes())
    assert digest.hexdigest()[:8] == GOLDEN[images.VERSION]


# --- damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_a_truncated_image_is_damaged_wherever_it_ends(suffix, tmp_path):
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(512, 512)).save(file)
    content = file.read_bytes()
    for share in (0.3, 0.95):
        file.write_bytes(content[: int(share * len(content))])
        assert str(try_image(file, 8)).startswith("cannot be read: ")


def test_a_missing_file_and_a_picture_that_is_too_large_are_named(tmp_path, monkeypatch):
    assert try_image(tmp_path / "gone.jpg", 8) == "is missing"
    Image.fromarray(noise()).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 69)  # Pillow refuses from twice
    assert "cannot be read: Image size (140 pixels) exceeds" in try_image(tmp_path / "image.png", 8)


@pytest.fixture
def files(tmp_path):
    return [save_noise(tmp_path / f"{i}.png") for i in range(7)]


# --- images in memory -----------------------------------------------------------------------------


def all_squares(given, side=10, size=64):
    return torch.cat(list(squares(given, side, size)))


def test_every_form_gives_the_square_of_the_file(files):
    files = files[:3]
    expected = torch.stack([torch.from_numpy(read_image(file, 10)) for file in files])
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    batch = torch.stack(tensors)
    labelled = TensorDataset(batch.float() / 255, torch.arange(3))
    forms = [
        files, [str(file) for file in files], pictures, tuple(arrays), np.stack(arrays), tensors,
        batch, [tensor / 255 for tensor in tensors], np.stack(arrays).astype(np.float64) / 255,
        [files[0], pictures[1], tensors[2]], DataLoader(batch, 2), DataLoader(labelled, 2),
        batch.contiguous(memory_format=torch.channels_last), (batch / 255).requires_grad_(),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(all_squares(form), expected)
    for form in (files[0], str(files[0]), pictures[0], arrays[0], tensors[0]):
        assert torch.equal(all_squares(form), expected[:1])


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 4)])
def test_grey_and_transparent_pixels_are_as_in_a_file(shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "x.png")
    expected = torch.from_numpy(read_image(tmp_path / "x.png", 10))
    assert torch.equal(all_squares(array)[0], expected)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], ValueError, "no image"),
        (torch.zeros(64, 64, 3), ValueError, "> 4 channels"),
        (torch.full((3, 4, 4), 255.0), ValueError, "not normalised; got 255 to 255"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "or floats in 0..1; got torch.int64"),
        ("nowhere.png", UserError, "'nowhere.png' is missing"),
        (DataLoader([{"pixels": torch.zeros(3, 4, 4)}]), TypeError, "tuples that begin"),
    ],
)
def test_what_is_no_image_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        all_squares(given)
