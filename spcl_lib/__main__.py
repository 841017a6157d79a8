"""Command line: `python -m spcl_lib run | reproduce | ablation | ...`; see --help."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
from pathlib import Path

from spcl_lib import paths
from spcl_lib.config import PROFILES, RunConfig, make_config, methods_of, parse_overrides
from spcl_lib.errors import UserError
from spcl_lib.losses import METHODS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """One line and exit status 2, like every other mistake of a user."""
        raise UserError(f"{message}. See: {self.prog} --help")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 fine, 1 a run failed, 2 a user's mistake."""
    try:
        options = _parser().parse_args(arguments)
        with paths.explained():
            return options.command(options)
    except UserError as error:
        print(f"spcl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spcl: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="spcl_lib", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    one = commands.add_parser("run", help="train and evaluate one method", allow_abbrev=False)
    _add_data_options(one)
    one.add_argument("--method", required=True, help=", ".join(METHODS))
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--force", action="store_true", help="run again even if it is finished")
    one.add_argument("--notebook", metavar="FILE", help="run 01_train, and keep it as FILE")
    one.set_defaults(command=_run)

    every = commands.add_parser(
        "reproduce", help="all methods and seeds, then the table and report", allow_abbrev=False
    )
    _add_data_options(every)
    every.add_argument("--only", nargs="+", metavar="METHOD", help="some of the methods")
    every.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    every.add_argument("--jobs", type=int, help="runs side by side (default: one per core)")
    every.add_argument("--force", action="store_true", help="run again what is finished")
    every.add_argument("--list", action="store_true", help="show what would run, and stop")
    every.set_defaults(command=_reproduce)

    ahead = commands.add_parser(
        "predict", help="scores and labels of images, by a finished run", allow_abbrev=False
    )
    ahead.add_argument(
        "--run", required=True, metavar="DIR",
        help="the run's folder, or a folder of runs: the one of them that finished last",
    )  # fmt: skip
    ahead.add_argument("--images", required=True, metavar="PATH", help="a folder, or an image")
    ahead.add_argument("--out", default="predictions.csv", metavar="FILE", help="the CSV file")
    ahead.add_argument(
        "--threshold", type=_threshold, metavar="T",
        help="score that makes a label, such as 0.5 (default: auto, the score that the expected "
        "number of labels per image reached on training images)",
    )  # fmt: skip
    ahead.add_argument(
        "--heatmaps", metavar="DIR", help="write a picture of every image's heatmaps"
    )
    ahead.set_defaults(command=_predict)

    varied = commands.add_parser(
        "ablation", help="the same methods with one setting varied", allow_abbrev=False
    )
    varied.add_argument("name", choices=["crop_scale"], help="what is varied")
    _add_data_options(varied)
    varied.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    varied.add_argument(
        "--scales", type=float, nargs="+", metavar="S", help="least areas of a crop, of the image's"
    )
    varied.add_argument("--only", nargs="+", metavar="METHOD", help="some of the methods")
    varied.add_argument("--jobs", type=int, help="runs side by side (default: one per core)")
    varied.add_argument("--force", action="store_true", help="run again what is finished")
    varied.add_argument("--list", action="store_true", help="show what would run, and stop")
    varied.set_defaults(command=_ablation)

    views = commands.add_parser(
        "recovery",
        help="measure, on the runs of `ablation crop_scale`, who knows what a crop still shows",
        allow_abbrev=False,
    )
    _add_data_options(views)
    views.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    views.add_argument(
        "--scale", type=float,
        help="the runs' least area of a crop (default: 0.1, or the profile's if there are none)",
    )  # fmt: skip
    views.add_argument("--keep", action="store_true", help="keep it as notebooks/reference")
    views.set_defaults(command=_recovery)

    bench = commands.add_parser(
        "bench", help="cost of every method's training step against AN's", allow_abbrev=False
    )
    _add_data_options(bench)
    bench.add_argument("--steps", type=int, default=40, help="timed steps per method")
    bench.add_argument(
        "--input", action="store_true", help="instead: how fast images are read, against the step"
    )
    bench.set_defaults(command=_bench)

    fetch = commands.add_parser(
        "download", help="fetch Pascal VOC through torchvision", allow_abbrev=False
    )
    fetch.add_argument("--dataset", required=True, help="voc2007 or voc2012")
    fetch.add_argument("--data-root", help="folder that it is put in (else SPCL_DATA, else data/)")
    fetch.set_defaults(command=_download)

    keep = commands.add_parser(
        "reference", help="keep finished runs as notebooks/reference, update the README's tables",
        allow_abbrev=False,
    )  # fmt: skip
    keep.add_argument("--dataset", default="scenes", help=", ".join(PROFILES))
    keep.add_argument("--profile", default="cpu")
    keep.set_defaults(command=_reference)

    books = commands.add_parser(
        "notebooks", help="run notebooks again in place, for the committed outputs",
        allow_abbrev=False,
    )  # fmt: skip
    books.add_argument("names", nargs="*", help="such as 00_tour (default: all)")
    books.set_defaults(command=_notebooks)
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="scenes", help=", ".join(PROFILES))
    parser.add_argument("--profile", default="cpu", help="cpu (default), smoke, ...")
    parser.add_argument("--data-root", help="folder of the real data (else SPCL_DATA, else data/)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting"
    )


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"must be auto or in 0..1, not '{text}'")


def _settings(options: argparse.Namespace) -> list[str]:
    """What `--set` gave, with the weights' file as an absolute path.

    A path from here means another place in a notebook, which runs in its own folder.
    """
    pairs = []
    for pair in options.set:
        key, _, value = pair.partition("=")
        if key == "weights" and value not in ("auto", "none", "torchvision"):
            pair = f"{key}={os.path.abspath(os.path.expanduser(value))}"
        pairs.append(pair)
    return pairs


def _run(options: argparse.Namespace) -> int:
    from spcl_lib.data import identified
    from spcl_lib.experiment import finished, run, run_folder
    from spcl_lib.history import told
    from spcl_lib.reproduce import end_with_parent

    end_with_parent()
    overrides = parse_overrides(_settings(options))
    config = make_config(options.dataset, options.method, options.seed, options.profile, overrides)
    config = identified(config, options.data_root)
    with told(config, run_folder(config)):
        if options.notebook:
            _run_notebook(options)
        metrics = finished(config) if options.notebook else None
        metrics = metrics or run(config, options.data_root, options.force)
    more = " against single labels" if metrics.get("report_labels") == "single" else ""
    if "real_accuracy" in metrics:
        more += f", ReaL accuracy {metrics['real_accuracy']:.2f} %"
    print(
        f"{config.dataset} {config.method} seed {config.seed}: mAP {metrics['mAP']:.2f} %{more} "
        f"(trained {metrics['train_seconds']:.0f} s); {run_folder(config) / 'metrics.json'}"
    )
    return 0


def _run_notebook(options: argparse.Namespace) -> None:
    from spcl_lib.notebooks import execute

    # A path from here means another place in the notebook, which runs in its own folder.
    root = options.data_root
    data_root = os.path.abspath(os.path.expanduser(root)) if root else ""
    parameters = {
        "dataset": options.dataset, "method": options.method, "seed": options.seed,
        "profile": options.profile, "data_root": data_root,
        "overrides": shlex.join(_settings(options)), "force": options.force,
    }  # fmt: skip
    execute("01_train", parameters, Path(options.notebook))


def _reproduce(options: argparse.Namespace) -> int:
    from spcl_lib.reproduce import reproduce

    methods = options.only or methods_of(options.dataset)
    if not options.only and "full" not in methods:
        print(f"without full: the training images of {options.dataset} have one known label each")
    overrides = parse_overrides(_settings(options))
    configs = [
        make_config(options.dataset, method, seed, options.profile, overrides)
        for method in methods
        for seed in options.seeds
    ]
    configs = _identified(configs, options)
    return reproduce(configs, options.data_root, _jobs(options), options.force, options.list)


def _identified(configs: list[RunConfig], options: argparse.Namespace) -> list[RunConfig]:
    """All configurations with the content of the one folder that they are for, if any."""
    from spcl_lib.data import identified

    content = identified(configs[0], options.data_root).content
    return [dataclasses.replace(config, content=content) for config in configs]


def _jobs(options: argparse.Namespace) -> int:
    jobs = (os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {jobs}")
    return jobs


def _ablation(options: argparse.Namespace) -> int:
    from spcl_lib.ablation import CROP_METHODS, CROP_SCALES, crop_scale_configs, run_crop_scale

    configs = crop_scale_configs(
        options.dataset, options.profile, options.seeds, options.scales or CROP_SCALES,
        options.only or CROP_METHODS, parse_overrides(_settings(options)),
    )  # fmt: skip
    configs = _identified(configs, options)
    jobs = _jobs(options)
    return run_crop_scale(configs, options.data_root, jobs, options.force, options.list)


def _recovery(options: argparse.Namespace) -> int:
    from spcl_lib import recovery_claims, recovery_tables
    from spcl_lib.findings import keep, load_findings

    found = load_findings(
        "results", options.dataset, options.profile, options.seeds,
        options.scale, parse_overrides(_settings(options)), options.data_root,
    )  # fmt: skip
    print("\n".join(recovery_tables.provenance(found)))
    for sentences in (
        recovery_claims.recovery_verdicts(found), recovery_claims.crop_scale_verdicts(found),
        recovery_claims.localisation_verdicts(found),
    ):  # fmt: skip
        print(f"\n{recovery_claims.bullets(sentences)}")
    if options.keep:
        print(f"\n{keep(found)}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from spcl_lib.predict import Predictor, find_run, predict_files

    run = find_run(Path(options.run))
    predictor = Predictor.load(run)
    config = predictor.config
    print(f"run: {run} ({config.dataset}, {config.method}, {len(predictor.classes)} classes)")
    threshold = predictor.threshold if options.threshold is None else options.threshold
    if threshold is None:
        raise UserError(f"the run '{run}' has no threshold of its own; give one: --threshold 0.5")
    heatmaps = Path(options.heatmaps).expanduser() if options.heatmaps else None
    images, out = Path(options.images).expanduser(), Path(options.out).expanduser()
    done, skipped = predict_files(predictor, images, out, threshold, heatmaps)
    if skipped:
        names = ", ".join(skipped[:10]) + (", ..." if len(skipped) > 10 else "")
        print(f"spcl: left out {len(skipped)} that cannot be read: {names}", file=sys.stderr)
    print(f"{done} images, labels from a score of {threshold:.3f}: {out}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from spcl_lib.bench import bench
    from spcl_lib.bench_input import bench_input

    if options.steps < 1:
        raise UserError(f"--steps must be at least 1; got {options.steps}")
    config = make_config(
        options.dataset, "an", 0, options.profile, parse_overrides(_settings(options))
    )
    measure = bench_input if options.input else bench
    return measure(config, options.data_root, options.steps)


def _download(options: argparse.Namespace) -> int:
    from spcl_lib import paths
    from spcl_lib.data.download import download

    print(download(options.dataset, paths.data_root(options.data_root, options.dataset)))
    return 0


def _reference(options: argparse.Namespace) -> int:
    from spcl_lib.experiment import finished
    from spcl_lib.overview import write_overview
    from spcl_lib.report import update_readme
    from spcl_lib.results import save_reference

    print(save_reference(options.dataset, options.profile))
    scl = make_config(options.dataset, "scl", 0, options.profile)
    if options.dataset == "scenes" and finished(scl):
        print(write_overview(scl, paths.reference() / "overview.png"))
    update_readme()
    return 0


def _notebooks(options: argparse.Namespace) -> int:
    from spcl_lib.notebooks import refresh

    for file in refresh(options.names):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
