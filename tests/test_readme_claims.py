"""What the README says of the leagues is what the kept references say."""

from functools import cache

import pandas as pd
import pytest

from spcl_lib.analysis.full_training import (
    full_training_sentences,
    full_training_table,
    load_full_training,
    rank_correlation,
)
from spcl_lib.analysis.league import (
    consistency_gains,
    entries_of,
    league_table,
    leagues,
    pooling_scores,
)
from spcl_lib.analysis.measurement_files import load_measurements
from spcl_lib.analysis.measurement_sentences import sentences_on_ours
from spcl_lib.methods import title_of
from spcl_lib.runs.league import FULL_TRAINING
from spcl_lib.system import paths

README = " ".join((paths.project() / "README.md").read_text().split())
LEAGUES = leagues()
MEAN, OWN = False, True


@cache
def shares(dataset, pooling):
    """The share of the gap that each method closes, by its title."""
    return league_table(LEAGUES[dataset], pooling)["gap_closed"]


def verdict(dataset, pooling, method):
    """Against the best loss of another paper: "ahead", "level" or "behind"."""
    low, high = entries_of(LEAGUES[dataset], pooling)[method]["against_best"]
    return "ahead" if low > 0 else "behind" if high < 0 else "level"


def interval(dataset, pooling, method):
    low, high = entries_of(LEAGUES[dataset], pooling)[method]["against_best"]
    return f"{low:.1f} to {high:.1f}"


@pytest.mark.parametrize(
    ("dataset", "pooling", "expected"),
    [
        ("scenes", MEAN, {"en_scl": "behind", "ren": "level", "ren_scl": "level",
                          "gr_scl": "ahead"}),
        ("scenes", OWN, {"en_scl": "behind", "ren": "ahead", "ren_scl": "ahead"}),
        ("voc2007", MEAN, {"en_scl": "behind", "ren": "level", "ren_scl": "level"}),
        ("voc2007", OWN, {"en_scl": "behind", "ren": "ahead", "ren_scl": "ahead"}),
        ("coco18", MEAN, {"en_scl": "level", "ren": "level", "ren_scl": "ahead"}),
        ("coco18", OWN, {"en_scl": "level", "ren": "level", "ren_scl": "ahead"}),
    ],
)  # fmt: skip
def test_the_readmes_words_on_who_is_ahead_are_the_intervals(dataset, pooling, expected):
    assert {m: verdict(dataset, pooling, m) for m in expected} == expected


def test_what_scl_adds_on_photographs_is_settled_as_the_readme_says():
    signs = {d: consistency_gains(LEAGUES[d])["sign"] for d in ("voc2007", "coco18")}
    for each in signs.values():
        assert [each[term] for term in ("REN", "EN", "AN")] == [1, 0, -1]


@pytest.mark.parametrize(("dataset", "profile"), [("scenes", "cpu"), ("voc2007", "frozen")])
def test_ours_know_crops_and_find_objects_better_than_scl(dataset, profile):
    said = sentences_on_ours(load_measurements("reference", dataset, profile))
    assert sum(" beats " in s or " better than SCL's" in s for s in said) == len(said) == 6
    assert not any(s.startswith("Not settled") for s in said)
    assert "GR + SCL and REN + SCL know better than SCL's" in README


def test_the_readmes_words_on_full_training_are_those_of_the_references():
    said = {d: full_training_sentences(load_full_training(d), LEAGUES[d]) for d in FULL_TRAINING}
    assert any(s.startswith("EN + SCL is ahead of the best loss") for s in said["coco18"])
    assert any(s.startswith("EN + SCL is not settled against") for s in said["voc2007"])


def claims():
    """Parts of the README's sentences, made of the references."""
    ren = [shares(d, p)["REN + SCL"] for d in LEAGUES for p in (MEAN, OWN)]
    gains = {d: consistency_gains(content)["gain"] for d, content in LEAGUES.items()}
    helped = gains["scenes"].drop(["REN", "GPR"])
    whole = full_training_table(load_full_training("voc2007"), LEAGUES["voc2007"])
    first, second = whole.drop("Full").index[:2]
    share = whole["gap_closed"].round().astype(int)
    yield (
        f"by {interval('scenes', OWN, 'ren_scl')} on scenes, {interval('voc2007', OWN, 'ren_scl')} "
        f"on VOC 2007, {interval('coco18', OWN, 'ren_scl')} on COCO)"
    )
    yield f"ahead on COCO ({interval('coco18', MEAN, 'ren_scl')})"
    yield f"It closes {min(ren):.0f} to {max(ren):.0f} % of the gap"
    yield (
        f"(by {interval('scenes', MEAN, 'gr_scl')}) and closes "
        f"{shares('scenes', MEAN)[title_of('gr_scl')]:.0f} % of the gap"
    )
    bound, best = (
        [f"{shares(d, MEAN)[m]:.0f}" for d, m in zip(LEAGUES, methods, strict=True)]
        for methods in (["IUN"] * 3, ["GR + SCL", "REN + SCL", "REN + SCL"])
    )
    yield "it closes {}, {} and {} % of the gap".format(*bound)
    yield "the best of ours, from single labels, {}, {} and {} %".format(*best)
    bound, best = shares("scenes", OWN)[["IUN", "REN"]]
    yield f"With own poolings IUN stays ahead on scenes, {bound:.0f} against {best:.0f} %"
    scores = [pooling_scores(LEAGUES[d], final=True) for d in ("voc2007", "coco18")]
    added = pd.concat([s["lse:0.3"] - s["mean"] for s in scores])
    yield f"adds {added.min():.1f} to {added.max():.1f} points of mAP to every method on VOC"
    table = league_table(LEAGUES["scenes"])
    rivals = table[(table["whose"] == "competitor") & (table["mAP"] > table.loc["EN + SCL", "mAP"])]
    *names, last = rivals.index
    yield f"where {', '.join(names)} and {last} are better than EN + SCL with the mean"
    of_all = f"{len(helped)} of the {len(gains['scenes'])} losses"
    yield f"On scenes SCL adds {helped.min():.1f} to {helped.max():.1f} points to {of_all}"
    yield f"takes {-gains['scenes']['GPR']:.1f} from GPR"
    to_ren, to_an = ([gains[d][term] for d in ("voc2007", "coco18")] for term in ("REN", "AN"))
    yield (
        f"On VOC 2007 and COCO it adds {to_ren[0]:.1f} and {to_ren[1]:.1f} to REN, nothing to EN, "
        f"and takes {-to_an[0]:.1f} and {-to_an[1]:.1f} from AN"
    )
    yield (
        f"On VOC 2007 ({len(whole)} methods, rank correlation {rank_correlation(whole):.2f}), "
        f"{first} and {second} come first ({whole['mAP'].iloc[1]:.1f}, {share[first]} and "
        f"{share[second]} %), EN + SCL closes {share['EN + SCL']} %, level with the best loss of "
        f"another paper, and REN + SCL {share['REN + SCL']} %"
    )
    coco = full_training_table(load_full_training("coco18"), LEAGUES["coco18"])
    share, first = coco["gap_closed"].round().astype(int), coco.drop("Full").index[0]
    yield (
        f"On COCO ({len(coco)} methods, rank correlation {rank_correlation(coco):.2f}), {first} "
        f"comes first ({coco.loc[first, 'mAP']:.1f}, {share[first]} % of the gap). It is ahead of "
        f"the frozen network's best losses of other papers, LL-Ct and LL-Cp ({share['LL-Ct']} and "
        f"{share['LL-Cp']} %), as the paper claims; REN + SCL closes {share['REN + SCL']} %."
    )
    gain = [table.loc["SCL", "mAP"] - table.loc["AN", "mAP"] for table in (coco, whole)]
    yield f"SCL adds {gain[0]:.1f} to AN on COCO and {gain[1]:.1f} on VOC 2007."


@pytest.mark.parametrize("claim", list(claims()))
def test_the_readmes_numbers_on_the_leagues_are_those_of_the_references(claim):
    assert claim in README
