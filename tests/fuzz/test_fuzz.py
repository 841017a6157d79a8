"""The fuzzer: damaged files, odd photographs, options and calls give a clear message or the truth.

It takes less than a minute, always with the same inputs. `SPCL_FUZZ_MINUTES=30` goes on for that
time with random inputs. `SPCL_FUZZ_SEED=N` tries the one input that a fault names.
"""

import contextlib
import csv
import io
import math
import os
import random
import re
import shutil
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from damages import DAMAGES, ODD_VALUES, ODD_WORDS
from PIL import Image
from small_folder import QUICK, make_folder, set_options, write_csv
from torchvision.datasets.voc import DATASET_YEAR_DICT

from spcl_lib import HeatmapBank, Predictor, UserError, Views, evaluate, spatial_consistency
from spcl_lib.__main__ import main
from spcl_lib.config import RunConfig
from spcl_lib.data.folders import list_folder_splits, list_table
from spcl_lib.data.images import squares

MINUTES = float(os.environ.get("SPCL_FUZZ_MINUTES") or 0)
SEED = os.environ.get("SPCL_FUZZ_SEED")
CLEAR = (ValueError, TypeError, OverflowError, UserError)  # refusals of the library
RUN = ["run", "--dataset", "folder", "--profile", "smoke", "--method", "en_scl", "--data-root",
       "photos", *set_options(QUICK)]  # fmt: skip


def call(work):
    """The value of a call, the error that it raised, and what it said."""
    said, value, error = io.StringIO(), None, None
    signal.alarm(60)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            value = work()
    except (Exception, SystemExit) as raised:
        error = raised
    signal.alarm(0)
    return value, error, said.getvalue()


def where(error):
    """The error, and the last lines of our code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "spcl_lib" in f.filename]
    return f"{type(error).__name__}: {str(error)[:300]!r} at {' < '.join(reversed(lines[-3:]))}"


@contextlib.contextmanager
def living_in(folder):
    """Results and caches of the block are in a folder; nothing is downloaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPCL_RESULTS", str(folder / "results"))
        patch.setenv("SPCL_CACHE", str(folder / "cache"))
        patch.delenv("SPCL_DATA", raising=False)
        for archive in DATASET_YEAR_DICT.values():
            patch.setitem(archive, "url", "http://localhost:9/none.tar")
        patch.chdir(folder)
        yield


def contents(folder):
    """The files of a user, not those that commands make."""
    files = {f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()}
    made = ("cache/", "results/", "out.", "audit/")
    return {name: f.read_bytes() for name, f in files.items() if not name.startswith(made)}


def lost_of(before, folder):
    return [name for name, content in before.items() if contents(folder).get(name) != content]


def described(*parts):
    """Checks that image sets are valid ones."""
    for data in parts:
        count, classes = len(data), len(data.classes)
        assert data.labels.shape == (count, classes) and data.labels.dtype == torch.bool
        assert len(set(data.ids)) == count and len(set(data.classes)) == classes >= 2


def make_data(folder):
    """Every kind of data set, small, in one data root."""
    photos = make_folder(folder / "photos")
    names = [f"{c}/{c} {i}.png" for c, count in (("cat", 10), ("dog", 5)) for i in range(count)]
    write_csv(photos / "single.csv", "path,label", *(f"{n},{n[:3]}" for n in names[:12]))
    write_csv(photos / "full.csv", "path,labels", f"{names[12]},cat|dog", f"{names[13]},")
    rows = [f"{n},{n[:3]}|dog" for n in names]
    write_csv(photos / "train.csv", "path,labels", *rows[:9])
    write_csv(photos / "val.csv", "path,labels", *rows[9:])


def predictions(place):
    return main(COMMANDS["predict"]) == 0 and Path("out.csv").read_text()


def trained_again(place):
    """What predicts after another training from the same cache."""
    shutil.rmtree(place / "results")
    return main(RUN) == 0 and predictions(place)


# name -> world, files, form of damage, and reader; what it reads of a run must stay the same
FILES = {
    "labels": ("data", "photos/[sf]*.csv", "text", lambda p: described(
        *list_folder_splits(p / "photos", "single.csv", "full.csv"))),
    "table": ("data", "photos/[tv]*.csv", "text", lambda p: described(*list_table(p / "photos"))),
    "cache": ("run", "cache/**/*.pt", "bytes", trained_again),
    "weights": ("run", "results/*/*/weights*", "bytes", predictions),
    "metrics": ("run", "results/*/*/metrics.json", "json", predictions),
}  # fmt: skip


def attack_file(rng, place, name, expected):
    """The file must be refused by its name, or give the same; a user's text may be another one."""
    world, pattern, form, read = FILES[name]
    file = rng.choice(sorted(place.glob(pattern)))
    content = DAMAGES[form](rng, file.read_bytes())
    file.write_bytes(content)
    before = contents(place)
    value, error, said = call(lambda: read(place))
    if isinstance(error, UserError):
        known = {Path(n).stem for n in before}  # perhaps another file contradicts this one
        texts = re.findall(r"'([^'\n]+)'", str(error))
        quoted = [text for text in texts if text.encode("utf-8", "replace") in content]
        if "\n" in str(error) or not (any(n in str(error) for n in known) or quoted):
            return f"{file.name}: unclear: {str(error)[:300]!r}"
    elif error is not None:
        return f"{file.name}: {where(error)}"
    elif value is False:
        if "spcl: error: " not in said or "Traceback" in said:
            return f"{file.name}: unclear: {said[-300:]!r}"
    elif world == "run" and value != expected:
        return f"{file.name}: another result without a word"
    lost = lost_of(before, place)
    return f"{file.name}: lost {lost}" if lost else ""


ENDINGS = (".jpg", ".JPG", ".jfif", ".png", ".ppm", ".tif", ".webp", ".gif", ".heic", ".txt", "")


def write_photograph(rng, file):
    """A picture of any kind under any name; a file that cannot hold it is no picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows, columns = rng.choice(((18, 24), (1, 7), (30, 3), (16, 16)))
    noise = np.random.default_rng(rng.randrange(9)).integers(0, 256, (rows, columns, 3), np.uint8)
    exif, mode = Image.Exif(), rng.choice(("RGB", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F"))
    exif[0x0112] = rng.randrange(10)
    image = Image.fromarray(noise).convert("L" if mode in ("I;16", "F") else mode)
    file.write_bytes(rng.choice((b"", b"404: not found", rng.randbytes(50))))
    with contextlib.suppress(OSError, ValueError, KeyError):
        image.convert(mode).save(file, exif=exif)
        if rng.randrange(6) == 0:
            file.write_bytes(file.read_bytes()[: rng.randrange(200)])


def attack_photographs(rng, place):
    """Each file has a row, or is counted; a row is what the file alone gives."""
    count = rng.randint(1, 8)
    for i in range(count):
        name = rng.choice((f"cat/{i}", f"Cat/{i}", f"dog/{i}", f"{i}", f"dog/deep/ö {i}"))
        write_photograph(rng, place / "new" / f"{name}{rng.choice(ENDINGS)}")
    (place / "photos").rename(place / "old")
    (place / "new").rename(place / "photos")
    status, error, said = call(lambda: main(COMMANDS["predict"]))
    if error is not None or "Traceback" in said:
        return where(error) if error else said[-500:]
    rows = list(csv.reader(io.StringIO(Path("out.csv").read_text())))[1:] if status == 0 else []
    predictor = Predictor.load(next(place.glob("results/*/*/metrics.json")).parent)
    for path, *scores in rows:
        (alone,) = predictor(str(place / "photos" / path)).tolist()
        if any(abs(float(a) - b) > 0.02 for a, b in zip(scores, alone, strict=False)):
            return f"'{path}' alone gives {alone}, not {scores}"
    told = re.findall(r"(\d+) files are left out|left out (\d+):", said)
    if status == 0 and len(rows) + sum(int(a or b) for a, b in told) != count:
        return f"{count} files, {len(rows)} rows: {said[-400:]!r}"
    _, error, _ = call(lambda: described(*list_folder_splits(place / "photos")))
    return "" if error is None or isinstance(error, UserError) else where(error)


COMMANDS = {
    "run": RUN,
    "predict": ["predict", "--run", "results", "--images", "photos", "--out", "out.csv"],
    "evaluate": ("evaluate", "--run", "results", "--data-root", "photos"),
    "audit": ("audit", "--run", "results", "--data-root", "photos", "--out", "audit"),
    "explore": ("explore", "--run", "results", "--data-root", "photos"),
    "compare": ("compare", "results"),
    "export": ("export", "--run", "results", "--format", "onnx", "--out", "out.onnx"),
    "reproduce": ("reproduce", "--list", "--dataset", "folder", "--data-root", "photos"),
    "download": ("download", "--dataset", "voc2007", "--data-root", "empty"),
}
PLACES = ("photos", "photos/cat/cat 0.png", "mine.txt", "loop", "empty", "results", "2",
          "no/x", "1.5", "1e9", "scenes", "voc2007", "en", "smoke")  # fmt: skip
SLOW = {"--help", "--all", "--league"}


def attack_command(rng, place):
    """A command with one or two odd options; files of the user stay as they are."""
    (place / "mine.txt").write_text("not to be lost\n")
    (place / "empty").mkdir()
    (place / "loop").symlink_to(place / "loop")
    words = list(COMMANDS[rng.choice(sorted(COMMANDS))])
    _, _, said = call(lambda: main([words[0], "--help"]))
    options = sorted(set(re.findall(r"--[a-z][a-z-]+", said)) - SLOW)
    for option in rng.choices(options, k=rng.randint(1, 2)):
        value = rng.choice((*PLACES, *ODD_WORDS))
        if option == "--set":  # settings that are valid but take for ever are left out
            keys = set(RunConfig().flat()) - {"epochs", "image_side", "crop_side", "eval_side"}
            value = rng.choice((value, f"{rng.choice(sorted(keys))}={rng.choice(ODD_WORDS)}"))
        words += [option, *([value] if rng.randrange(5) else [])]
    before = contents(place)
    status, error, said = call(lambda: main(words))
    if isinstance(error, SystemExit):
        status, error = error.code, None
    name = f"{words}: "[:600]
    if error is not None or "Traceback" in said:
        return name + (where(error) if error else said[-500:])
    last = said.strip().replace("\r", "\n").rpartition("\n")[2]
    if status not in (0, 1) and not (status == 2 and last.startswith("spcl: error: ")):
        return f"{name}status {status}: {last}"
    lost = lost_of(before, place)
    return f"{name}lost {lost}" if lost and "--force" not in words else ""


KINDS = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)
SCORES, LABELS, MAPS = torch.rand(4, 3), torch.eye(4, 3).bool(), torch.rand(4, 3, 5, 5)
WHOLE, BANK = Views.whole(4), HeatmapBank(4, 3, 4)
CALLS = {
    "average_precisions": (evaluate.average_precisions, (SCORES, LABELS)),
    "evaluate_scores": (evaluate.evaluate_scores, (SCORES, LABELS, ("a", "b", "c"))),
    "squares": (lambda images, side: list(squares(images, side)), (MAPS[:, :3], 8)),
    "spatial_consistency": (spatial_consistency, (MAPS, MAPS, MAPS[:, :1] > 0.1)),
    "Views": (Views, (torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.zeros(1).bool())),
    "Views.crop": (WHOLE.crop, (MAPS, 3)),
    "bank.read": (BANK.read, (torch.arange(4), WHOLE, 3)),
    "bank.update": (BANK.update, (torch.arange(4), WHOLE, MAPS)),
}  # fmt: skip


def attack_call(rng, place):
    """A call with one odd argument; a refusal must be an error of the library's own."""
    name = rng.choice(sorted(CALLS))
    function, arguments = CALLS[name]
    n = rng.choice([n for n, right in enumerate(arguments) if not isinstance(right, Views)])
    odd = rng.choice([value for value in ODD_VALUES if value != 2**31])  # it fills the memory
    if isinstance(arguments[n], torch.Tensor) and rng.randrange(4):
        odd = (arguments[n] * rng.choice((1, -1, 0, 1e30, math.nan))).to(rng.choice(KINDS))
        odd = rng.choice((odd, odd[:0], odd[:1], odd[0], odd[None], odd.flatten()))
    _, error, _ = call(lambda: function(*arguments[:n], odd, *arguments[n + 1 :]))
    if error is None or isinstance(error, CLEAR) and 0 < len(str(error)) < 1000:
        return ""
    return f"{name}, argument {n}, {str(odd)[:100]} {getattr(odd, 'dtype', '')}: {where(error)}"


@contextlib.contextmanager
def copy_of(world):
    """The block lives in a copy of a folder, which ends with it."""
    place = world.with_name("place")
    shutil.copytree(world, place)
    with living_in(place):
        yield place
    shutil.rmtree(place)


OTHERS = {"photographs": attack_photographs, "commands": attack_command, "calls": attack_call}


def test_no_input_gives_a_traceback_or_another_result_without_a_word(tmp_path, capsys):
    tried, faults, sound = Counter(), {}, {}
    signal.signal(signal.SIGALRM, lambda *given: pytest.fail("it hangs"))
    make_data(tmp_path / "data")
    make_folder(tmp_path / "run" / "photos")
    with living_in(tmp_path / "run"):
        assert main(RUN) == 0
    for name, (world, _, _, read) in FILES.items():
        with copy_of(tmp_path / world) as place:
            sound[name] = read(place)
            assert sound[name] or world == "data"
    ends = time.monotonic() + (0 if SEED else 60 * MINUTES or 30)
    seed = int(SEED) if SEED else random.SystemRandom().randrange(10**9) if MINUTES else 0
    while time.monotonic() < ends or not tried:
        rng, name = random.Random(seed), [*FILES, *OTHERS][seed % len(FILES | OTHERS)]
        with copy_of(tmp_path / (FILES[name][0] if name in FILES else "run")) as place:
            known = (name, sound[name]) if name in FILES else ()
            fault = OTHERS.get(name, attack_file)(rng, place, *known)
        tried[name] += 1
        if fault:
            faults.setdefault(fault.rpartition(" at ")[2][-80:], f"{name}, seed {seed}: {fault}")
        seed += 1
    with capsys.disabled():
        print(f"\n{tried.total()} inputs tried: {dict(tried)}" if MINUTES else "", end="")
    assert not faults, "\n".join(faults.values())
