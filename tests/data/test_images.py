"""Image files of every kind, damaged files, and splits that are read batch by batch."""

import gc
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from spcl_lib import UserError
from spcl_lib.data import images
from spcl_lib.data.images import (
    ImageFiles,
    LazyImages,
    map_in_threads,
    read_image,
    select_images,
    try_image,
)
from spcl_lib.train import read_ahead


def noise(height=10, width=14):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height=60, width=80):
    """Smooth colours, as JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x / width, 255 * y / height, 128 + 0 * x], 2).astype(np.uint8)


def plain(file, side):
    """The image as (3, side, side), the plain way."""
    with Image.open(file) as image:
        square = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


# --- kinds of images ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "YCbCr"])
def test_every_kind_of_image_becomes_rgb(mode, tmp_path):
    file = tmp_path / ("image.tif" if mode in ("CMYK", "YCbCr") else "image.png")
    Image.fromarray(noise()).convert(mode).save(file)
    image = read_image(file, 4)
    assert image.shape == (3, 4, 4) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, plain(file, 4))


def test_a_grey_jpeg_has_three_equal_channels(tmp_path):
    grey = photograph()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=95)
    image = read_image(tmp_path / "grey.jpg", 8)
    assert (image == image[:1]).all()
    expected = grey.reshape(60, 8, 10).mean((0, 2))
    np.testing.assert_allclose(image[0], expected[None].repeat(8, 0), atol=6)


def test_a_cmyk_jpeg_has_the_colours_it_was_made_from(tmp_path):
    Image.fromarray(photograph()).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    with Image.open(tmp_path / "print.jpg") as image:
        assert image.mode == "CMYK"
    expected = np.asarray(Image.fromarray(photograph()).resize((8, 8), Image.Resampling.BILINEAR))
    image = read_image(tmp_path / "print.jpg", 8).transpose(1, 2, 0)
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=4)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_what_is_transparent_is_white(kind, tmp_path):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255  # the right half can be seen
    picture = Image.new("RGB", (8, 8), (0, 0, 0))  # black below the transparent half, as is usual
    if kind == "palette":
        picture = Image.fromarray(alpha // 255).convert("P")
        picture.putpalette([0, 0, 0, 0, 0, 0])
        picture.save(tmp_path / "image.png", transparency=0)
    else:
        picture = picture.convert(kind)
        picture.putalpha(Image.fromarray(alpha))
        picture.save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png", 8)
    assert (image[:, :, :4] == 255).all() and (image[:, :, 4:] == 0).all()


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 128)).save(tmp_path / "image.png")
    expected = np.array([200, 0, 0]) * 128 / 255 + 255 * 127 / 255
    np.testing.assert_allclose(read_image(tmp_path / "image.png", 4)[:, 0, 0], expected, atol=1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_16_bits_the_upper_8_are_kept(suffix, tmp_path):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"image.{suffix}")
    image = read_image(tmp_path / f"image.{suffix}", 8)
    np.testing.assert_array_equal(image, np.broadcast_to(values >> 8, (3, 8, 8)))


def test_floating_point_pixels_are_refused_not_guessed(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UserError, match="image.tif' cannot be read: its pixels have 32 bits"):
        read_image(tmp_path / "image.tif", 8)


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "blue")]
    pictures[0].save(tmp_path / "image.gif", save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "image.gif", 4)[:, 0, 0].tolist() == [255, 0, 0]


def quarters(image):
    """Which of the quarters are bright: top left, top right, bottom left, bottom right."""
    return [bool(image[:, y, x].mean() > 128) for y in (1, 6) for x in (1, 6)]


# What EXIF says -> where a bright top left quarter is to be seen.
TURNS = {1: 0, 2: 1, 3: 3, 4: 2, 5: 0, 6: 1, 7: 3, 8: 2}


@pytest.mark.parametrize(("orientation", "seen"), TURNS.items())
def test_images_are_turned_as_their_exif_data_say(orientation, seen, tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    expected = [i == seen for i in range(4)]
    assert quarters(read_image(tmp_path / "turned.jpg", 8)) == expected


def test_a_turned_image_that_is_not_square_keeps_its_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter to the right
    Image.fromarray(photograph()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    expected = Image.fromarray(np.rot90(photograph(), -1)).resize((8, 8), Image.Resampling.BILINEAR)
    image = read_image(tmp_path / "turned.jpg", 8).transpose(1, 2, 0)
    np.testing.assert_allclose(image.astype(int), np.asarray(expected).astype(int), atol=4)


def test_damaged_exif_data_do_not_damage_the_picture(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "plain.png")
    Image.fromarray(noise()).save(tmp_path / "odd.png", exif=b"Exif\0\0no such thing")
    expected = read_image(tmp_path / "plain.png", 8)
    np.testing.assert_array_equal(read_image(tmp_path / "odd.png", 8), expected)


def test_a_name_with_spaces_and_other_letters_is_read_and_named(tmp_path):
    file = tmp_path / "ein Vögelchen – 鳥 'x'.png"
    Image.fromarray(noise()).save(file)
    np.testing.assert_array_equal(read_image(file, 8), plain(file, 8))
    file.write_bytes(b"")
    with pytest.raises(UserError, match="ein Vögelchen – 鳥 'x'.png' cannot be read: it is empty"):
        read_image(file, 8)


def test_big_jpegs_are_read_at_a_lower_resolution_with_the_same_result(tmp_path):
    Image.fromarray(photograph(600, 800)).save(tmp_path / "big.jpg", quality=95)
    exact = plain(tmp_path / "big.jpg", 16).astype(int)
    np.testing.assert_allclose(read_image(tmp_path / "big.jpg", 16).astype(int), exact, atol=2)


# --- damaged files --------------------------------------------------------------------------------

PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty"),
        (b"404: not found", "it is no image"),
        (b"\xff\xd8\xff\xe0 torn", ""),
        (PNG_START, ""),
        (PNG_START + b"\0\0\0\rIHDR\0\0\0\x08", ""),
    ],
)
def test_a_file_that_is_no_image_is_named_in_one_line(content, cause, tmp_path):
    file = tmp_path / "broken.jpg"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"broken.jpg' cannot be read: .*{cause}") as caught:
        read_image(file, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_image_is_damaged_wherever_it_ends(suffix, share, tmp_path):
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(64, 64)).save(file)
    assert not isinstance(try_image(file, 8), str)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert str(try_image(file, 8)).startswith("cannot be read: ")


def test_a_big_jpeg_that_is_truncated_is_damaged_too(tmp_path):
    file = tmp_path / "big.jpg"
    Image.fromarray(noise(512, 512)).save(file)
    file.write_bytes(file.read_bytes()[:-2000])
    assert "truncated" in try_image(file, 8)


def test_bytes_at_random_never_do_more_than_damage_their_image(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
        file = tmp_path / f"image.{suffix}"
        Image.fromarray(noise(16, 16)).save(file)
        intact = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(15):
            content = intact.copy()
            content[rng.integers(0, len(content), 8)] = rng.integers(0, 256, 8)
            file.write_bytes(content.tobytes())
            assert isinstance(try_image(file, 8), (str, np.ndarray))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="gone.jpg' is missing"):
        read_image(tmp_path / "gone.jpg", 8)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError, match="folder.jpg' is no regular file"):
        read_image(tmp_path / "folder.jpg", 8)


def test_a_large_image_is_read_and_one_too_large_is_damaged(tmp_path, monkeypatch):
    Image.fromarray(noise()).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10 * 14 // 2)  # Pillow warns; refuses from twice
    with images.silence_pillow():
        assert not isinstance(try_image(tmp_path / "image.png", 8), str)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10 * 14 // 2 - 1)
    assert "cannot be read: Image size (140 pixels) exceeds" in try_image(tmp_path / "image.png", 8)


# --- many at a time -------------------------------------------------------------------------------


def test_results_come_in_order_from_several_threads_and_few_wait(monkeypatch):
    monkeypatch.setattr(images, "count_cores", lambda: 3)
    started, threads = [], set()

    def work(i):
        started.append(i)
        threads.add(threading.get_ident())
        time.sleep(0.001 * (i % 5))
        return i * i

    results = map_in_threads(work, range(200))
    assert next(results) == 0
    time.sleep(0.1)
    assert len(started) < 20  # nobody takes the results, so no more are made
    assert list(results) == [i * i for i in range(1, 200)]
    assert len(threads) == 3


def test_stopping_early_ends_the_threads(monkeypatch):
    monkeypatch.setattr(images, "count_cores", lambda: 3)
    before = threading.active_count()
    for result in map_in_threads(lambda i: i, range(1000)):
        if result == 5:
            break
    gc.collect()
    assert threading.active_count() == before


# --- lazy images ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{i}.bmp" for i in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(params=["files", "tensor"])
def lazy_and_eager(request, files):
    """The same six images, lazily and as a tensor."""
    rows = torch.tensor([6, 0, 3, 3, 1, 2])
    every = torch.from_numpy(np.stack([read_image(file, 8) for file in files]))
    source = ImageFiles(files, 8) if request.param == "files" else every
    return LazyImages(source, rows), every[rows]


@pytest.mark.parametrize(
    "which",
    [
        3, -1, slice(1, 4), slice(None), slice(0, 0), torch.tensor([4, 0, 4]), torch.tensor(2),
        torch.tensor([], dtype=torch.int64), [5, 2], torch.arange(6) % 2 == 0,
    ],
    ids=str,
)  # fmt: skip
def test_lazy_images_are_indexed_like_a_tensor(lazy_and_eager, which):
    lazy, eager = lazy_and_eager
    assert torch.equal(lazy[which], eager[which])
    assert lazy[which].dtype == lazy.dtype == torch.uint8


def test_lazy_images_have_the_length_shape_and_items_of_a_tensor(lazy_and_eager):
    lazy, eager = lazy_and_eager
    assert len(lazy) == 6 and lazy.shape == eager.shape
    assert torch.equal(torch.stack(list(lazy)), eager)


def test_a_selection_of_lazy_images_is_lazy(lazy_and_eager):
    lazy, eager = lazy_and_eager
    indices = torch.tensor([5, 0, 1])
    part = select_images(select_images(lazy, indices), torch.tensor([2, 0]))
    assert isinstance(part, LazyImages) and part.source is lazy.source
    assert torch.equal(part[:], eager[indices][[2, 0]])


def test_a_large_selection_of_a_tensor_is_not_copied(monkeypatch):
    tensor = torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8)
    indices = torch.tensor([8, 2, 5])
    assert isinstance(select_images(tensor, indices), torch.Tensor)
    monkeypatch.setattr(images, "_COPIED", 3 * 48 - 1)
    part = select_images(tensor, indices)
    assert isinstance(part, LazyImages) and part.source is tensor
    assert torch.equal(part[:], tensor[indices])


def test_what_is_expected_is_read_in_the_background_and_only_once(files, monkeypatch):
    read = []

    def noted(file, side):
        read.append(files.index(file))
        return read_image(file, side)

    monkeypatch.setattr(images, "read_image", noted)
    lazy = LazyImages(ImageFiles(files, 8), torch.arange(7))
    read_ahead(lazy, torch.tensor([4, 2]))
    lazy[torch.tensor([0, 1])]
    deadline = time.monotonic() + 10
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(read) == [0, 1, 2, 4]  # nobody has asked for 2 and 4 yet
    expected = np.stack([read_image(files[i], 8) for i in (4, 2)])
    np.testing.assert_array_equal(lazy[torch.tensor([4, 2])], expected)
    assert sorted(read) == [0, 1, 2, 4]
    np.testing.assert_array_equal(lazy[torch.tensor([4, 2])], expected)  # kept no longer
    assert len(read) == 6


def test_expecting_nothing_or_of_a_tensor_is_nothing(files):
    read_ahead(torch.zeros(3, 3, 4, 4), torch.tensor([1]))
    read_ahead(LazyImages(ImageFiles(files, 8), torch.arange(7)), None)
    read_ahead(LazyImages(torch.zeros(3, 3, 4, 4), torch.arange(3)), torch.tensor([1]))


def test_a_file_that_breaks_later_is_named(files):
    lazy = LazyImages(ImageFiles(files, 8), torch.arange(7))
    files[5].unlink()
    with pytest.raises(UserError, match="5.bmp' is missing"):
        lazy[torch.tensor([4, 5])]
