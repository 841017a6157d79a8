"""Command line: `python -m spcl_lib run | reproduce | predict | ...`; see --help."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spcl_lib.config import RunConfig
from spcl_lib.losses import TERMS
from spcl_lib.methods import METHODS, title_of
from spcl_lib.pooling import KINDS, parse_pooling
from spcl_lib.runs.profiles import (
    METHODS_IN_SHORT,
    PROFILES,
    usual_dataset,
    usual_method,
    usual_profile,
)
from spcl_lib.runs.settings import describe_settings, make_config, methods_of, parse_overrides
from spcl_lib.system import VERSION, paths, ranks
from spcl_lib.system.errors import UserError, one_line, printable
from spcl_lib.system.files import explain_refusals
from spcl_lib.system.machine import choose_device, count_cores
from spcl_lib.system.memory import keep_freed_memory
from spcl_lib.system.processes import PARENT, Terminated, end_with_parent, raise_when_stopped

if TYPE_CHECKING:
    from spcl_lib.runs.predictor import Predictor
    from spcl_lib.runs.store import Run

Options = argparse.Namespace
Command = Callable[[Options], int]  # returns the exit status


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 success, 1 a failed run, 2 a user's mistake, 128 + N after signal N.
    """
    goes_on = False
    keep_freed_memory()
    try:
        options = make_parser().parse_args(arguments)
        if options.command is not _run and ranks.count_started() > 1:
            raise UserError("torchrun is only for `run`; give this command to python -m spcl_lib")
        goes_on = options.command in (_run, _reproduce)
        with explain_refusals():
            return options.command(options)
    except UserError as error:
        print(f"spcl: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        how = "; the same command goes on from the last checkpoint, if there is one"
        print(f"spcl: stopped{how if goes_on else ''}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


# --- the parser -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Raises a UserError: a mistake of the user gives one line and exit status 2."""
        raise UserError(f"{message}. See: {self.prog} --help")


class _WithSettings(argparse.HelpFormatter):
    """Adds the settings of `--set` to the help, only when it is shown."""

    def format_help(self) -> str:
        lines = ["", "settings (--set KEY=VALUE), with their defaults; profiles have their own:"]
        return super().format_help() + "\n".join([*lines, *describe_settings(), ""])


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` of its result is the function to call."""
    parser = _Parser(prog="spcl", description=__doc__, allow_abbrev=False)
    version = f"spcl {VERSION}, torch {torch.__version__}, python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=version)
    names = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (text, add_options, command) in _COMMANDS.items():
        made = names.add_parser(name, help=text, allow_abbrev=False)
        made.set_defaults(command=command)
        add_options(made)
    return parser


# --- options of several commands ------------------------------------------------------------------


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
        "--pooling", metavar="KIND",
        help=f"another pooling of the score maps than the run's ({', '.join(KINDS)}), for instance "
        "lse or lse:3 (with its strength); predict then needs --threshold or --top",
    )  # fmt: skip


def _add_label_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top", type=int, metavar="K",
        help="the K highest scores are labels; with --threshold, those of them that reach it",
    )  # fmt: skip
    parser.add_argument(
        "--fast", action="store_true",
        help="compute in bfloat16 where the machine has it: probabilities differ by up to 0.06",
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


def _overrides(options: Options) -> dict[str, object]:
    """The settings of `--set`; a weights file as an absolute path, valid in other folders, too."""
    found = parse_overrides(options.set)
    if found.get("weights", "auto") not in ("auto", "none", "torchvision"):
        found["weights"] = os.path.abspath(os.path.expanduser(str(found["weights"])))
    return found


def _seeds(options: Options) -> list[int]:
    """The seeds without repeats; a smoke test needs only one seed."""
    usual = [0] if options.profile == "smoke" else [0, 1, 2]
    return list(dict.fromkeys(options.seeds or usual))


def _jobs(options: Options) -> int:
    """The number of runs side by side; a GPU is best used by one."""
    usual = 1 if choose_device().type == "cuda" else count_cores()
    jobs = usual if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {jobs}")
    return jobs


# --- commands; each has its own imports, so that the others start fast ---------------------------


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = _WithSettings
    _add_data_options(parser, dataset=None)
    parser.add_argument(
        "--method",
        help=f"{', '.join(METHODS_IN_SHORT)}, ...; `--method list` names all of them "
        "(default: ren_scl with profile frozen, else en_scl)",
    )
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--force", action="store_true", help="run again even if it is finished")
    parser.add_argument(
        "--config", metavar="FILE", nargs="+",
        help="config.json of a run, which has all settings; several are run one after the other",
    )  # fmt: skip
    parser.add_argument("--notebook", metavar="FILE", help="show the run in 01_train, kept as FILE")


def _run(options: Options) -> int:
    from spcl_lib.runs.notebooks import check_output, execute
    from spcl_lib.runs.run import print_epoch, run
    from spcl_lib.runs.splits import identify_data
    from spcl_lib.runs.store import Run, write_summary

    if ranks.count_started() > 1:
        os.environ[PARENT] = str(os.getppid())  # torchrun, which may be killed
    end_with_parent()
    if options.method == "list":
        for name, spec in METHODS.items():
            print(f"{name:14} {title_of(name)} ({TERMS[spec.term].source})")
        return 0
    if options.notebook:
        check_output(Path(options.notebook))  # before the training
    waiting = _runs_of(options)
    with ranks.join():
        is_first = ranks.rank() == 0
        for config, root in waiting:
            config = identify_data(config, root)
            metrics = run(config, root, options.force, partial(print_epoch, config))
            _say_what_came_out(config, metrics)
    if is_first and not options.config:  # the scheduler writes it once, at its end
        write_summary()
    if options.notebook and is_first:
        file = str(Run.of(config, root).write_config())
        execute("01_train", {"config_file": file}, Path(options.notebook))
    return 0


def _runs_of(options: Options) -> list[tuple[RunConfig, str | Path | None]]:
    """The runs that the options of `run` name, each with its data root."""
    from spcl_lib.runs.store import Run

    if options.config:
        for name in ("dataset", "profile", "method", "seed", "set"):
            if getattr(options, name) not in (None, []):
                raise UserError(f"--config FILE has all settings; --{name} does not go with it")
        found = [Run.find(file, options.data_root) for file in options.config]
        return [(own.config, own.data_root) for own in found]
    dataset = options.dataset or usual_dataset(options.data_root)
    profile = options.profile or usual_profile(dataset)
    method = options.method or usual_method(profile)
    config = make_config(dataset, method, options.seed or 0, profile, _overrides(options))
    return [(config, options.data_root)]


def _say_what_came_out(config: RunConfig, metrics: Mapping[str, Any]) -> None:
    from spcl_lib.runs.store import run_folder

    single = metrics.get("report_labels") == "single"
    more = " against single labels (against all labels it would be higher)" if single else ""
    smoke = "; a smoke test: the number means nothing" if config.profile == "smoke" else ""
    if "real_accuracy" in metrics:
        more += f", ReaL accuracy {metrics['real_accuracy']:.2f} %"
    print(
        f"{config.dataset} {config.method} seed {config.seed}: mAP {metrics['mAP']:.2f} %{more} "
        f"(trained {metrics['train_seconds']:.0f} s{smoke}); {run_folder(config) / 'metrics.json'}",
        *metrics.get("warnings", ()), sep="\n", flush=True,
    )  # fmt: skip


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    _add_data_options(parser, dataset=None)
    parser.add_argument(
        "--all", action="store_true", help="every experiment of every data set that is there"
    )
    parser.add_argument(
        "--league", action="store_true",
        help="every loss of every paper, with the same search for each: see 06_benchmark",
    )  # fmt: skip
    _add_schedule_options(parser)


def _reproduce(options: Options) -> int:
    from spcl_lib.reproduce.plan import all_experiments, experiment_of, reproduce, show_plan

    if options.league:
        return _league(options)
    if options.all:
        if options.only or options.set or options.profile:
            raise UserError("--all runs everything; --only, --set and --profile do not go with it")
        experiments = all_experiments(options.dataset, _seeds(options), options.data_root)
    else:
        dataset = options.dataset or "scenes"
        profile = options.profile or usual_profile(dataset)
        experiments = [
            experiment_of(
                dataset, profile, options.only or (), _seeds(options), _overrides(options),
                options.data_root,
            )
        ]  # fmt: skip
        if not options.only and "full" not in methods_of(dataset):
            print(f"without full: the training images of {dataset} have one known label each")
    if options.list:
        show_plan(experiments, _jobs(options))
        return 0
    return reproduce(experiments, _jobs(options), options.force)


def _league(options: Options) -> int:
    from spcl_lib.reproduce.plan import reproduce_league, show_league_plan
    from spcl_lib.runs.league import LEAGUES, SEEDS, League

    if options.all or options.set or options.force or options.profile:
        raise UserError("--league has settings of its own; --all, --set, --force and --profile do "
                        "not go with it")  # fmt: skip
    for dataset in [options.dataset] if options.dataset else LEAGUES:
        league = League(dataset, options.only or (), options.seeds or SEEDS, options.data_root)
        if options.list:
            show_league_plan(league, _jobs(options))
        elif not reproduce_league(league, _jobs(options)):
            return 1
    return 0


def _predictor(options: Options) -> tuple[Predictor, Run]:
    """The predictor of the options of `_add_predictor_options`, and its run, which it prints.

    It has no rule if the run's own threshold does not fit another pooling.
    """
    from spcl_lib.runs.predictor import LabelRule, Predictor
    from spcl_lib.runs.store import Run

    run = Run.find(options.run)
    amp = "auto" if getattr(options, "fast", False) else "off"
    predictor = Predictor.load(run.folder, options.size, amp)
    config, top = predictor.config, getattr(options, "top", None)
    what = f"{config.dataset}, {config.method}, {len(predictor.classes)} classes"
    print(f"run: {run.folder} ({what}), images of {predictor.size} px")
    if options.pooling:
        predictor.model.pooling, predictor.rule = parse_pooling(options.pooling), None
    if options.threshold is not None or top is not None:
        predictor.rule = LabelRule(options.threshold, top)
    elif predictor.rule and predictor.size != config.eval_side:
        print(
            f"spcl: the run's threshold was chosen at {config.eval_side} px; at {predictor.size} "
            "px it gives another number of labels. Better: the one that `evaluate` names",
            file=sys.stderr,
        )
    return predictor, run


def _add_predict(parser: argparse.ArgumentParser) -> None:
    _add_predictor_options(parser)
    _add_label_options(parser)
    parser.add_argument(
        "--images", required=True, nargs="+", metavar="PATH", help="images, and folders of images"
    )
    parser.add_argument(
        "--out", metavar="FILE", default="predictions.csv",
        help="the file: JSON if its name ends in .json, else CSV (default: predictions.csv)",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace --out even if it holds no predictions"
    )
    parser.add_argument(
        "--heatmaps", metavar="DIR", help="write a picture of every image's heatmaps"
    )


def _predict(options: Options) -> int:
    from spcl_lib.runs.predict import predict_files
    from spcl_lib.viewer.overlays import OverlayFolder

    predictor, _ = _predictor(options)
    folder = options.heatmaps and OverlayFolder(paths.expand_home(options.heatmaps))
    images = [paths.expand_home(place) for place in options.images]
    out = paths.expand_home(options.out)
    done, skipped = predict_files(predictor, images, out, folder or None, options.force)
    _name_skipped(skipped)
    print(f"{done} images, labels are {predictor.rule}: {out}")
    return 0


def _name_skipped(skipped: Mapping[str, str]) -> None:
    if skipped:
        named = [printable(f"{name} {why}") for name, why in list(skipped.items())[:10]]
        dots = ", ..." if len(skipped) > 10 else ""
        print(f"spcl: left out {len(skipped)}: {', '.join(named)}{dots}", file=sys.stderr)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_predictor_options(parser)
    _add_label_options(parser)
    parser.add_argument("--data-root", help="the run's data (default: where they were)")
    parser.add_argument(
        "--images", metavar="DIR",
        help="folder of the images; none of them may have been trained on (default: the images "
        "that the run held out and was reported on, where its data were)",
    )  # fmt: skip
    parser.add_argument(
        "--labels", metavar="FILE",
        help="CSV file of path,labels: all labels of every image, with | between them (or of "
        "path,label: only one of its labels)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write evaluation.json into this folder")


def _evaluate(options: Options) -> int:
    from spcl_lib.runs.evaluation import evaluate_files, evaluate_own, expected_threshold
    from spcl_lib.runs.predictor import LabelRule
    from spcl_lib.viewer.evaluation import evaluation_lines, write_evaluation

    if (options.images is None) != (options.labels is None):
        raise UserError("give --images and --labels, or neither for the run's own held-out images")
    predictor, run = _predictor(options)
    if options.images is None:
        found = evaluate_own(predictor, options.data_root or run.data_root)
    else:
        images, labels = paths.expand_home(options.images), paths.expand_home(options.labels)
        found = evaluate_files(predictor, images, labels)
    _name_skipped(found.skipped)
    expected = predictor.config.settings.expected_positives
    if predictor.rule is None:
        print(f"the threshold is chosen here: so that an image has {expected:g} labels")
        predictor.rule = LabelRule(expected_threshold(found.scores, expected))
    print("\n".join(evaluation_lines(found, predictor.rule, expected)))
    print(f"\nchosen on all these images: --threshold {found.threshold(expected):.4f}")
    if options.out:
        folder = paths.expand_home(options.out)
        print(write_evaluation(found, predictor, expected, folder))
    return 0


def _add_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, metavar="DIR",
        help="the run's folder, or a folder with only this run below it",
    )  # fmt: skip
    parser.add_argument("--data-root", help="the run's data (default: where they were)")
    parser.add_argument(
        "--out", metavar="DIR", default="audit",
        help="folder for audit.html and audit.csv (default: audit)",
    )  # fmt: skip
    parser.add_argument(
        "--predict", action="store_true",
        help="let the network predict the heatmaps now; by default they are the run's running "
        "averages, if it has some. Slower, as good on photographs, better on scenes",
    )  # fmt: skip
    parser.add_argument(
        "--most", type=int, default=1000, metavar="N",
        help="most rows of each kind in audit.csv, the surest first (default: 1000)",
    )  # fmt: skip


def _audit(options: Options) -> int:
    from spcl_lib.analysis import audit
    from spcl_lib.methods import visible_labels
    from spcl_lib.runs.predictor import one_sided
    from spcl_lib.runs.store import Run
    from spcl_lib.viewer.audit_page import SHOWN, write_audit, write_suggestions

    if options.most < 1:
        raise UserError(f"--most must be at least 1; got {options.most}")
    out = paths.expand_home(options.out)
    run = Run.find(options.run, options.data_root).load(objects=True)
    given = visible_labels(run.config.method, run.train.labels, run.observed) > 0
    read = audit.maps_of(run, options.predict)
    presence = audit.presence_of(read, len(run.train))
    likely = audit.out_of_fold(audit.mean_features(run), given)
    found = audit.suggest(read, presence, given, options.most, likely)
    what = f"{run.config.dataset}, {run.config.method}, {len(run.train):,} training images"
    precision = audit.precision_of_missing(found[0].first(SHOWN), run.train, given)
    facts = [f"run: {run.folder} ({what})", *([precision] if precision else [])]
    if run.metrics.get("threshold") is not None:
        facts += one_sided(presence >= run.metrics["threshold"], run.train.classes)
    print("\n".join(facts))
    write_suggestions(out / "audit.csv", found, run.train)
    write_audit(out / "audit.html", facts, found, read, run.train, given)
    print(out / "audit.html", out / "audit.csv", sep="\n")
    return 0


def _add_explore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", required=True, nargs="+", metavar="DIR",
        help="as in audit; several runs must have followed the same images. A run with "
        "--set snapshots=64 shows 64 images after every epoch, others after the last one",
    )  # fmt: skip
    parser.add_argument("--data-root", help="the run's data (default: where they were)")
    parser.add_argument(
        "--out", metavar="FILE", default="explorer.html", help="default: explorer.html"
    )


def _explore(options: Options) -> int:
    from spcl_lib.runs.snapshots import trace_of
    from spcl_lib.runs.store import Run
    from spcl_lib.viewer.explorer_page import write_explorer_page

    file = paths.expand_home(options.out)
    if file.suffix != ".html":
        raise UserError(f"--out must be the name of an .html file; got '{file}'")
    runs = [Run.find(run, options.data_root) for run in options.run]
    traces = [trace_of(run.load(objects=True)) for run in runs]
    write_explorer_page(file, *traces)
    print(file)
    return 0


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of runs, or folders of such folders; the "
        "first run is the one that the others are compared with",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", dest="form", action="store_const", const="markdown")
    form.add_argument("--latex", dest="form", action="store_const", const="latex")


def _compare(options: Options) -> int:
    try:
        from spcl_lib.analysis.compare import compare
    except ModuleNotFoundError as error:
        raise UserError(f"compare needs {error.name}: pip install 'spcl[notebooks]'") from error

    table = compare([paths.expand_home(run) for run in options.runs])
    if options.form == "latex":
        print(table.to_latex(index=False, escape=True).strip())
    elif options.form == "markdown":
        print(table.to_markdown(index=False, disable_numparse=True))
    else:
        print(table.to_string(index=False))
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_predictor_options(parser)
    parser.add_argument("--data-root", help="the run's data (default: where they were)")
    parser.add_argument("--format", required=True, choices=("onnx", "pt2"))
    parser.add_argument("--out", required=True, metavar="FILE", help="the file")
    parser.add_argument("--force", action="store_true", help="replace --out if it is there")


def _report_photographs(run: Run, data_root: str | None) -> list[Path]:
    """Some photographs that the run was reported on; none where its data are missing."""
    from spcl_lib.data.images import try_image
    from spcl_lib.runs.splits import list_report

    try:
        files = list_report(run.config, data_root or run.data_root).files or ()
    except UserError:
        return []
    return [file for file in files[:16] if not isinstance(try_image(file, 8), str)]


def _export(options: Options) -> int:
    from spcl_lib.runs.export import export

    predictor, run = _predictor(options)
    out, photographs = paths.expand_home(options.out), _report_photographs(run, options.data_root)
    same, whole = export(predictor, options.format, out, options.force, photographs)
    print(f"{out}: probabilities as `predict` gives them, to {same:.1g}")
    if photographs:
        print(f"for {len(photographs)} photographs to {whole:.1g}, because Pillow rounds some "
              "resized pixels otherwise")  # fmt: skip
    return 0


def _add_download(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, help="voc2007 or voc2012")
    parser.add_argument("--data-root", help="folder that it is put in (else SPCL_DATA, else data/)")


def _download(options: Options) -> int:
    from spcl_lib.data.voc import download

    root = paths.data_root(options.data_root, f"the data set '{options.dataset}'")
    print(download(options.dataset, root))
    return 0


# name -> help, function that adds the options, function that does the work (the exit status)
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Command]] = {
    "run": ("train and evaluate one method", _add_run, _run),
    "reproduce": (
        "all methods and seeds, then all notebooks and the page",
        _add_reproduce,
        _reproduce,
    ),  # fmt: skip
    "predict": ("scores and labels of images, by a finished run", _add_predict, _predict),
    "evaluate": (
        "mAP, AP and F1 of a finished run on your labelled images; the best threshold",
        _add_evaluate,
        _evaluate,
    ),  # fmt: skip
    "audit": (
        "training images whose labels look missing or wrong, by a run's heatmaps",
        _add_audit,
        _audit,
    ),  # fmt: skip
    "explore": (
        "a page to drag crops over training images and see their heatmaps",
        _add_explore,
        _explore,
    ),  # fmt: skip
    "compare": (
        "a table of finished runs on the same images, with intervals",
        _add_compare,
        _compare,
    ),  # fmt: skip
    "export": ("the network of a finished run, for programs without spcl", _add_export, _export),
    "download": ("fetch Pascal VOC (its archive's SHA-256 is checked)", _add_download, _download),
}


if __name__ == "__main__":
    raise_when_stopped()
    sys.exit(main())
