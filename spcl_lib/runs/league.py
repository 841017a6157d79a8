"""The league: every method on the same labels, with the same small search on held-out data.

1. All methods share backbone, views (but Softmax's), batch size and observed labels.
2. Held-out data with all labels (`report=val`, seed 0) decide all choices. Every method tries
   SEARCHED settings: of its own parameters in _GRIDS, or of the optimiser; then other LENGTHS of
   training. A method with SCL takes the choices of its term, and tries as many settings of SCL.
   Every method then tries POOLINGS in training, and all poolings in prediction. One held-out part
   of photographs cannot tell the best from the second best: the FINALISTS best are repeated with
   other parts, and the mean over the parts decides.
3. The chosen settings train on five seeds, and are evaluated once on the final data: with the mean
   in training and prediction, and with the two chosen poolings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from spcl_lib.config import RunConfig
from spcl_lib.data.image_set import HELD_OUT, PARTS
from spcl_lib.methods import METHODS
from spcl_lib.runs.schedule import Task, run_all
from spcl_lib.runs.settings import make_config, methods_of
from spcl_lib.runs.splits import identify_data
from spcl_lib.runs.store import Run
from spcl_lib.system.errors import UserError, unknown_name

Settings = dict[str, Any]
ByPooling = Mapping[str, float]  # mAP with every pooling in prediction

# data set -> profile of the league
LEAGUES = {"scenes": "cpu", "voc2007": "frozen", "coco18": "frozen"}
# All methods that could choose the rate took this one, or one still farther from the profile's:
# those that search other parameters would be judged too low.
SHARED: dict[str, Settings] = {"scenes": {"lr": 4e-3}, "coco18": {"lr": 1e-3}}
SEEDS = (0, 1, 2, 3, 4)
# Those that SCL joins: the paper's losses, ours, and two of other papers.
WITH_SCL = ("an", "en", "gpr", "gr", "ren", "cells", "en_cells")
SEARCHED = 4  # tried settings of every method, before the poolings
LENGTHS = (0.5, 2.0)  # times the profile's epochs: softmax needs fewer than others, for one
FINALISTS = 2  # the best of every step, which are repeated with other held-out parts


def _each(name: str, *values: float) -> tuple[Settings, ...]:
    return tuple({name: value} for value in values)


def _pairs(first: str, second: str, *values: tuple[float, float]) -> tuple[Settings, ...]:
    return tuple({first: a, second: b} for a, b in values)


# The published numbers of GR for VOC, and for COCO; crops, and whole images.
ROBUST: tuple[Settings, ...] = ({}, {"robust_slope": 10.0, "robust_offset": -8.0})
_VIEWS: tuple[Settings, ...] = ({}, {"scale_min": 1.0})
# They go with two rates each, as times of the usual one.
_WITH_RATES: dict[str, tuple[tuple[Settings, ...], float, float]] = {
    "gr": (ROBUST, 0.5, 2.0),
    **dict.fromkeys(("softmax", "softmax_ls"), (_VIEWS, 0.5, 1.0)),
}
_GRIDS: dict[str, tuple[Settings, ...]] = {
    "en": ({"start": 2}, {}, {"start": 6}, {"momentum": 0.5}),
    "ren": tuple(
        {"prior_weight": w, "hidden_share": h, "robustness": r}
        for w, h, r in ((0.5, 0.0, 0.7), (1.0, 0.5, 0.7), (1.0, 0.5, 1.0), (0.0, 1.0, 1.0))
    ),
    "gpr": tuple(
        own | robust
        for own in _pairs("count_weight", "pseudo_least", (0.001, 0.4), (0.05, 0.2))
        for robust in ROBUST
    ),
    "asset": _pairs("asset_weight", "asset_step", (0.3, 0.05), (0.3, 0.3), (1.0, 0.05), (1.0, 0.3)),
    "apl": _pairs("entropy_weight", "pseudo_weight",
                  (0.1, 0.02), (0.1, 0.5), (0.2, 0.02), (0.2, 0.5)),
    "an_ls": _each("smoothing", 0.05, 0.1, 0.2, 0.3),
    "em": _each("entropy_weight", 0.05, 0.1, 0.2, 0.4),
    **dict.fromkeys(("ll_r", "ll_ct", "ll_cp"), _each("rejected", 0.1, 0.2, 0.4, 0.8)),
}  # fmt: skip
_CONSISTENCY = (*_each("weight", 0.1, 0.3, 1.0), {"weight": 0.3, "distance": "l2"})
POOLINGS: tuple[Settings, ...] = (
    {"pooling": "lse", "pooling_strength": 0.3}, {"pooling": "lse", "pooling_strength": 1.0},
    {"pooling": "boost", "pooling_strength": 2.0}, {"pooling": "top"},
)  # fmt: skip
_BY_OWN: dict[str, tuple[Settings, ...]] = {"": POOLINGS, "cells": ({"pooling": "cells_sure"},)}


def league_methods(dataset: str, only: Sequence[str] = ()) -> list[str]:
    """The methods of the league: every term alone, AN and EN with CL, and WITH_SCL with SCL."""
    for name in only:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    joined = {"": METHODS, "cl": ("an", "en"), "scl": WITH_SCL}
    usual = [name for name, spec in METHODS.items() if spec.term in joined[spec.consistency]]
    return methods_of(dataset, list(dict.fromkeys(only)) or usual)


def search_settings(dataset: str, method: str, chosen: Settings) -> Settings:
    """The settings of a run of the search for a final run with the settings `chosen`.

    The search on photographs trains without the held-out images. With the usual number of epochs
    it would make fewer steps, its logits would be smaller, and it would choose too sharp poolings.
    So it has more epochs.
    """
    longer = 1.0 if dataset == "scenes" else 1 / (1 - HELD_OUT)
    no_curve = {"eval_every": 1000}  # it would take a sixth of the time
    return lengthen(dataset, method, chosen, longer) | no_curve | {"report": "val"}


def lengthen(dataset: str, method: str, chosen: Settings, factor: float) -> Settings:
    """The settings with `factor` times the epochs, and all times and rates in proportion."""
    usual = make_config(dataset, method, 0, LEAGUES[dataset], chosen)
    return chosen | {
        "epochs": round(usual.epochs * factor),
        "start": round(usual.settings.start * factor),
        "ramp": usual.settings.ramp * factor,
        "rejected": usual.settings.rejected / factor,  # it counts per epoch
    }


def own_pooling(method: str) -> str:
    """How a method is read that has chosen no pooling: by the mean, or as its term needs."""
    return METHODS[method].row.pooling or "mean"


def grid(method: str, dataset: str) -> tuple[Settings, ...]:
    """The settings to try: those of the consistency if the method has one, else of the term."""
    spec = METHODS[method]
    if spec.consistency:
        return _CONSISTENCY
    rate = make_config(dataset, "an", 0, LEAGUES[dataset], SHARED.get(dataset)).lr
    if spec.term in _WITH_RATES:
        settings, *factors = _WITH_RATES[spec.term]
        return tuple(own | {"lr": factor * rate} for own in settings for factor in factors)
    rates = _each("lr", rate / 2, rate, rate * 2)
    return _GRIDS.get(spec.term, (*rates, {"weight_decay": 0.1}))


class League:
    """The league of one data set: lists the next runs, and chooses settings by finished runs."""

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
        self.parts = range(PARTS if dataset != "scenes" else 1)  # the held-out parts
        self._contents: dict[tuple[str, int], str] = {}  # fingerprint of the data

    def rounds(self) -> Iterator[tuple[str, list[RunConfig]]]:
        """The rounds of runs with their titles; a round needs the runs of the earlier rounds."""
        known: set[RunConfig] = set()
        for title, configs in self._rounds():
            new = [config for config in dict.fromkeys(configs) if config not in known]
            known.update(new)
            yield title, new

    def _rounds(self) -> Iterator[tuple[str, list[RunConfig]]]:
        terms = [METHODS[m].term for m in self.methods]
        yield from self._search("settings", terms)
        yield from self._search("length", terms)
        yield from self._search("consistency", [m for m in self.methods if METHODS[m].consistency])
        yield from self._search("pooling", self.methods)
        final = [(m, s) for m in self.methods for s in (self.chosen(m), self.chosen_pooling(m)[0])]
        yield "final", [config for m, s in final for config in self.final_configs(m, s)]

    def _search(self, step: str, methods: Sequence[str]) -> Iterator[tuple[str, list[RunConfig]]]:
        tried = [self.config(m, s) for m in methods for s in self.tried(m, step)]
        yield f"search: {step}", tried
        if len(self.parts) > 1:
            best = [(m, s) for m in methods for s in self.best(m, step)]
            repeats = [self.config(m, s, part) for m, s in best for part in self.parts[1:]]
            yield f"search: {step}, other parts", repeats

    def most_runs(self) -> int:
        """The number of all runs, if every method chooses another pooling than the mean."""
        terms = len({METHODS[m].term for m in self.methods})
        combined = sum(bool(METHODS[m].consistency) for m in self.methods)
        repeats, most = FINALISTS * (len(self.parts) - 1), len(self.methods)
        searched = (terms + combined) * (SEARCHED + repeats)
        lengths = terms * (len(LENGTHS) + repeats)
        return searched + lengths + most * (len(POOLINGS) + repeats + 2 * len(self.seeds))

    def tried(self, method: str, step: str) -> list[Settings]:
        """What a step tries for a method, with the choices of the steps before it."""
        term = METHODS[method].term
        if step == "pooling":
            tried = _BY_OWN.get(METHODS[method].row.pooling, ())  # that which its term needs
            return [self.chosen(method) | pooling for pooling in ({}, *tried)]
        if step == "length":
            usual = self.chosen(method, "settings")
            return [usual, *(lengthen(self.dataset, method, usual, times) for times in LENGTHS)]
        base = SHARED.get(self.dataset, {}) if term == method else self.chosen(term)
        return [base | settings for settings in grid(method, self.dataset)]

    def best(self, method: str, step: str) -> list[Settings]:
        """The FINALISTS best of `tried` by the first held-out part, which others then repeat."""

        def score(settings: Settings) -> float:
            found = self.scores(method, settings)
            return max(found.values()) if step == "pooling" else found[own_pooling(method)]

        return sorted(self.tried(method, step), key=score, reverse=True)[:FINALISTS]

    def chosen(self, method: str, step: str = "") -> Settings:
        """The best of a method's settings after a step, with the mean; by default the last step."""
        step = step or ("consistency" if METHODS[method].consistency else "length")

        def score(settings: Settings) -> float:
            return self.scores(method, settings, self.parts)[own_pooling(method)]

        return max(self.best(method, step), key=score)

    def chosen_pooling(self, method: str) -> tuple[Settings, str]:
        """The best settings with poolings in training, and the best pooling in prediction."""
        scores = [
            (score, settings, name)
            for settings in self.best(method, "pooling")
            for name, score in self.scores(method, settings, self.parts).items()
        ]
        return max(scores, key=lambda row: row[0])[1:]

    def config(self, method: str, settings: Settings, part: int = 0) -> RunConfig:
        """A run of the search, for a final run with these settings."""
        settings = search_settings(self.dataset, method, settings)
        return self._config(method, 0, settings | {"held_out": part})

    def scores(self, method: str, settings: Settings, parts: Sequence[int] = (0,)) -> ByPooling:
        """The mAP on held-out data by pooling in prediction, the mean over some parts."""
        runs = [Run.of(self.config(method, settings, part)).finished() for part in parts]
        found = [run["mAP_by_pooling"] for run in runs]
        return {name: fmean(part[name] for part in found) for name in found[0]}

    def final_configs(self, method: str, settings: Settings) -> list[RunConfig]:
        """The final runs of a method with some settings."""
        return [self._config(method, seed, settings) for seed in self.seeds]

    def _config(self, method: str, seed: int, settings: Settings) -> RunConfig:
        config = make_config(self.dataset, method, seed, self.profile, settings)
        part = config.report, config.held_out
        if part not in self._contents:
            self._contents[part] = identify_data(config, self.data_root).content
        return replace(config, content=self._contents[part])


def run_league(league: League, jobs: int) -> list[Task]:
    """Runs all rounds without the finished runs; returns the failed tasks."""
    for title, configs in league.rounds():
        if failed := run_all(configs, league.data_root, jobs, title=f"{league.dataset} {title}"):
            return failed
    return []
