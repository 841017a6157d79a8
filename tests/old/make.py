"""Makes results with the code of an earlier commit, for `tests/test_old_results.py`.

Use, in the project's folder, with `git archive COMMIT | tar x -C CHECKOUT` before it:

    PYTHONPATH=CHECKOUT python tests/old/make.py tests/old/COMMIT.tar.xz METHOD

The archive has a finished run of EN + SCL (seed 0), and a checkpoint of METHOD (seed 1).
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import tarfile
import tempfile
from pathlib import Path

from torch import nn

SETTINGS = {
    "image_side": 32, "crop_side": 32, "eval_side": 32, "train_images": 6, "eval_images": 6,
    "report": "val", "weights": "none", "epochs": 3, "batch": 2, "start": 1, "ramp": 1.0,
    "eval_every": 1, "bank_size": 2,
}  # fmt: skip


def tiny_backbone(*_):
    """So small that its weights need no place in the repository."""
    pool = nn.AvgPool2d(8, ceil_mode=True)  # takes images of a single pixel, as real networks do
    return nn.Sequential(pool, nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()), 4


def first(*names):
    """The first of these modules that the commit has."""
    folder = Path(importlib.util.find_spec("spcl_lib").origin).parent
    there = (n for n in names if folder.joinpath(*n.split(".")[1:]).with_suffix(".py").is_file())
    return importlib.import_module(next(there))


def main(archive: str, method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SPCL_RESULTS": f"{folder}/results", "SPCL_CACHE": f"{folder}/cache",
                       "SPCL_CHECKPOINT_SECONDS": "0"}  # fmt: skip
        run = first("spcl_lib.runs.run", "spcl_lib.experiment")
        first("spcl_lib.runs.network", "spcl_lib.experiment").build_backbone = tiny_backbone
        settings = first("spcl_lib.runs.settings", "spcl_lib.config")
        known = SETTINGS
        if hasattr(settings.make_config("scenes", "an"), "snapshots"):
            known = SETTINGS | {"snapshots": 1}
        run.run(settings.make_config("scenes", "en_scl", 0, "smoke", known))
        evaluations = iter([run.evaluate])

        def stop_in_epoch_2(*arguments):
            return next(evaluations)(*arguments)

        run.evaluate = stop_in_epoch_2
        with contextlib.suppress(StopIteration):
            run.run(settings.make_config("scenes", method, 1, "smoke", known))
        with tarfile.open(archive, "w:xz") as tar:
            for file in sorted(Path(folder, "results").rglob("*")):
                if file.is_file() and not file.name.startswith("."):
                    tar.add(file, file.relative_to(f"{folder}/results"))


if __name__ == "__main__":
    main(*sys.argv[1:])
