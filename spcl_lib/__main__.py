"""Command line: `python -m spcl_lib run | reproduce | predict | ...`; see --help."""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from io import TextIOWrapper
from types import FrameType
from typing import Any

import torch

from spcl_lib.losses.registry import TERMS
from spcl_lib.methods import METHODS, title_of
from spcl_lib.pooling import KINDS, parse_pooling
from spcl_lib.runs.profiles import PROFILES, usual_dataset, usual_method, usual_profile
from spcl_lib.runs.settings import describe_settings, make_config, parse_overrides
from spcl_lib.system import VERSION, paths, ranks
from spcl_lib.system.errors import UserError, printable, unknown_name
from spcl_lib.system.files import explain_refusals
from spcl_lib.system.machine import choose_device, count_cores
from spcl_lib.system.processes import PARENT, end_with_parent

Options = argparse.Namespace
Command = Callable[[Options], int | None]  # returns the exit status; None counts as 0
_COMMANDS: dict[str, tuple[Command, dict[str, dict[str, Any]]]] = {}  # with their options


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; gives 0, or 1 for a failed run, 2 for a mistake, 128 + N after signal N."""
    goes_on = ""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of folders need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        options, unknown = make_parser().parse_known_args(arguments)
        if unknown:
            known = _COMMANDS[options.command.__name__.strip("_")][1]
            raise unknown_name("option", unknown[0], known)
        if options.command is not _run and ranks.count_started() > 1:
            raise UserError("torchrun is only for `run`; give this command to python -m spcl_lib")
        if options.command in (_run, _reproduce):
            goes_on = "; the same command goes on from the last checkpoint, if there is one"
        with explain_refusals():
            return options.command(options) or 0
    except (UserError, ModuleNotFoundError) as error:  # some packages are needed by few commands
        print(f"spcl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"spcl: stopped{goes_on}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


# --- the parser -----------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Raises a UserError: a mistake of the user gives one line and exit status 2."""
        raise UserError(f"{message}. See: {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `command` of its result is the function to call."""
    parser = _Parser(prog="spcl", description=__doc__, allow_abbrev=False)
    version = f"spcl {VERSION}, torch {torch.__version__}, python {platform.python_version()}"
    parser.add_argument("--version", action="version", version=version)
    names = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (command, options) in _COMMANDS.items():
        made = names.add_parser(name, help=command.__doc__, allow_abbrev=False)
        made.set_defaults(command=command)
        for option, about in options.items():
            made.add_argument(option, **about)
        if command is _run:
            made.formatter_class = argparse.RawDescriptionHelpFormatter
            made.epilog = "\n".join(["settings (--set KEY=VALUE):", *describe_settings()])
    return parser


def _option(text: str, metavar: str | None = None, **more: Any) -> dict[str, Any]:
    return {"help": text, "metavar": metavar, **more}


def _flag(text: str) -> dict[str, Any]:
    return {"help": text, "action": "store_true"}


def _number(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text}")


_path = paths.expand_home
_SHARED = {
    "--dataset": _option(", ".join(PROFILES)),
    "--profile": _option("frozen (default for your own images), cpu (default), smoke, ..."),
    "--data-root": _option("folder of the data (else where a run had them, SPCL_DATA, data/)"),
    "--set": _option("a setting; see `run --help`", "KEY=VALUE", action="append", default=[]),
    "--run": _option("a run's folder, or one with only this run below", "DIR", required=True),
    "runs": _option("runs, or folders of runs; the first is the base", nargs="+", type=_path),
    "--size": _option("resize images to this side; larger is often better", "N", type=_number),
    "--threshold": _option("least score of a label (default: the run's)", "T", type=float),
    "--pooling": _option(f"another pooling of the maps: {', '.join(KINDS)}, lse:3, ...", "KIND"),
    "--top": _option("the K highest scores are labels", "K", type=_number),
    "--fast": _flag("bfloat16 where the machine has it: scores differ by up to 0.06"),
    "--force": _flag("run again, or replace the file, if it is there"),
}


def _command(*shared: str, **own: dict[str, Any]) -> Callable[[Command], Command]:
    """Makes a function a command: its name, its docstring as help, shared and own options."""

    def register(command: Command) -> Command:
        options = {name: _SHARED[name] for name in shared}
        options |= {f"--{name}": about for name, about in own.items()}
        _COMMANDS[command.__name__.strip("_")] = command, options
        return command

    return register


def _refuse(options: Options, leading: str, *others: str) -> None:
    for name in others:
        given = getattr(options, name)  # 0 is a seed
        if given not in (None, []) and given is not False:
            raise UserError(f"{leading} has all that it needs; --{name} does not go with it")


# --- commands; each has its own imports, so that the others start fast ---------------------------


@_command(
    "--dataset", "--profile", "--data-root", "--set", "--force",
    method=_option("an, scl, en_scl, ren_scl, full, ...; `--method list` names all"),
    seed=_option("default: 0", type=int),
    config=_option("config.json of one or more runs, with all settings", "FILE", nargs="+"),
)  # fmt: skip
def _run(options: Options) -> None:
    """Train and evaluate one method."""
    from spcl_lib.runs.run import print_epoch, run
    from spcl_lib.runs.store import write_summary

    if ranks.count_started() > 1:
        os.environ[PARENT] = str(os.getppid())  # torchrun, which may be killed
    end_with_parent()
    if options.method == "list":
        for name, spec in METHODS.items():
            print(f"{name:14} {title_of(name)} ({TERMS[spec.term].source})")
        return
    waiting, errors = _runs_of(options), []
    with ranks.join():
        for own in waiting:
            report = partial(print_epoch, own.config)
            try:
                _say_what_came_out(own, run(own.config, own.data_root, options.force, report))
            except UserError as error:  # the others do not need this run
                if len(waiting) == 1:
                    raise
                errors.append(str(error))
        if ranks.rank() == 0 and not options.config:  # the scheduler writes it once, at its end
            write_summary()
    if errors:
        raise UserError("; ".join(errors))


def _runs_of(options: Options) -> list[Any]:
    """Every Run that the options of `run` name."""
    from spcl_lib.runs.store import Run

    if options.config:
        _refuse(options, "--config", "dataset", "profile", "method", "seed", "set")
        return [Run.find(file, options.data_root) for file in options.config]
    dataset = options.dataset or usual_dataset(options.data_root)
    profile = options.profile or usual_profile(dataset)
    method, settings = options.method or usual_method(profile), parse_overrides(options.set)
    config = make_config(dataset, method, options.seed or 0, profile, settings)
    return [Run.of(config, options.data_root)]


def _say_what_came_out(own: Any, metrics: Mapping[str, Any]) -> None:
    config = own.config
    more = " against single labels" if metrics.get("report_labels") == "single" else ""
    if config.report == "train":
        more += " of its training images"
    if "real_accuracy" in metrics:
        more += f", ReaL accuracy {metrics['real_accuracy']:.2f} %"
    smoke = "; a smoke test: the number means nothing" if config.profile == "smoke" else ""
    print(
        f"{config.dataset} {config.method} seed {config.seed}: mAP {metrics['mAP']:.2f} %{more} "
        f"(trained {metrics['train_seconds']:.0f} s{smoke}); {own.folder}/metrics.json",
        *metrics.get("warnings", ()), sep="\n", flush=True,
    )  # fmt: skip


@_command(
    "--dataset", "--profile", "--data-root", "--set", "--force",
    all=_flag("every experiment of every data set that is there"),
    league=_flag("every loss of every paper, with the same search for each: see 06_benchmark"),
    only=_option("some of the methods", "METHOD", nargs="+"),
    seeds=_option("default: 0 1 2; with smoke: 0; with --league: 0 to 4", type=int, nargs="+"),
    jobs=_option("runs side by side (default: one per core, or one on a GPU)", type=_number),
    list=_flag("show what would run, and stop"),
)  # fmt: skip
def _reproduce(options: Options) -> int:
    """All methods and seeds, then all notebooks and the page."""
    from spcl_lib.reproduce.plan import all_experiments, experiment_of, reproduce, show_plan

    # A GPU is best used by one run.
    jobs = options.jobs or (1 if choose_device().type == "cuda" else count_cores())
    if options.league:
        return _league(options, jobs)
    seeds = list(dict.fromkeys(options.seeds or ([0] if options.profile == "smoke" else [0, 1, 2])))
    if options.all:
        _refuse(options, "--all", "only", "set", "profile")
        experiments = all_experiments(options.dataset, seeds, options.data_root)
    else:
        dataset = options.dataset or usual_dataset(options.data_root)
        settings = parse_overrides(options.set)
        profile, only = options.profile or usual_profile(dataset), options.only or ()
        experiments = [experiment_of(dataset, profile, only, seeds, settings, options.data_root)]
    if options.list:
        show_plan(experiments, jobs)
        return 0
    return reproduce(experiments, jobs, options.force)


def _league(options: Options, jobs: int) -> int:
    from spcl_lib.reproduce.plan import reproduce_league, show_league_plan
    from spcl_lib.runs.league import LEAGUES, SEEDS, League

    _refuse(options, "--league", "all", "set", "force", "profile")
    for dataset in [options.dataset] if options.dataset else LEAGUES:
        league = League(dataset, options.only or (), options.seeds or SEEDS, options.data_root)
        if options.list:
            show_league_plan(league, jobs)
        elif not reproduce_league(league, jobs):
            return 1
    return 0


def _predictor(options: Options) -> Any:
    """The Predictor of the options, of a run that it prints.

    It has no rule if the run's own threshold does not fit another pooling.
    """
    from spcl_lib.runs.predictor import LabelRule, Predictor
    from spcl_lib.runs.store import Run

    run, top = Run.find(options.run), getattr(options, "top", None)
    amp = "auto" if getattr(options, "fast", False) else "off"
    predictor = Predictor.load(run.folder, options.size, amp)
    what = f"{run.config.dataset}, {run.config.method}, {len(predictor.classes)} classes"
    print(f"run: {run.folder} ({what}), images of {predictor.size} px")
    if options.pooling:
        predictor.model.pooling, predictor.rule = parse_pooling(options.pooling), None
    if options.threshold is not None or top is not None:
        predictor.rule = LabelRule(options.threshold, top)
    elif predictor.rule and predictor.size != run.config.eval_side:
        usual = f"the run's threshold was chosen at {run.config.eval_side} px"
        print(f"spcl: {usual}; `evaluate` names a better one for this size", file=sys.stderr)
    return predictor


@_command(
    "--run", "--size", "--threshold", "--pooling", "--top", "--fast", "--force",
    images=_option("images, and folders of images", "PATH", required=True, nargs="+", type=_path),
    out=_option("FILE.csv or FILE.json", "FILE", type=_path, default="predictions.csv"),
    heatmaps=_option("write a picture of every image's heatmaps", "DIR", type=_path),
)  # fmt: skip
def _predict(options: Options) -> None:
    """Scores and labels of images, by a finished run."""
    from spcl_lib.runs.predict import predict_files
    from spcl_lib.viewer.overlays import OverlayFolder

    predictor = _predictor(options)
    overlays, out = options.heatmaps and OverlayFolder(options.heatmaps), options.out
    done, skipped = predict_files(predictor, options.images, out, overlays, options.force)
    _name_skipped(skipped)
    print(f"{done} images, labels are {predictor.rule}: {out}")


def _name_skipped(skipped: Mapping[str, str]) -> None:
    if skipped:
        named = [printable(f"{name} {why}") for name, why in list(skipped.items())[:10]]
        dots = ", ..." if len(skipped) > 10 else ""
        print(f"spcl: left out {len(skipped)}: {', '.join(named)}{dots}", file=sys.stderr)


@_command(
    "--run", "--size", "--threshold", "--pooling", "--top", "--fast", "--data-root",
    images=_option("folder of images (default: those that the run held out)", "DIR", type=_path),
    labels=_option("CSV file of path,labels with a|b, or of path,label", "FILE", type=_path),
    out=_option("write evaluation.json into this folder", "DIR", type=_path),
)  # fmt: skip
def _evaluate(options: Options) -> None:
    """mAP, AP and F1 of a finished run on your labelled images; the best threshold."""
    from spcl_lib.runs.evaluation import evaluate_files, evaluate_own, expected_threshold
    from spcl_lib.runs.predictor import LabelRule
    from spcl_lib.runs.store import Run
    from spcl_lib.viewer.evaluation import evaluation_lines, write_evaluation

    if (options.images is None) != (options.labels is None):
        raise UserError("give --images and --labels, or neither for the run's own held-out images")
    predictor = _predictor(options)
    if options.images is None:
        found = evaluate_own(predictor, Run.find(options.run, options.data_root).data_root)
    else:
        found = evaluate_files(predictor, options.images, options.labels)
    _name_skipped(found.skipped)
    expected = predictor.config.settings.expected_positives
    if predictor.rule is None:
        print(f"the threshold is chosen here: so that an image has {expected:g} labels")
        predictor.rule = LabelRule(expected_threshold(found.scores, expected))
    print("\n".join(evaluation_lines(found, predictor.rule, expected)))
    print(f"\nchosen on all these images: --threshold {found.threshold(expected):.4f}")
    if options.out:
        print(write_evaluation(found, predictor, expected, options.out))


@_command(
    "--run", "--data-root",
    out=_option("folder for audit.html and audit.csv", "DIR", type=_path, default="audit"),
    predict=_flag("predict heatmaps now, in place of the run's averages: slower, often better"),
    most=_option("most rows of each kind (default: 1000)", "N", type=_number, default=1000),
)  # fmt: skip
def _audit(options: Options) -> None:
    """Training images whose labels look missing or wrong, by a run's heatmaps."""
    from spcl_lib.analysis import audit
    from spcl_lib.methods import visible_labels
    from spcl_lib.runs.predictor import one_sided
    from spcl_lib.runs.store import Run
    from spcl_lib.viewer.audit_page import SHOWN, write_audit

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
    print(*write_audit(options.out, facts, found, read, run.train, given), sep="\n")


@_command(
    "--data-root",
    run=_option("runs that followed the same images", "DIR", required=True, nargs="+"),
    out=_option("default: explorer.html", "FILE", type=_path, default="explorer.html"),
)  # fmt: skip
def _explore(options: Options) -> None:
    """A page to drag crops over training images and see their heatmaps."""
    from spcl_lib.runs.snapshots import trace_of
    from spcl_lib.runs.store import Run
    from spcl_lib.viewer.explorer_page import write_explorer_page

    if options.out.suffix != ".html":
        raise UserError(f"--out must be the name of an .html file; got '{options.out}'")
    runs = [Run.find(run, options.data_root) for run in options.run]
    write_explorer_page(options.out, *(trace_of(run.load(objects=True)) for run in runs))
    print(options.out)


@_command("runs", latex=_flag("print it in LaTeX"))
def _compare(options: Options) -> None:
    """A table of finished runs on the same images, with intervals."""
    from spcl_lib.analysis.compare import compare

    table = compare(options.runs)
    latex = options.latex and table.to_latex(index=False, escape=True).strip()
    print(latex or table.to_string(index=False))


@_command(
    "--run", "--size", "--threshold", "--pooling", "--force",
    format=_option("onnx or pt2", required=True, choices=("onnx", "pt2")),
    out=_option("the file", "FILE", required=True, type=_path),
)  # fmt: skip
def _export(options: Options) -> None:
    """The network of a finished run, for programs without spcl."""
    from spcl_lib.runs.export import export

    difference = export(_predictor(options), options.format, options.out, options.force)
    said = f"{options.out}: probabilities as `predict` gives them, to {difference:.1g}"
    print(f"{said}; to 0.01 where an image is resized")


@_command("--data-root", dataset=_option("voc2007 or voc2012", required=True))
def _download(options: Options) -> None:
    """Fetch Pascal VOC (its archive's checksum is compared)."""
    from spcl_lib.data.voc import download

    print(download(options.dataset, paths.data_root(options.data_root, make=True)))


def start() -> None:
    """Runs the command of this process, which SIGTERM stops as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())


if __name__ == "__main__":
    start()
