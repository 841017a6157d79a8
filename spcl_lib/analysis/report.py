"""Writes the table for people, as texts and in the README."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spcl_lib.analysis.league import leagues, leagues_side_by_side
from spcl_lib.analysis.results import Runs, by_method, load_runs, references, table
from spcl_lib.analysis.statistics import spread_text
from spcl_lib.methods import title_of
from spcl_lib.system import paths
from spcl_lib.system.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


# --- the table ------------------------------------------------------------------------------------


def readable_table(runs: Runs) -> pd.DataFrame:
    """The table as texts: mean ± standard deviation over seeds."""
    import pandas as pd

    rows = [
        {
            "method": title_of(str(name)),
            "mAP %": spread_text(row["mAP"], row["std"]),
            "gain over AN": "" if name == "an" else spread_text(row["gain"], row["gain_std"], "+"),
            "gap closed": "" if name == "an" or math.isnan(row["gap_closed"])
            else f"{row['gap_closed']:.0f} %",
            "OF1": f"{row['OF1']:.1f}",
            "CF1": f"{row['CF1']:.1f}",
            "seeds": str(int(row["seeds"])),
            "training": _duration(row["train_seconds"]),
        }
        for name, row in table(runs).iterrows()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index("method").rename_axis(None)  # a name adds a header row


def other_tables(dataset: str, profile: str) -> pd.DataFrame:
    """Short readable tables of all reference files but one, with the data set in a column."""
    import pandas as pd

    columns = ["mAP %", "gain over AN", "gap closed", "seeds"]
    frames = [
        readable_table(load_runs("reference", d, p))[columns]
        .rename_axis("method").reset_index().assign(data=f"{d}, {p}").set_index(["data", "method"])
        for d, p in references()
        if (d, p) != (dataset, profile)
    ]  # fmt: skip
    return pd.concat(frames) if frames else pd.DataFrame()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def provenance(runs: Runs) -> list[str]:
    """Says in a few lines what was run, where and when."""
    seeds = [len(members) for members in by_method(runs).values()]
    each = f"{seeds[0]}" if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
    first = runs[0]
    machines = sorted({f"{m['device']}, {_plural(m['threads'], 'thread')} a run, torch {m['torch']}"
                       for m in (r["machine"] for r in runs)})  # fmt: skip
    dates = sorted({r["finished"] for r in runs})
    commits = sorted({str(r["machine"]["commit"]) for r in runs})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return [
        f"{first['dataset']}, profile {first['profile']}: {len(seeds)} methods, seeds: {each} each;"
        f" {first['train_images']:,} training images with one label each, "
        f"{first['report_images']:,} images to report on, {_plural(first['epochs'], 'epoch')}",
        f"machine: {'; '.join(machines)}",
        f"finished: {span}; commit {', '.join(commits)}",
    ]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- README ---------------------------------------------------------------------------------------

_BLOCK = re.compile(r"(<!-- table (\w+)-(\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def readme_table(runs: Runs) -> str:
    """The table in Markdown; a line below it names seeds, machine and date."""
    frame = readable_table(runs).drop(columns="seeds").rename_axis("method").reset_index()
    rows = [list(frame.columns), ["---"] + ["--:"] * (frame.shape[1] - 1), *frame.values.tolist()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    what, machine, when = provenance(runs)
    note = f"{what.partition(': ')[2]}. Mean ± standard deviation over seeds. {machine}; {when}."
    return "\n".join([*lines, "", f"<sub>{note[0].upper()}{note[1:]}</sub>"])


def update_readme(readme: Path | None = None) -> bool:
    """Writes every `<!-- table DATASET-PROFILE -->` block of the README from its reference file.

    Blocks without a reference file do not change.

    Returns:
        Whether anything changed.
    """
    readme = readme or paths.project() / "README.md"
    old = readme.read_text()
    new = fill_tables(old)
    if new != old:
        with atomic_write(readme) as temporary:
            temporary.write_text(new)
    return new != old


def fill_tables(text: str) -> str:
    """The text, with its table blocks filled from the reference files."""

    def fill(block: re.Match[str]) -> str:
        start, dataset, profile, _, end = block.groups()
        if (dataset, profile) not in references():
            return block[0]
        return f"{start}\n{readme_table(load_runs('reference', dataset, profile))}\n\n{end}"

    return _LEAGUE_BLOCK.sub(_fill_leagues, _BLOCK.sub(fill, text))


_SHOWN_OTHERS = 10  # methods of others in the README's table of the leagues
_LEAGUE_BLOCK = re.compile(r"(<!-- leagues -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _fill_leagues(block: re.Match[str]) -> str:
    start, _, end = block.groups()
    found = leagues()
    return f"{start}\n{readme_leagues(found)}\n\n{end}" if found else block[0]


def readme_leagues(found: dict[str, dict[str, Any]]) -> str:
    """The methods that all leagues have in Markdown, and a line below about the runs.

    Of other papers' losses, and of our combinations with them, the table has the best.
    """
    frame = leagues_side_by_side(found).dropna()
    others = frame["whose"].isin(["competitor", "combined by us"])
    frame = frame[~others | (others.cumsum() <= _SHOWN_OTHERS)]
    rows = [["method", *frame.columns], ["---", "---", *["--:"] * (frame.shape[1] - 1)]]
    rows += [[name, *row] for name, row in zip(frame.index, frame.values.tolist(), strict=True)]
    notes = (
        f"{dataset}: profile {content['profile']}, {content['train_images']:,} training images "
        f"with one label each, {content['report_images']:,} images to report on, "
        f"{len(content['seeds'])} seeds, {content['machine']['device']}"
        for dataset, content in found.items()
    )
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(
        [*lines, "", f"<sub>mAP in % (share of the gap closed). {'; '.join(notes)}.</sub>"]
    )
