"""The league: every method on the same labels, with the same small search on held-out data.

1. All methods share backbone, views, epochs, batch size, usual learning rate and observed labels.
2. Held-out data (`report=val`, seed 0) decide all choices. Every method tries SEARCHED settings: of
   its own parameters, or of the optimiser if it has none. A method with SCL takes the choice of its
   term, and tries as many settings of SCL. Every method then tries POOLINGS in training, and all
   poolings in prediction. One held-out part of photographs cannot tell the best from the second
   best: the FINALISTS best are repeated with other parts, and the mean over the parts decides.
3. The chosen settings train on five seeds, and are evaluated once on the final data: with the mean
   in training and prediction, and with the two chosen poolings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
ByPooling = Mapping[str, float]  # mAP with every pooling in prediction

# data set -> profile of the league
LEAGUES = {"scenes": "cpu", "voc2007": "frozen", "coco18": "frozen"}
# Settings of all methods, where they differ from the profile's. On scenes, every method that could
# choose the rate took twice the profile's, for 1.4 to 2.7 points of mAP on validation data: those
# that search other parameters instead would be judged too low.
SHARED: dict[str, Settings] = {"scenes": {"lr": 4e-3}}
SEEDS = (0, 1, 2, 3, 4)
SEARCHED = 4  # tried settings of every method, before the poolings
FINALISTS = 2  # the best settings, and then poolings, that are repeated with other held-out parts
# data set of a frozen league -> who trains the whole network with profile cpu: methods of the
# paper, the number of the league's best besides them, and whether those may be another paper's
# loss with SCL
FULL_TRAINING: dict[str, tuple[tuple[str, ...], int, bool]] = {
    "voc2007": (PAPER_METHODS, 8, True),
    "coco18": (("an", "scl", "en_scl", "full"), 4, False),
}

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


def search_settings(dataset: str, method: str, chosen: Settings) -> Settings:
    """The settings of a run of the search, which makes as many steps as a final run.

    The search on photographs trains without the held-out images. With the usual number of epochs
    it would make fewer steps, its logits would be smaller, and it would choose too sharp poolings.

    Args:
        dataset: a key of LEAGUES.
        method: a key of METHODS.
        chosen: settings of the final run.

    Returns:
        `chosen`, report=val and the epochs, with all times and rates per epoch in proportion.
    """
    final = make_config(dataset, method, 0, LEAGUES[dataset], chosen)
    longer = 1.0 if dataset == "scenes" else 1 / (1 - HELD_OUT)
    return chosen | {
        "report": "val",
        "epochs": round(final.epochs * longer),
        "start": round(final.settings.start * longer),
        "ramp": final.settings.ramp * longer,
        "rejected": final.settings.rejected / longer,  # it counts per epoch
    }


def grid(method: str, dataset: str) -> tuple[Settings, ...]:
    """The settings to try: those of the consistency if the method has one, else of the term."""
    spec = METHODS[method]
    if spec.consistency:
        return _CONSISTENCY
    rate = make_config(dataset, "an", 0, LEAGUES[dataset], SHARED.get(dataset)).lr
    usual = (*({"lr": rate * factor} for factor in _RATES), {"weight_decay": 0.1})
    return _GRIDS.get(spec.term, usual)


class Step(NamedTuple):
    """A step of the search: what is tried for one method.

    Attributes:
        method: a key of METHODS.
        base: the settings that all its runs have in common.
        tried: what they differ in.
        score: the number that decides, of a run's mAP by pooling.
    """

    method: str
    base: Settings
    tried: Sequence[Settings]
    score: Callable[[ByPooling], float]


class League:
    """The league of one data set: lists the next runs, and chooses settings by finished runs.

    Args:
        dataset: a key of LEAGUES.
        methods: keys of METHODS; see `league_methods`.
        seeds: seeds of the final runs.
        data_root: see `paths.data_root`.

    Raises:
        UserError: a name is unknown, or the data are missing.
    """

    def __init__(
        self,
        dataset: str,
        methods: Sequence[str] = (),
        seeds: Sequence[int] = SEEDS,
        data_root: str | Path | None = None,
    ) -> None:
        if dataset not in LEAGUES:
            raise UserError(f"there is no league of '{dataset}'; there is of {', '.join(LEAGUES)}")
        self.dataset, self.profile = dataset, LEAGUES[dataset]
        self.methods = league_methods(dataset, methods)
        self.seeds, self.data_root = tuple(dict.fromkeys(seeds)), data_root
        self.parts = range(1, PARTS if dataset != "scenes" else 1)  # besides the first part
        self._contents: dict[tuple[str, int], str] = {}  # fingerprint of the data
        for settings in ({}, *({"report": "val", "held_out": part} for part in (0, *self.parts))):
            config = self._config("an", 0, settings)
            self._contents[config.report, config.held_out] = identify_data(
                config, data_root
            ).content

    def rounds(self) -> Iterator[tuple[str, list[RunConfig]]]:
        """The rounds of runs with their titles; a round needs the runs of the earlier rounds."""
        known: set[RunConfig] = set()

        def new(configs: Iterable[RunConfig]) -> list[RunConfig]:
            found = [c for c in dict.fromkeys(configs) if c not in known]
            known.update(found)
            return found

        terms = list(dict.fromkeys(METHODS[m].term for m in self.methods))
        combined = [m for m in self.methods if METHODS[m].consistency]
        for title, methods, step_of in (
            ("terms", terms, self.settings_step),
            ("consistency", combined, self.settings_step),
            ("pooling", self.methods, self.pooling_step),
        ):
            steps = [step_of(method) for method in methods]
            yield f"search: {title}", new(self.config(s, t) for s in steps for t in s.tried)
            if self.parts:
                best = [(s, t) for s in steps for t in self.finalists(s)]
                repeats = new(self.config(s, t, part) for s, t in best for part in self.parts)
                yield f"search: {title}, other parts", repeats
        yield "final", new(c for m in self.methods for c in self.final_configs(m))

    def most_runs(self) -> int:
        """The number of all runs, if every method chooses another pooling than the mean."""
        searched = len({*self.methods, *(METHODS[m].term for m in self.methods)})
        repeats, most = FINALISTS * len(self.parts), len(self.methods)
        return (
            searched * (SEARCHED + repeats)
            + most * (len(POOLINGS) + repeats)
            + most * 2 * len(self.seeds)
        )

    def steps(self) -> list[Step]:
        """All steps of a finished search; a term comes before what rests on it."""
        names = dict.fromkeys([*(METHODS[m].term for m in self.methods), *self.methods])
        return [*map(self.settings_step, names), *map(self.pooling_step, self.methods)]

    def settings_step(self, method: str) -> Step:
        """Tries the settings of a method, with the mean in training and prediction."""
        term = METHODS[method].term
        base = SHARED.get(self.dataset, {}) if term == method else self.chosen_settings(term)
        return Step(method, base, grid(method, self.dataset), lambda found: found["mean"])

    def pooling_step(self, method: str) -> Step:
        """Tries all poolings with the chosen settings of a method; the first, the mean, is done."""
        base, tried = self.chosen_settings(method), ({}, *POOLINGS)
        return Step(method, base, tried, lambda found: max(found.values()))

    def chosen_settings(self, method: str) -> Settings:
        """The best of a method's settings, by mAP on held-out data."""
        step = self.settings_step(method)
        means = [(step.score(self._mean_over_parts(step, s)), s) for s in self.finalists(step)]
        return step.base | max(means, key=lambda row: row[0])[1]

    def chosen_pooling(self, method: str) -> tuple[Settings, str]:
        """The best poolings of a method, in training and prediction; see `chosen_settings`."""
        step = self.pooling_step(method)
        found = [
            (score, pooling, name)
            for pooling in self.finalists(step)
            for name, score in self._mean_over_parts(step, pooling).items()
        ]
        return max(found, key=lambda row: row[0])[1:]

    def finalists(self, step: Step) -> list[Settings]:
        """The FINALISTS best of a step by the first held-out part, which others then repeat."""
        found = [(step.score(self.result(step, tried)), tried) for tried in step.tried]
        return [tried for _, tried in sorted(found, key=lambda row: -row[0])[:FINALISTS]]

    def config(self, step: Step, tried: Settings, part: int = 0) -> RunConfig:
        """A run of the search."""
        settings = search_settings(self.dataset, step.method, step.base | tried)
        return self._config(step.method, 0, settings | {"held_out": part})

    def result(self, step: Step, tried: Settings, part: int = 0) -> ByPooling:
        """The mAP of a run of the search on its held-out part, by pooling in prediction.

        Raises:
            UserError: the run has not finished.
        """
        return self.finished(self.config(step, tried, part))["mAP_by_pooling"]

    def final_configs(self, method: str, pooling: Settings | None = None) -> list[RunConfig]:
        """The final runs of a method with one training pooling; None means all final runs."""
        if pooling is None:
            both = ({}, self.chosen_pooling(method)[0])
            return [c for p in both for c in self.final_configs(method, p)]
        settings = self.chosen_settings(method) | pooling
        return [self._config(method, seed, settings) for seed in self.seeds]

    def finished(self, config: RunConfig) -> Metrics:
        """The metrics of a run of this league.

        Raises:
            UserError: the run has not finished.
        """
        return Run.of(config).finished(f"./reproduce.sh --league --dataset {self.dataset}")

    def _mean_over_parts(self, step: Step, tried: Settings) -> ByPooling:
        found = [self.result(step, tried, part) for part in (0, *self.parts)]
        return {name: fmean(part[name] for part in found) for name in found[0]}

    def _config(self, method: str, seed: int, settings: Settings) -> RunConfig:
        config = make_config(self.dataset, method, seed, self.profile, settings)
        return replace(config, content=self._contents.get((config.report, config.held_out), ""))


def run_league(league: League, jobs: int) -> list[Task]:
    """Runs all rounds without the finished runs; returns the failed tasks."""
    for title, configs in league.rounds():
        title = f"{league.dataset} {title}"
        failed = run_all(configs, league.data_root, jobs, title=title, in_turn=RUNS_IN_TURN)
        if failed:
            return failed
    return []


def full_training_configs(
    dataset: str,
    best: Mapping[str, Settings],
    seeds: Sequence[int],
    data_root: str | Path | None = None,
) -> dict[str, list[RunConfig]]:
    """By method: the runs that train the whole network, one for every seed.

    The paper's methods have the settings of the profile, which held-out data chose. The others have
    what the search with the frozen network chose, because a search with full training would take
    days; but rates and epochs do not carry over.

    Args:
        dataset: a key of FULL_TRAINING.
        best: method -> settings that the league chose.
        seeds: seeds of the runs.
        data_root: see `paths.data_root`.

    Raises:
        UserError: the data are missing.
    """
    found = {}
    for method in dict.fromkeys((*FULL_TRAINING[dataset][0], *best)):
        chosen = {} if method in PAPER_METHODS else best[method]
        kept = {k: v for k, v in chosen.items() if k not in ("lr", "weight_decay", "start")}
        configs = [make_config(dataset, method, s, "cpu", kept) for s in seeds]
        found[method] = identify_all(configs, data_root)
    return found
