"""The league and the ablations: makes their runs, keeps and prints what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from spcl_lib.analysis.intervals import summary
from spcl_lib.analysis.league import best_of_league, collect, league_table
from spcl_lib.analysis.runs import (
    ablation_table,
    collect_ablations,
    collect_whole,
    keep,
    read_kept,
    whole_table,
)
from spcl_lib.runs.ablation import ablation_configs, ablations
from spcl_lib.runs.league import (
    League,
    full_training_configs,
    members_of_full_training,
    run_league,
    search_conditions,
)
from spcl_lib.runs.profiles import cost, duration
from spcl_lib.runs.schedule import RUNS_IN_TURN, run_all
from spcl_lib.runs.settings import make_config
from spcl_lib.runs.splits import identify_all, load_splits
from spcl_lib.runs.store import Run
from spcl_lib.system.errors import UserError, unknown_name


def league_of_kept_search(
    dataset: str, methods: Sequence[str], seeds: Sequence[int], data_root: str | Path | None
) -> League:
    """The league with the search of its kept reference, if that was made as it would be now.

    The arguments are those of `League`; no methods means those of the kept league.

    Raises:
        UserError: no league is kept, or as in `League`.
    """
    kept = read_kept(f"league-{dataset}")
    methods = methods or list(dict.fromkeys(entry["method"] for entry in kept["final"]))
    same = all(kept.get(key) == value for key, value in search_conditions(dataset).items())
    known = kept["search"] if same else ()
    return League(dataset, methods, seeds, data_root, known)


def show_league_plan(league: League, jobs: int) -> None:
    """Prints how much of each round is finished, up to the round that is not, and the cost."""
    left = league.most_runs()
    for title, configs in league.rounds():
        if not configs:  # the kept search has them
            continue
        done = sum(Run.of(c).metrics is not None for c in configs)
        print(f"{league.dataset} {title}: {done} of {len(configs)} runs finished")
        left -= done
        if done < len(configs):
            break
    else:
        return
    one = cost(league.dataset, league.profile)
    total = duration(one.seconds * left / jobs)
    print(f"one run: {one}")
    print(f"to do: at most {left} runs, about {total} in all with {jobs} side by side", flush=True)


def reproduce_league(league: League, jobs: int, keeps: bool) -> bool:
    """Makes the unfinished runs of a league, and prints its table.

    Args:
        league: the league of one data set.
        jobs: number of runs at the same time.
        keeps: replace the reference file.

    Returns:
        Whether all runs finished.
    """
    show_league_plan(league, jobs)
    if run_league(league, jobs):
        return False
    content = collect(league)
    if keeps:
        print("kept:", keep(f"league-{league.dataset}", content))
    print(_text(league_table(content)))
    return True


def _text(table: pd.DataFrame) -> str:
    """Means and shares of the gap, the best on top."""
    found = summary(table).sort_values("mAP", ascending=False)
    return found.drop(columns=["study", "dataset", "profile"]).round(2).to_string(index=False)


class FullTraining:
    """The whole network trained with the paper's methods and the best of a kept league.

    Args:
        dataset: a key of `runs.league.FULL_TRAINING`.
        seeds: seeds of the training.
        data_root: see `paths.data_root`.

    Raises:
        UserError: there is no such training, no kept league, or the data are missing.
    """

    def __init__(self, dataset: str, seeds: Sequence[int], data_root: str | Path | None) -> None:
        members = members_of_full_training(dataset)
        league, self.data_root = read_kept(f"league-{dataset}"), data_root
        best = best_of_league(league, members.others, members.combined)
        self.configs = full_training_configs(dataset, best, seeds, data_root)

    def show_plan(self) -> None:
        """Prints how many runs of every method are finished, and the cost of one."""
        for method, configs in self.configs.items():
            done = sum(Run.of(c).metrics is not None for c in configs)
            print(f"{method}: {done} of {len(configs)} runs finished")
        first = self.configs["an"][0]
        print(f"one run: {cost(first.dataset, first.profile)}")

    def reproduce(self, jobs: int, keeps: bool) -> bool:
        """Makes the unfinished runs, and prints the table; see `reproduce_league`."""
        # Seed by seed: --seeds 0 can keep a table before the other seeds have finished.
        runs = [c for of_one_seed in zip(*self.configs.values(), strict=True) for c in of_one_seed]
        if run_all(runs, self.data_root, jobs):
            return False
        content = collect_whole(self.configs)
        if keeps:
            print("kept:", keep("full-training-" + content["dataset"], content))
        print(_text(whole_table(content)))
        return True


class Ablations:
    """Some ablations of a profile.

    Args:
        name: an ablation, or "all".
        dataset: a key of PROFILES.
        profile: a key of PROFILES[dataset].
        seeds: seeds of the training.
        data_root: see `paths.data_root`.

    Raises:
        UserError: the name is unknown, or the data are missing.
    """

    def __init__(
        self, name: str, dataset: str, profile: str, seeds: Sequence[int],
        data_root: str | Path | None,
    ) -> None:  # fmt: skip
        self.about, self.seeds, self.data_root = (dataset, profile), seeds, data_root
        train, _ = load_splits(make_config(dataset, "an", 0, profile), data_root)
        known = ablations(dataset, profile, len(train))
        if name not in {*known, "all"}:
            raise unknown_name("ablation", name, ["crop_scale", *known, "all"])
        self.name = name
        self.asked = known if name == "all" else {name: known[name]}
        groups = [ablation_configs(a, *self.about, seeds).values() for a in self.asked.values()]
        configs = [config for group in groups for runs in group for config in runs]
        self.configs = list(dict.fromkeys(identify_all(configs, data_root)))

    def show_plan(self) -> None:
        """Prints how many runs are left, and what they cost."""
        left = sum(Run.of(c).metrics is None for c in self.configs)
        print(f"{left} of {len(self.configs)} runs to do")
        print(f"one run: {cost(*self.about)}", flush=True)

    def reproduce(self, jobs: int, keeps: bool) -> bool:
        """Makes the unfinished runs and prints the means; see `reproduce_league`."""
        if keeps and self.name != "all":
            raise UserError(f"--keep would lose the other ablations than '{self.name}'; give all")
        self.show_plan()
        title = f"ablation {self.name}"
        if run_all(self.configs, self.data_root, jobs, title=title, in_turn=RUNS_IN_TURN):
            return False
        content = collect_ablations(self.asked, *self.about, self.seeds, self.data_root)
        if keeps:
            print("kept:", keep("-".join(["ablations", *self.about]), content))
        means = ablation_table(content).groupby(["setting", "value", "title"], sort=False)["mAP"]
        print(means.mean().unstack().round(2).to_string())
        return True
