"""The options of the command line."""

from __future__ import annotations

import argparse
import contextlib
import platform
from collections.abc import Callable, Mapping

import torch

from spcl_lib.pooling import KINDS
from spcl_lib.runs.profiles import METHODS_IN_SHORT, PROFILES
from spcl_lib.runs.settings import describe_settings
from spcl_lib.system import VERSION
from spcl_lib.system.errors import UserError

Options = argparse.Namespace
Command = Callable[[Options], int]  # returns the exit status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Raises a UserError: a mistake of the user gives one line and exit status 2."""
        raise UserError(f"{message}. See: {self.prog} --help")


class _WithSettings(argparse.HelpFormatter):
    """Adds the settings of `--set` to the help, only when it is shown."""

    def format_help(self) -> str:
        lines = ["", "settings (--set KEY=VALUE), with their defaults; profiles have their own:"]
        return super().format_help() + "\n".join([*lines, *describe_settings(), ""])


def make_parser(commands: Mapping[str, Command], description: str) -> argparse.ArgumentParser:
    """The parser of the command line; `command` of its result is the function to call.

    Args:
        commands: what does the work, by the name of the command.
        description: of the program.
    """
    parser = _Parser(prog="spcl", description=description, allow_abbrev=False)
    version = f"spcl {VERSION}, torch {torch.__version__}, python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=version)
    names = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        made = names.add_parser(name, help=text, allow_abbrev=False)
        made.set_defaults(command=commands[name])
        return made

    one = add("run", "train and evaluate one method")
    one.formatter_class = _WithSettings
    _add_data_options(one, dataset=None)
    one.add_argument(
        "--method",
        help=f"{', '.join(METHODS_IN_SHORT)}, ...; `--method list` names all of them "
        "(default: ren_scl with profile frozen, else en_scl)",
    )
    one.add_argument("--seed", type=int, help="default: 0")
    one.add_argument("--force", action="store_true", help="run again even if it is finished")
    one.add_argument(
        "--config", metavar="FILE", nargs="+",
        help="config.json of a run, which has all settings; several are run one after the other",
    )  # fmt: skip
    one.add_argument("--notebook", metavar="FILE", help="show the run in 01_train, kept as FILE")
    one.add_argument(
        "--tensorboard", metavar="DIR", help="write loss and mAP of every epoch for TensorBoard"
    )

    every = add("reproduce", "all methods and seeds, then all notebooks and the page")
    _add_data_options(every, dataset=None)
    every.add_argument(
        "--all", action="store_true", help="every experiment of every data set that is there"
    )
    every.add_argument(
        "--league", action="store_true",
        help="every loss of every paper, with the same search for each: see 06_benchmark",
    )  # fmt: skip
    _add_schedule_options(every)

    ahead = add("predict", "scores and labels of images, by a finished run")
    _add_predictor_options(ahead)
    ahead.add_argument("--images", required=True, metavar="PATH", help="a folder, or an image")
    ahead.add_argument(
        "--out", metavar="FILE", help="the file (default: predictions.csv, or another ending)"
    )
    ahead.add_argument(
        "--format", choices=("csv", "json", "parquet"), help="default: as --out ends, else csv"
    )
    ahead.add_argument(
        "--force", action="store_true", help="replace --out even if it holds no predictions"
    )
    ahead.add_argument(
        "--heatmaps", metavar="DIR", help="write a picture of every image's heatmaps"
    )

    judge = add(
        "evaluate",
        "mAP, AP and F1 of a finished run on your labelled images; choose thresholds",
    )  # fmt: skip
    _add_predictor_options(judge)
    judge.add_argument(
        "--images", metavar="DIR",
        help="folder of the images; none of them may have been trained on (default: the images "
        "that the run held out and was reported on, where its data were)",
    )  # fmt: skip
    judge.add_argument(
        "--labels", metavar="FILE",
        help="CSV file of path,labels: all labels of every image, with | between them (or of "
        "path,label: only one of its labels)",
    )  # fmt: skip
    judge.add_argument("--out", metavar="DIR", help="write evaluation.json into this folder")
    judge.add_argument(
        "--save-thresholds", metavar="FILE",
        help="choose thresholds on these images, for --thresholds FILE of predict",
    )  # fmt: skip
    judge.add_argument(
        "--choose", choices=("one", "per-class"), default="one",
        help="what --save-thresholds chooses (default: one number for all classes, with the "
        "highest OF1)",
    )  # fmt: skip

    doubt = add("audit", "training images whose labels look missing or wrong, by a run's heatmaps")
    doubt.add_argument(
        "--run", required=True, metavar="DIR",
        help="the run's folder, or a folder with only this run below it",
    )  # fmt: skip
    doubt.add_argument("--data-root", help="the run's data (default: where they were)")
    doubt.add_argument(
        "--out", metavar="DIR", default="audit",
        help="folder for audit.html and audit.csv (default: audit)",
    )  # fmt: skip
    doubt.add_argument(
        "--predict", action="store_true",
        help="let the network predict the heatmaps now; by default they are the run's running "
        "averages, if it has some. Slower, as good on photographs, better on scenes",
    )  # fmt: skip
    doubt.add_argument(
        "--most", type=int, default=1000, metavar="N",
        help="most rows of each kind in audit.csv, the surest first (default: 1000)",
    )  # fmt: skip

    explored = add("explore", "a page to drag crops over training images and see their heatmaps")
    explored.add_argument(
        "--run", required=True, nargs="+", metavar="DIR",
        help="as in audit; several runs must have followed the same images. A run with "
        "--set snapshots=64 shows 64 images after every epoch, others after the last one",
    )  # fmt: skip
    explored.add_argument("--data-root", help="the run's data (default: where they were)")
    explored.add_argument(
        "--out", metavar="FILE", default="explorer.html", help="default: explorer.html"
    )

    against = add("compare", "a table of finished runs on the same images, with intervals")
    against.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, or folders of such folders; the "
        "first run is the one that the others are compared with",
    )  # fmt: skip
    form = against.add_mutually_exclusive_group()
    form.add_argument("--markdown", dest="form", action="store_const", const="markdown")
    form.add_argument("--latex", dest="form", action="store_const", const="latex")

    written = add("export", "the network of a finished run, for programs without spcl")
    written.add_argument("--run", required=True, metavar="DIR", help="as in predict")
    written.add_argument("--format", required=True, help="onnx, torchscript or pt2")
    written.add_argument("--out", required=True, metavar="FILE", help="the file")
    written.add_argument("--force", action="store_true", help="replace --out if it is there")

    fetch = add("download", "fetch Pascal VOC (its archive's SHA-256 is checked)")
    fetch.add_argument("--dataset", required=True, help="voc2007 or voc2012")
    fetch.add_argument("--data-root", help="folder that it is put in (else SPCL_DATA, else data/)")
    return parser


def _add_data_options(parser: argparse.ArgumentParser, dataset: str | None = "scenes") -> None:
    parser.add_argument("--dataset", default=dataset, help=", ".join(PROFILES))
    parser.add_argument(
        "--profile", help="frozen, cpu, smoke, ... (default: frozen for your own images, else cpu)"
    )
    parser.add_argument("--data-root", help="folder of the real data (else SPCL_DATA, else data/)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="override a setting; `run --help` lists all of them",
    )  # fmt: skip


def _add_predictor_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, metavar="DIR",
        help="the run's folder, or a folder with only this run below it",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=_size, metavar="N",
        help="side in pixels to which images are resized (default: that of the run's evaluation). "
        "Larger is slower, and often better: on VOC 2007, weights of profile cpu gave mAP 70.9 at "
        "160, 74.3 at 192, 76.4 at 224 and 76.6 at 288; of profile frozen 72.7 at 192, 75.8 at "
        "224 and 76.6 at 256",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=_threshold, metavar="T",
        help="score that makes a label, such as 0.5 (default: auto, the score that the expected "
        "number of labels per image reached on training images)",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds", metavar="FILE", help="thresholds that evaluate --save-thresholds chose"
    )
    parser.add_argument(
        "--top", type=int, metavar="K",
        help="the K highest scores are labels; with --threshold, those of them that reach it",
    )  # fmt: skip
    parser.add_argument(
        "--pooling", metavar="KIND",
        help=f"another pooling of the score maps than the run's ({', '.join(KINDS)}), for instance "
        "lse or lse:3 (with its strength); predict then needs --threshold, --thresholds or --top",
    )  # fmt: skip


def _add_schedule_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="some of the methods")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; with smoke: 0")
    parser.add_argument("--jobs", type=int, help="runs side by side (default: one per core)")
    parser.add_argument("--force", action="store_true", help="run again what is finished")
    parser.add_argument("--list", action="store_true", help="show what would run, and stop")


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be auto or in 0..1, not '{text}'")


def _size(text: str) -> int:
    if text.isdecimal() and 16 <= int(text) <= 4096:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number in 16..4096, not '{text}'")
