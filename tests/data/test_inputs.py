"""The same pixels give the same square, in whatever form people have them."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_folder import save_noise
from torch.utils.data import DataLoader, TensorDataset

from spcl_lib import UserError
from spcl_lib.data.images import read_image
from spcl_lib.data.inputs import squares


def all_squares(images, side=10, size=64):
    return torch.cat(list(squares(images, side, size)))


@pytest.fixture
def files(tmp_path):
    return [save_noise(tmp_path / f"{i}.png") for i in range(3)]


def test_every_form_gives_the_square_of_the_file(files):
    expected = torch.stack([torch.from_numpy(read_image(file, 10)) for file in files])
    pictures = [Image.open(file) for file in files]
    arrays = [np.asarray(picture) for picture in pictures]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    batch = torch.stack(tensors)
    floats = [tensor / 255 for tensor in tensors]
    labelled = TensorDataset(batch.float() / 255, torch.arange(3))
    forms = [
        files, [str(file) for file in files], pictures, tuple(arrays), np.stack(arrays), tensors,
        batch, floats, torch.stack(floats), np.stack(arrays).astype(np.float64) / 255,
        [files[0], pictures[1], tensors[2]], DataLoader(batch, 2), DataLoader(labelled, 2),
        batch.contiguous(memory_format=torch.channels_last), torch.stack(floats).requires_grad_(),
    ]  # fmt: skip
    for form in forms:
        assert torch.equal(all_squares(form), expected)
    for form in (files[0], str(files[0]), pictures[0], arrays[0], tensors[0], floats[0]):
        assert torch.equal(all_squares(form), expected[:1])


def test_a_callers_picture_stays_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    for name in ("turned.png", "turned.jpg"):
        picture = Image.open(tmp_path / name)
        square = all_squares(picture)
        assert torch.equal(square[0], torch.from_numpy(read_image(tmp_path / name, 10)))
        assert picture.size == (8, 4)
    assert square.shape == (1, 3, 10, 10)


def test_grey_and_transparent_pixels_are_as_in_a_file(tmp_path):
    rng = np.random.default_rng(0)
    grey, four = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((9, 7), (9, 7, 4)))
    for name, array in (("grey", grey), ("four", four)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        expected = torch.from_numpy(read_image(tmp_path / f"{name}.png", 10))
        assert torch.equal(all_squares(array)[0], expected)
    for form in (grey[:, :, None], torch.from_numpy(grey)[None]):
        assert torch.equal(all_squares(form), all_squares(grey))


def test_batches_have_the_size(files):
    assert [len(batch) for batch in squares(files, 4, 2)] == [2, 1]


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        ([], ValueError, "no image"),
        (torch.zeros(0, 3, 4, 4), ValueError, "no image"),
        (torch.zeros(4, 4, 3), ValueError, r"must be \(3, H, W\); got \(4, 4, 3\) float32"),
        (np.zeros((3, 4, 5)), ValueError, r"must be \(H, W, 3\); got \(3, 4, 5\) float64"),
        (torch.full((3, 4, 4), 255.0), ValueError, "before any normalisation; got 255 to 255"),
        (torch.full((3, 4, 4), -0.1), ValueError, "got -0.1 to -0.1"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "got nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "or floats in 0..1; got int64"),
        (torch.zeros(3, 0, 4), ValueError, "no pixels"),
        ({"image": 1}, TypeError, "a file, a PIL image, .* got dict"),
        (None, TypeError, "got NoneType"),
        (DataLoader([{"image": torch.zeros(3, 4, 4)}]), TypeError, "DataLoader's batches .* dict"),
        ("nowhere.png", UserError, "'nowhere.png' is missing"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(images, error, said):
    with pytest.raises(error, match=said):
        all_squares(images)
