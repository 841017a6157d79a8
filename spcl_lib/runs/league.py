"""The league: every method on the same labels, with the same small search on validation data.

This module enforces the protocol:

1. All methods share backbone, views, epochs, batch size and usual learning rate. They also share
   the observed labels.
2. Validation data (`report=val`, seed 0) decide all choices. Every method tries SEARCHED settings:
   values of its own parameters, or optimiser settings if it has none. A method with SCL takes the
   choice of its term, and tries the same number of SCL settings. Every method then tries POOLINGS.
   A network can predict with another pooling than in training: the search tries all poolings.
   The search makes as many steps as the final runs, although it has fewer photographs. On
   photographs, one part cannot tell the best from the second best. So the FINALISTS best settings,
   and then the FINALISTS best poolings, are repeated with other held-out parts, and the mean over
   the parts decides.
3. The chosen settings train on five seeds. One evaluation on the final data uses the mean in
   training and prediction; another one uses the two chosen poolings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import HELD_OUT, PARTS
from spcl_lib.methods import METHODS, PAPER_METHODS
from spcl_lib.runs.schedule import RUNS_IN_TURN, Task, run_all
from spcl_lib.runs.settings import make_config, methods_of
from spcl_lib.runs.splits import identify_all, identify_data
from spcl_lib.runs.store import Metrics, Run
from spcl_lib.system.errors import UserError

Settings = dict[str, Any]
Tried = tuple[Settings, Mapping[str, Any]]  # settings, and the results of their run

# data set -> profile of the league
LEAGUES = {"scenes": "cpu", "voc2007": "frozen", "coco18": "frozen"}
# Settings of all methods, where they differ from the profile's. On scenes, every method that could
# choose the rate took twice the profile's, for 1.4 to 2.7 points of mAP on validation data: those
# that search other parameters instead would be judged too low.
SHARED: dict[str, Settings] = {"scenes": {"lr": 4e-3}}
SEEDS = (0, 1, 2, 3, 4)
SEARCHED = 4  # tried settings of every method, before the poolings
FINALISTS = 2  # the best settings, and then poolings, that are repeated with other held-out parts


class Members(NamedTuple):
    """The methods that train the whole network: some of the paper's, and the league's best."""

    papers: tuple[str, ...]
    others: int  # number of the league's best besides the paper's
    combined: bool  # whether a competitor's loss with SCL counts among them


# data set of a frozen league -> who trains the whole network with profile cpu
FULL_TRAINING = {
    "voc2007": Members(PAPER_METHODS, 8, combined=True),
    "coco18": Members(("an", "scl", "en_scl", "full"), 4, combined=False),
}
# Their learning rates and epochs are others, so these choices do not carry over.
_OF_PROFILE = frozenset({"lr", "weight_decay", "start"})

_RATES = (0.5, 1.0, 2.0)  # times the usual learning rate
_GRIDS: dict[str, tuple[Settings, ...]] = {
    "en": ({"start": 2}, {}, {"start": 6}, {"momentum": 0.5}),
    "ren": tuple(
        {"prior_weight": w, "hidden_share": h, "robustness": r}
        for w, h, r in ((0.5, 0.0, 0.7), (1.0, 0.5, 0.7), (1.0, 0.5, 1.0), (0.0, 1.0, 1.0))
    ),
    "gpr": tuple(
        {"count_weight": w, "pseudo_least": least} for w in (0.001, 0.05) for least in (0.2, 0.4)
    ),
    "asset": tuple(
        {"asset_weight": w, "asset_step": step} for w in (0.3, 1.0) for step in (0.05, 0.3)
    ),
    "an_ls": tuple({"smoothing": v} for v in (0.05, 0.1, 0.2, 0.3)),
    "em": tuple({"entropy_weight": v} for v in (0.05, 0.1, 0.2, 0.4)),
    "apl": tuple(
        {"entropy_weight": a, "pseudo_weight": b} for a in (0.1, 0.2) for b in (0.02, 0.5)
    ),
    **{
        name: tuple({"rejected": v} for v in (0.1, 0.2, 0.4, 0.8))
        for name in ("ll_r", "ll_ct", "ll_cp")
    },
}  # fmt: skip
_CONSISTENCY = (
    {"weight": 0.1}, {"weight": 0.3}, {"weight": 1.0}, {"weight": 0.3, "distance": "l2"},
)  # fmt: skip
POOLINGS: tuple[Settings, ...] = (
    {"pooling": "lse", "pooling_strength": 0.3}, {"pooling": "lse", "pooling_strength": 1.0},
    {"pooling": "boost", "pooling_strength": 2.0}, {"pooling": "top"},
)  # fmt: skip


def league_methods(dataset: str, only: Sequence[str] = ()) -> list[str]:
    """The methods of the league: every term alone and with SCL, and AN and EN with CL."""
    usual = [name for name, spec in METHODS.items() if spec.consistency != "cl" or
             spec.term in ("an", "en")]  # fmt: skip
    return methods_of(dataset, list(dict.fromkeys(only)) or usual)


def shared_settings(dataset: str) -> Settings:
    """The settings that all methods of a league share, besides those of the profile."""
    return dict(SHARED.get(dataset, {}))


def search_settings(dataset: str, method: str = "an", chosen: Settings | None = None) -> Settings:
    """The settings of a run of the search, which makes as many steps as a final run.

    The search on photographs trains without the held-out images. With the usual number of epochs,
    it would make fewer steps. Its logits would be smaller, and it would choose too sharp poolings.

    Args:
        dataset: a key of LEAGUES.
        method: a key of METHODS.
        chosen: settings of the final run.

    Returns:
        `chosen`, report=val and the epochs, with all times and rates per epoch in proportion.
    """
    settings = shared_settings(dataset) | {"report": "val"} | (chosen or {})
    final = make_config(dataset, method, 0, LEAGUES[dataset], settings)
    longer = 1.0 if dataset == "scenes" else 1 / (1 - HELD_OUT)
    return settings | {
        "epochs": round(final.epochs * longer),
        "start": round(final.settings.start * longer),
        "ramp": final.settings.ramp * longer,
        "rejected": final.settings.rejected / longer,  # it counts per epoch
    }


def search_conditions(dataset: str) -> Settings:
    """What a kept search must have in common with a new one: "shared" settings, and its epochs."""
    epochs = search_settings(dataset)["epochs"]
    return {"shared": shared_settings(dataset), "search_epochs": epochs}


def grid(method: str, dataset: str) -> tuple[Settings, ...]:
    """The settings to try: those of the consistency if the method has one, else of the term."""
    spec = METHODS[method]
    if spec.consistency:
        return _CONSISTENCY
    rate = make_config(dataset, "an", 0, LEAGUES[dataset], shared_settings(dataset)).lr
    usual = (*({"lr": rate * factor} for factor in _RATES), {"weight_decay": 0.1})
    return _GRIDS.get(spec.term, usual)


def finished(config: RunConfig) -> Metrics:
    """The metrics of a run of a league.

    Raises:
        UserError: the run has not finished.
    """
    return Run.of(config).finished(f"./reproduce.sh --league --dataset {config.dataset}")


def members_of_full_training(dataset: str) -> Members:
    """Who trains the whole network.

    Raises:
        UserError: there is no full training of the data set.
    """
    if dataset not in FULL_TRAINING:
        raise UserError(
            f"there is no full training of '{dataset}'; there is of {', '.join(FULL_TRAINING)}"
        )
    return FULL_TRAINING[dataset]


def full_training_configs(
    dataset: str,
    best: Mapping[str, Settings],
    seeds: Sequence[int],
    data_root: str | Path | None = None,
) -> dict[str, list[RunConfig]]:
    """By method: the runs that train the whole network, one for every seed.

    The paper's methods have the settings of the profile, which validation data chose. The others
    have what the search with the frozen network chose, because a search with full training would
    take days.

    Args:
        dataset: a key of FULL_TRAINING.
        best: method -> settings that the league chose.
        seeds: seeds of the runs.
        data_root: see `paths.data_root`.

    Raises:
        UserError: there is no such training, or the data are missing.
    """
    papers = members_of_full_training(dataset).papers
    found = {}
    for method in dict.fromkeys((*papers, *best)):
        chosen = {} if method in PAPER_METHODS else best[method]
        settings = {k: v for k, v in chosen.items() if k not in _OF_PROFILE}
        configs = [make_config(dataset, method, s, "cpu", settings) for s in seeds]
        found[method] = identify_all(configs, data_root)
    return found


def run_league(league: League, jobs: int) -> list[Task]:
    """Runs all rounds without the finished runs; returns the failed tasks."""
    for title, configs in league.rounds():
        title = f"{league.dataset} {title}"
        failed = run_all(configs, league.data_root, jobs, title=title, in_turn=RUNS_IN_TURN)
        if failed:
            return failed
    return []


def _identity(row: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    """Method and settings of a row of the search, without the results."""
    return frozenset((k, v) for k, v in row.items() if k != "mAP_by_pooling")


class Step(NamedTuple):
    """A step of the search for one method. Later steps are known when earlier ones have finished.

    Attributes:
        method: a key of METHODS.
        base: gives the settings that all runs of the step have in common.
        tried: gives what the runs differ in.
        most_runs: the most runs that it can have.
        rests_on: the step whose results decide on base and tried.
    """

    method: str
    base: Callable[[], Settings]
    tried: Callable[[], Sequence[Settings]]
    most_runs: int
    rests_on: Step | None


def _with_mean(found: Mapping[str, Any]) -> float:
    """The mAP with the mean in prediction."""
    return float(found["mAP_by_pooling"]["mean"])


class League:
    """The league of one data set: lists the next runs, and chooses settings by finished runs.

    Args:
        dataset: a key of LEAGUES.
        methods: keys of METHODS; see `league_methods`.
        seeds: seeds of the final runs.
        data_root: see `paths.data_root`.
        search: rows of a kept search (see `collect` in analysis/league.py). A method with a row for
            each of its settings is not searched again.

    Raises:
        UserError: a name is unknown, or the data are missing.
    """

    def __init__(
        self,
        dataset: str,
        methods: Sequence[str] = (),
        seeds: Sequence[int] = SEEDS,
        data_root: str | Path | None = None,
        search: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        if dataset not in LEAGUES:
            raise UserError(f"there is no league of '{dataset}'; there is of {', '.join(LEAGUES)}")
        self.dataset, self.profile = dataset, LEAGUES[dataset]
        self.methods = league_methods(dataset, methods)
        self.seeds, self.data_root = tuple(dict.fromkeys(seeds)), data_root
        self._kept = {_identity(row): row for row in search}
        self._contents: dict[tuple[str, int], str] = {}  # fingerprint of the data
        self.parts = range(1, PARTS if dataset != "scenes" else 1)  # besides the first part
        shared = shared_settings(dataset)
        configs = [
            self._config("an", 0, {**shared, "report": "val", "held_out": part})
            for part in (0, *self.parts)
        ]
        configs.append(self._config("an", 0, shared))
        self._contents = {
            (c.report, c.held_out): identify_data(c, data_root).content for c in configs
        }

    def rounds(self) -> Iterable[tuple[str, list[RunConfig]]]:
        """The rounds of runs with their titles; a round needs the runs of the earlier rounds."""
        terms = list(dict.fromkeys(self._term_method(m) for m in self.methods))
        with_consistency = [m for m in self.methods if METHODS[m].consistency]
        for title, methods, first, repeats in (
            ("terms", terms, self.search, self.repeats),
            ("consistency", with_consistency, self.search, self.repeats),
            ("pooling", self.methods, self.pooling_search, self.pooling_repeats),
        ):
            yield f"search: {title}", self._missing(map(first, methods))
            if self.parts:
                yield f"search: {title}, other parts", self._missing(map(repeats, methods))
        yield "final", [c for m in self.methods for c in self.final_configs(m)]

    def most_runs(self) -> int:
        """The number of all runs, if every method chooses another pooling than the mean."""
        missing = [step for step in self.steps() if not self._is_kept(step)]
        return sum(step.most_runs for step in missing) + 2 * len(self.seeds) * len(self.methods)

    def steps(self) -> list[Step]:
        """All steps of the search, method by method; a term comes before what rests on it."""
        found = []
        for method in dict.fromkeys([*map(self._term_method, self.methods), *self.methods]):
            found += [self.search(method), self.repeats(method)]
            if method in self.methods:
                found += [self.pooling_search(method), self.pooling_repeats(method)]
        return found

    def search(self, method: str) -> Step:
        """Tries the settings of a method with the mean."""
        term = self._term_method(method)
        return Step(
            method,
            lambda: self._base_settings(method),
            lambda: grid(method, self.dataset),
            SEARCHED,
            rests_on=None if term == method else self.repeats(term),
        )

    def repeats(self, method: str) -> Step:
        """Repeats the best of those settings with the other held-out parts."""
        return self._repeat(self.search(method), lambda: self._best(method))

    def pooling_search(self, method: str) -> Step:
        """Tries other poolings than the mean with the chosen settings of a method."""
        return Step(
            method,
            lambda: self.chosen_settings(method),
            lambda: POOLINGS,
            len(POOLINGS),
            rests_on=self.repeats(method),
        )

    def pooling_repeats(self, method: str) -> Step:
        """Repeats the best of those poolings with the other held-out parts."""
        # The mean has been repeated with the settings.
        return self._repeat(
            self.pooling_search(method),
            lambda: [row for row in self._best_poolings(method) if row[0]],
        )

    def configs(self, step: Step) -> list[RunConfig]:
        """The runs of a step of the search."""
        base = step.base()
        tried = [search_settings(self.dataset, step.method, base | s) for s in step.tried()]
        return [self._config(step.method, 0, settings) for settings in tried]

    def results(self, step: Step) -> list[Tried]:
        """The tried settings of a step, and what each gave on validation data.

        Raises:
            UserError: a run of the search has not finished.
        """
        if self._is_kept(step):
            return [(s, self._kept[_identity({"method": step.method, **s})]) for s in step.tried()]
        return [(s, finished(c)) for s, c in zip(step.tried(), self.configs(step), strict=True)]

    def chosen_settings(self, method: str) -> Settings:
        """The best of a method's settings, by mAP on validation data.

        On photographs, the mean over the held-out parts decides between the FINALISTS best.
        """
        return self._base_settings(method) | self._choice(method)[0]

    def chosen_pooling(self, method: str) -> tuple[Settings, str]:
        """The best poolings of a method, in training and prediction; see `chosen_settings`."""
        mean = self._choice(method)[1]
        repeated = iter(self.results(self.pooling_repeats(method)))
        found = [
            (fmean(part["mAP_by_pooling"][name] for part in parts), pooling, name)
            for pooling, first in self._best_poolings(method)
            for parts in [self._on_all_parts(first, repeated) if pooling else mean]
            for name in first["mAP_by_pooling"]
        ]
        _, pooling, name = max(found, key=lambda row: row[0])
        return pooling, name

    def final_configs(self, method: str, pooling: Settings | None = None) -> list[RunConfig]:
        """The final runs of a method with one training pooling; None means all final runs."""
        if pooling is None:
            both = ({}, self.chosen_pooling(method)[0])
            return [c for p in both for c in self.final_configs(method, p)]
        settings = self.chosen_settings(method) | pooling
        return [self._config(method, seed, settings) for seed in self.seeds]

    def _best(self, method: str) -> list[Tried]:
        """The FINALISTS best of a method's settings, by the first held-out part."""
        found = self.results(self.search(method))
        return sorted(found, key=lambda row: -_with_mean(row[1]))[:FINALISTS]

    def _best_poolings(self, method: str) -> list[Tried]:
        """The FINALISTS best poolings, by the first held-out part; {} is the mean."""
        mean = ({}, self._choice(method)[1][0])
        found = [mean, *self.results(self.pooling_search(method))]
        return sorted(found, key=lambda row: -max(row[1]["mAP_by_pooling"].values()))[:FINALISTS]

    def _choice(self, method: str) -> tuple[Settings, list[Mapping[str, Any]]]:
        """The best of a method's settings, and its results on all held-out parts."""
        repeated = iter(self.results(self.repeats(method)))
        found = [(s, self._on_all_parts(first, repeated)) for s, first in self._best(method)]
        return max(found, key=lambda row: fmean(map(_with_mean, row[1])))

    def _repeat(self, step: Step, best: Callable[[], Iterable[Tried]]) -> Step:
        """The step that repeats the best of an earlier step with the other held-out parts."""
        return Step(
            step.method,
            step.base,
            lambda: [
                {**settings, "held_out": part} for settings, _ in best() for part in self.parts
            ],
            FINALISTS * len(self.parts),
            rests_on=step,
        )

    def _on_all_parts(
        self, first: Mapping[str, Any], repeated: Iterator[Tried]
    ) -> list[Mapping[str, Any]]:
        return [first, *(next(repeated)[1] for _ in self.parts)]

    def _is_kept(self, step: Step) -> bool:
        """Whether the kept search has a step, and all that it rests on."""
        if step.rests_on is not None and not self._is_kept(step.rests_on):
            return False
        return all(_identity({"method": step.method, **s}) in self._kept for s in step.tried())

    def _missing(self, steps: Iterable[Step]) -> list[RunConfig]:
        """The runs of the steps that the kept search lacks."""
        return [c for step in steps if not self._is_kept(step) for c in self.configs(step)]

    def _base_settings(self, method: str) -> Settings:
        """The settings that a method shares with all, or takes from the search of its term."""
        term = self._term_method(method)
        return shared_settings(self.dataset) if term == method else self.chosen_settings(term)

    def _term_method(self, method: str) -> str:
        return METHODS[method].term

    def _config(self, method: str, seed: int, settings: Settings) -> RunConfig:
        config = make_config(self.dataset, method, seed, self.profile, settings)
        return config.replace(content=self._contents.get((config.report, config.held_out), ""))
