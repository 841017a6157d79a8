"""Says in words what was measured of crop recovery and localisation.

No sentence is written in advance. MARGIN_RULE computes each one from the numbers.
"""

from __future__ import annotations

from spcl_lib.analysis.measurement_files import Measurements
from spcl_lib.analysis.measurement_tables import (
    QUESTIONS,
    SUPERVISION_NAMES,
    differences,
    rows_of,
    sources_in,
    values,
)
from spcl_lib.analysis.statistics import (
    DIFFERENCE_RULE,
    Rows,
    mean,
    mean_and_spread,
    percent,
    sign_of_difference,
)
from spcl_lib.analysis.visibility import LEAST
from spcl_lib.methods import title_of
from spcl_lib.runs.ablation import LEAGUES_BEST

HEADLINES = 3  # the first sentences on crop recovery
WIDE = 10.0  # percent points of a wide margin; our choice
MARGIN_RULE = f"{DIFFERENCE_RULE} A wide margin is {WIDE:g} points or more."
METRICS = {
    "AUROC": "AUROC", "AP": "AP", "AP_wrong": "AP of finding the wrong labels",
    "ECE": "calibration error, less is better",
}  # fmt: skip


# --- crop recovery --------------------------------------------------------------------------------


def recovery_sentences(found: Measurements) -> list[str]:
    """Sentences on whether the heatmap knows what the view shows.

    The first HEADLINES say the most: how often the label is wrong, the claim, and corrections.
    """
    source = heatmap_source(found)
    if not source:
        return [label_wrongness(found), recovery_claim(found)]
    pairs = (
        ("labelled", "AUROC", "an"), ("labelled", "AUROC", "cl"),
        ("labelled", "AUROC", f"{source}_whole"), ("labelled", "AP_wrong", "an"),
        ("unlabelled", "AUROC", "an"), ("unlabelled", "AUROC", "cl"),
        ("all", "AP", "an"), ("all", "AUROC", "an"), ("all", "ECE", "an"),
    )  # fmt: skip
    compared = [compare_supervision(found, g, m, source, other)[0] for g, m, other in pairs]
    own, *others = corrections(found, first=source) or [f"No decisions of {title_of(source)}."]
    return [label_wrongness(found), recovery_claim(found), own, *compared, *others]


def heatmap_source(found: Measurements) -> str:
    """The source with heatmaps that the sentences compare: SCL, else EN + SCL, else ""."""
    return next((s for s in ("scl", "en_scl") if s in sources_in(found)), "")


def label_wrongness(found: Measurements) -> str:
    """Says how often the given label is wrong for the crop, with large and with small crops."""
    scale = found["about"]["scale_min"]
    largest = max(r["scale_min"] for r in found["wrongness"])
    all_large, all_here = (
        values(rows_of(found, "wrongness", scale_min=s), "wrong") for s in (largest, scale)
    )
    large, here = mean_and_spread(all_large), mean_and_spread(all_here)
    return (
        f"With crops down to {percent(scale)} of the image the label is wrong for {here} % of the "
        f"views (less than {percent(LEAST)} of its objects visible)"
        + (f"; with crops from {percent(largest)} on, for {large} %." if any(all_large) else ".")
    )


def compare_supervision(
    found: Measurements, group: str, metric: str, source: str, other: str
) -> tuple[str, int]:
    """Says whether `source` answers a question of QUESTIONS better than `other`.

    Returns:
        A sentence; and 1 for better, -1 for worse, 0 for not settled or not measured.
    """
    part = {"group": group, "least": LEAST}
    rows = [rows_of(found, "sources", source=s, **part) for s in (source, other)]
    names = [SUPERVISION_NAMES.get(s, "same heatmap read whole") for s in (source, other)]
    question = f"{QUESTIONS[group].capitalize()} ({METRICS[metric]})"
    gain = differences(*rows, metric)
    if not gain:
        return f"{question}: no verdict on the {names[0]} against the {names[1]}.", 0
    first, second = (mean_and_spread(values(r, metric)) for r in rows)
    numbers = f"{first} against {second}, difference {mean_and_spread(gain, '+')}"
    better = sign_of_difference(gain) * (-1 if metric == "ECE" else 1)
    if better == 0:
        return f"{question}: not settled, {names[0]} against {names[1]}: {numbers}.", 0
    verb = "beats" if better > 0 else "does worse than"
    wide = " by a wide margin" if abs(mean(gain)) >= WIDE else ""
    return f"{question}: the {names[0]} {verb} the {names[1]}{wide}: {numbers}.", better


def corrections(found: Measurements, first: str) -> list[str]:
    """Says for every method how many wrong labels its target corrects, and right ones it spoils."""
    rows = rows_of(found, "decisions", images="all", fall=found["about"]["fall"])
    sentences = []
    methods = dict.fromkeys(r["method"] for r in rows)
    for method in sorted(methods, key=lambda m: m != first):
        part = [r for r in rows if r["method"] == method]
        corrected, spoiled = (mean_and_spread(values(part, c)) for c in ("corrected", "spoiled"))
        sentences.append(
            f"At the end of training, the target of {title_of(method)} corrects {corrected} % of "
            f"the wrong labels and spoils {spoiled} % of the right ones."
        )
    return sentences


def recovery_claim(found: Measurements) -> str:
    """Says whether the paper's third claim holds, by the AUROC of the labelled class."""
    source = heatmap_source(found)
    text = "The claim that SCL recovers the right supervision when the crop has cut the object out"
    if not source:
        return f"{text} is not tested: no run of a method with heatmaps."
    part = {"group": "labelled", "least": LEAST}
    signs = [compare_supervision(found, "labelled", "AUROC", source, o)[1] for o in ("an", "cl")]
    if min(signs) < 0:
        return f"{text} does not hold here: another source knows the view better."
    if min(signs) == 0:
        return f"{text} is not settled here: it needs runs of CL, and seeds that agree."
    own, raw, cl = (
        mean_and_spread(values(rows_of(found, "sources", source=s, **part), "AUROC"))
        for s in (source, "an", "cl")
    )
    return (
        f"{text} holds here: its target knows better whether the view shows the labelled class "
        f"(AUROC {own}) than the raw label ({raw}) and than CL's average ({cl})."
    )


# --- the effect on the result ---------------------------------------------------------------------


def crop_scale_sentences(found: Measurements) -> list[str]:
    """Says for every other method how small crops change its gain over AN."""
    rows = found["crop_scale"]
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m != "an"]
    return [_gain_over_scales(rows, m) for m in methods]


def _gain_over_scales(rows: Rows, method: str) -> str:
    gains = {}
    for scale in sorted({r["scale_min"] for r in rows}, reverse=True):
        part = [r for r in rows if r["scale_min"] == scale]
        mine, an = ([r for r in part if r["method"] == m] for m in (method, "an"))
        gains[scale] = {r["seed"]: d for r in mine for d in differences([r], an, "mAP")}
    scales = [s for s, by_seed in gains.items() if by_seed]
    name = f"{title_of(method)}'s gain over AN"
    if len(scales) < 2:
        return f"{name}: no verdict, it needs runs of both with at least two crop scales."
    large, small = scales[0], scales[-1]
    change = [gains[small][s] - gains[large][s] for s in gains[small] if s in gains[large]]
    says = {1: "grows", -1: "shrinks", 0: "neither grows nor shrinks beyond doubt"}[
        sign_of_difference(change)
    ]
    return (
        f"{name} {says} as crops get smaller: {mean_and_spread(list(gains[large].values()), '+')} "
        f"mAP with crops from {percent(large)} of the image, "
        f"{mean_and_spread(list(gains[small].values()), '+')} from {percent(small)}."
    )


# --- localisation ---------------------------------------------------------------------------------


def localisation_sentences(found: Measurements) -> list[str]:
    """Says whether heatmaps find unlabelled objects, and whether they are better than AN's maps."""
    source = heatmap_source(found)
    if not source:
        return ["No verdict on the heatmaps' localisation: no run of a method that keeps them."]
    heat = {"method": source, "maps": "heatmaps", "split": "train"}
    hidden = rows_of(found, "localisation", group="unlabelled", **heat)
    hit, chance = (mean_and_spread(values(hidden, c)) for c in ("pointing", "pointing_chance"))
    sentences = [
        f"{title_of(source)}'s heatmaps point at objects that were never labelled in {hit} % of "
        f"the cases (chance: {chance} %)."
    ]
    cases = (
        ("train", "heatmaps", "heatmaps lie on training images' objects"),
        ("report", "network", "maps find objects in new images"),
    )
    for split, maps, what in cases:
        rows = [
            rows_of(found, "localisation", method=m, maps=k, split=split, group="all")
            for m, k in ((source, maps), ("an", "network"))
        ]
        sentences += [_compare_maps(f"{title_of(source)}'s {what}", *rows, c) for c in _MAP_METRICS]
    return sentences


def sentences_on_ours(found: Measurements) -> list[str]:
    """Says whether the heatmaps and maps of the league's best are better than those of SCL."""
    sentences = []
    for method in (m for m in LEAGUES_BEST if m in sources_in(found)):
        sentences.append(compare_supervision(found, "labelled", "AUROC", method, "scl")[0])
        rows = [
            rows_of(found, "localisation", method=m, maps="network", split="report", group="all")
            for m in (method, "scl")
        ]
        what = f"{title_of(method)}'s maps find objects in new images"
        sentences += [_compare_maps(what, *rows, c, "SCL") for c in _MAP_METRICS]
    return sentences


_MAP_METRICS = {"pointing": "pointing game", "iou": "IoU"}


def _compare_maps(what: str, rows: Rows, others: Rows, metric: str, other: str = "AN") -> str:
    gain = differences(rows, others, metric)
    if not gain:
        return f"No verdict on whether {what} better than {other}'s."
    verdict = {1: f"{what} better than {other}'s", -1: f"{what} less well than {other}'s",
               0: f"Not settled whether {what} better than {other}'s"}  # fmt: skip
    says = verdict[sign_of_difference(gain)]
    numbers = " against ".join(mean_and_spread(values(r, metric)) for r in (rows, others))
    return f"{says} ({_MAP_METRICS[metric]}): {numbers} %, {mean_and_spread(gain, '+')}."
