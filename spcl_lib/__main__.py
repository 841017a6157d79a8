"""Command line: `python -m spcl_lib run | reproduce | bench | reference | notebooks`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from spcl_lib import paths
from spcl_lib.config import PROFILES, make_config, parse_overrides
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

    bench = commands.add_parser(
        "bench", help="cost of every method's training step against AN's", allow_abbrev=False
    )
    _add_data_options(bench)
    bench.add_argument("--steps", type=int, default=40, help="timed steps per method")
    bench.set_defaults(command=_bench)

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


def _run(options: argparse.Namespace) -> int:
    from spcl_lib.experiment import finished, run, run_folder
    from spcl_lib.history import told
    from spcl_lib.reproduce import end_with_parent

    end_with_parent()
    config = make_config(
        options.dataset, options.method, options.seed, options.profile, parse_overrides(options.set)
    )
    with told(config, run_folder(config)):
        if options.notebook:
            _run_notebook(options)
        metrics = finished(config) if options.notebook else None
        metrics = metrics or run(config, options.data_root, options.force)
    print(
        f"{config.dataset} {config.method} seed {config.seed}: mAP {metrics['mAP']:.2f} % "
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
        "overrides": shlex.join(options.set), "force": options.force,
    }  # fmt: skip
    execute("01_train", parameters, Path(options.notebook))


def _reproduce(options: argparse.Namespace) -> int:
    from spcl_lib.reproduce import reproduce

    methods = options.only or list(METHODS)
    overrides = parse_overrides(options.set)
    configs = [
        make_config(options.dataset, method, seed, options.profile, overrides)
        for method in methods
        for seed in options.seeds
    ]
    jobs = (os.cpu_count() or 1) if options.jobs is None else options.jobs
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1; got {jobs}")
    return reproduce(configs, options.data_root, jobs, options.force, options.list)


def _bench(options: argparse.Namespace) -> int:
    from spcl_lib.bench import bench

    config = make_config(options.dataset, "an", 0, options.profile, parse_overrides(options.set))
    return bench(config, options.data_root, options.steps)


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
