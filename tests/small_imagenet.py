"""Makes a small ImageNet: made-up wnids, tiny images, and all of ReaL's lists."""

import functools
import json

from PIL import Image

WNIDS = [f"n{7 * c + 10:08d}" for c in range(1000)]
NAMES = [f"class_{c}" for c in range(1000)]
NAMES[517] = NAMES[134]  # as with the two classes called crane
TRAIN = {134: 3, 7: 2, 999: 4, 0: 1}  # class -> images
VALIDATION = (49_999, 3, 50_000, 12, 1, 20, 7)  # numbers, in the order that files are made


@functools.cache
def real_lists():
    """Valid classes of every validation image; none for every tenth, as 20 and 50,000."""
    return [[] if n % 10 == 0 else sorted({n % 1000, 3 * n % 1000}) for n in range(1, 50_001)]


@functools.cache
def real_json():
    return json.dumps(real_lists())


def grey_of(number):
    """Grey level, 0..255, that tells the validation images from each other."""
    return 30 * sorted(VALIDATION).index(number) + 20


def picture(file, grey):
    """A uniform image of 24 x 18 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 18), (grey, grey, grey)).save(file, quality=95)


def make_train(folder):
    for c, count in TRAIN.items():
        for i in reversed(range(count)):
            picture(folder / "train" / WNIDS[c] / f"{WNIDS[c]}_{i}.JPEG", c % 200 + 10 * i)


def make_validation(folder, nested):
    """`nested`: every second file is in a folder that says nothing of the class."""
    for place, number in enumerate(VALIDATION):
        wnid = WNIDS[999 - place] * (place % 2) * nested
        picture(folder / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", grey_of(number))


def make_imagenet(root, nested=False):
    """The whole data root; gives the folder imagenet in it."""
    folder = root / "imagenet"
    make_train(folder)
    make_validation(folder, nested)
    index = {str(c): [WNIDS[c], NAMES[c]] for c in range(1000)}
    (folder / "imagenet_class_index.json").write_text(json.dumps(index))
    (folder / "real.json").write_text(real_json())
    return folder
