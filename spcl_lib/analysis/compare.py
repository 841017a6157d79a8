"""Compares finished runs of any settings on the same images, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spcl_lib.analysis.bootstrap import Resamples, interval_of
from spcl_lib.analysis.statistics import mean, mean_and_spread
from spcl_lib.config import RunConfig
from spcl_lib.runs.splits import list_report
from spcl_lib.runs.store import Run, read_tensors
from spcl_lib.system.errors import UserError

_RESAMPLES = 1000
_SAME = ("dataset", "content", "report", "eval_images", "difficult", "unannotated", "full_labels")
COLUMNS = ("runs", "seeds", "mAP %", "difference", "95 % interval", "OF1", "CF1")


@dataclass(frozen=True)
class _Finished:
    folder: Path
    config: RunConfig
    metrics: dict[str, object]


def compare(folders: Sequence[Path], data_root: str | Path | None = None) -> list[list[str]]:
    """Rows of texts, in the order of COLUMNS, one for all runs that differ by their seed alone.

    The difference is in mAP, to the first row. Its interval comes from resamples of images and
    seeds, the same for all rows. OF1 and CF1 are those at the runs' own thresholds.

    Args:
        folders: folders of runs, or folders of runs' folders; all runs below them count.
        data_root: the runs' data (default: where they were when the first run was made).

    Raises:
        UserError: a run has not finished or is damaged, or runs report on different images.
    """
    runs = [_read(folder) for place in folders for folder in _runs_below(place)]
    first = runs[0]
    for run in runs:
        for name in _SAME:
            mine, other = (getattr(r.config, name) for r in (run, first))
            if mine != other:
                raise UserError(
                    f"'{run.folder}' and '{first.folder}' report on different images: {name} is "
                    f"'{mine}' and '{other}'"
                )
    groups: dict[RunConfig, list[_Finished]] = {}
    for run in runs:
        groups.setdefault(run.config.replace(seed=0, snapshots=0), []).append(run)
    root = data_root or _root_of(first.folder)
    report = list_report(first.config, root)
    names, rows, usual = _names(list(groups)), [], None
    for config, members in groups.items():
        members = list({run.config.seed: run for run in members}.values())
        scores = [read_tensors(run.folder / "scores.safetensors")["scores"] for run in members]
        if any(s.shape != report.labels.shape for s in scores):
            raise UserError(
                f"the scores in '{members[0].folder}' are of other images than '{root}'"
            )
        resamples = Resamples(report.labels, report.ignored, len(scores), _RESAMPLES)
        drawn, maps = resamples.mean_average_precisions(scores), [r.metrics["mAP"] for r in members]
        row = [names[config], str(len(members)), mean_and_spread(maps)]
        usual = usual or (mean(maps), drawn)
        difference, interval = "", ""
        if drawn is not usual[1]:
            ends = interval_of(drawn - usual[1])
            difference = f"{mean(maps) - usual[0]:+.1f}"
            interval = f"{ends[0]:+.1f} to {ends[1]:+.1f}"
        f1 = [_f1(members, name) for name in ("OF1", "CF1")]
        rows.append([*row, difference, interval, *f1])
    return rows


def as_text(rows: Sequence[Sequence[str]], form: str = "text") -> str:
    """The table as "text", "markdown" or "latex" (for the package booktabs)."""
    lines = [list(COLUMNS), *map(list, rows)]
    if form == "markdown":
        lines.insert(1, ["---"] + ["--:"] * (len(COLUMNS) - 1))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if form == "latex":
        body = [" & ".join(map(_escape, line)) + r" \\" for line in lines]
        start = rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}"
        return "\n".join(
            [start, r"\toprule", body[0], r"\midrule", *body[1:], r"\bottomrule", r"\end{tabular}"]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _escape(text: str) -> str:
    for sign in "%_#&$":
        text = text.replace(sign, rf"\{sign}")
    return text.replace("±", r"$\pm$")


def _runs_below(place: Path) -> list[Path]:
    place = place.parent if place.name == "metrics.json" else place
    if (place / "metrics.json").is_file():
        return [place]
    found = sorted(file.parent for file in place.rglob("metrics.json") if file.is_file())
    if not found:
        raise UserError(f"'{place}' holds no finished run; give the folders of runs")
    return found


def _read(folder: Path) -> _Finished:
    run = Run.find(folder)
    return _Finished(folder, run.config, run.finished())


def _root_of(folder: Path) -> str | Path | None:
    return Run.find(folder).data_root


def _names(configs: Sequence[RunConfig]) -> dict[RunConfig, str]:
    """The method of every configuration, and its settings where they are not all the same."""
    flat = [config.flat() for config in configs]
    differ = [k for k in flat[0] if k != "method" and len({str(f[k]) for f in flat}) > 1]
    return {
        config: " ".join([config.method, *(f"{k}={f[k]}" for k in differ)])
        for config, f in zip(configs, flat, strict=True)
    }


def _f1(members: Sequence[_Finished], name: str) -> str:
    found = [run.metrics["at_threshold"][name] for run in members if "at_threshold" in run.metrics]
    return f"{mean(found):.1f}" if found else ""
