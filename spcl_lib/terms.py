"""The supervised terms: TERMS has a row for each loss, with its name, its state and its source.

A new loss needs one file in losses/ and one row here. Then `NAME`, `NAME_cl` and `NAME_scl` are
methods. The state per image or class is a dictionary of tensors: the term's tables. The method
keeps the tables, and a run saves them in its checkpoint.

LAC and IGNORE have no row, because a term is a function of logits, labels and the step. LAC
compares a weak augmentation with a strong one, and features with a queue of features. IGNORE passes
an image through the network three times, once without the annotated object. Without these parts,
both losses are little more than AN, and their names would mislead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spcl_lib import losses
from spcl_lib.system import ranks

Tables = dict[str, Tensor]


def setting(default: Any, text: str, low: float = 0, high: float = 1e6, choices: Any = ()) -> Any:
    """A field with what a person may set: its default, a help text, and limits or choices."""
    metadata = {"help": text, "low": low, "high": high, "choices": tuple(choices)}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class MethodSettings:
    """Settings of the methods; the texts are in `spcl run --help`, too."""

    weight: float = setting(1.0, "lambda, weight of the consistency term after the ramp")
    start: int = setting(
        2, "epochs before consistency, EN, APL, Crisp and GPR's pseudo-labels begin; early "
        "predictions are noise",
    )  # fmt: skip
    ramp: float = setting(2.0, "epochs in which lambda grows linearly from 0")
    distance: str = setting("bce", "d of the consistency terms", choices=losses.DISTANCES)
    momentum: float = setting(0.8, "mu of the running averages", high=0.9999)
    bank_size: int = setting(16, "W, cells along each side of a heatmap", 1, 1024)
    bank_dtype: str = setting(
        "uint8", "type of a heatmap's values; for a momentum of 0.95 or more, not uint8: its noise "
        "is above 1/255, see HeatmapBank", choices=("uint8", "float16", "float32"),
    )  # fmt: skip
    bank_classes: int = setting(
        0, "K, classes per image whose heatmaps are kept, see SparseHeatmapBank; 0 = all"
    )
    expected_positives: float = setting(
        2.0, "k, positives per image that EN, EPR, ROLE and GPR expect, with the annotated one", 1
    )
    expected_count: str = setting(
        "given", "EN and GPR choose possible positives by k (given), or by the sum of the class "
        "priors, which Crisp's rule estimates from the running averages (estimated)",
        choices=("given", "estimated"),
    )  # fmt: skip
    smoothing: float = setting(
        0.1, "smoothing of AN-LS (0.1 in the published code)", high=0.5
    )
    entropy_weight: float = setting(
        0.2, "alpha of EM (0.2 on VOC, 0.1 on COCO and NUS in the paper)"
    )
    pseudo_weight: float = setting(
        0.02, "beta of APL (0.02 on VOC, 0.9 on COCO in the paper)"
    )
    rejected: float = setting(
        0.2, "delta of LL, in percent of the labels of a batch (0.1 to 0.4 in the paper)", high=100
    )
    robustness: float = setting(
        1.0, "r of REN; 1 forgives wrong negatives most", 1e-3, 1
    )
    prior_weight: float = setting(1.0, "weight of the class priors (Crisp's loss) in REN")
    hidden_share: float = setting(
        0.0, "REN counts each unknown label as a positive with this share of (k - 1) / (C - 1), "
        "the probability that k promises", high=100,
    )  # fmt: skip
    pseudo_least: float = setting(
        0.4, "lambda_2 of GPR, the smallest weight of a pseudo-positive; the largest is 0.7 (0.4 "
        "on VOC, 0.5 on COCO in the published code)", high=0.7,
    )  # fmt: skip
    count_weight: float = setting(
        0.05, "weight of GPR's penalty for a wrong number of positives (0.05 on VOC, 0.001 on COCO "
        "in the published code)",
    )  # fmt: skip
    asset_weight: float = setting(
        1.0, "alpha of the asset regularisation; we do not know the published value"
    )
    asset_step: float = setting(
        0.001, "eps, how far one step of an image moves its average (0.001 in the published code, "
        "which makes many steps in an epoch)", high=1,
    )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """The position of a batch in the training, and the known facts about its images.

    With several ranks, a loss gets the logits and labels of the whole batch, and so do `rows` and
    `presence`. The tables have the rows of this rank's images only; see `ranks.gather`.

    Attributes:
        indices: int64 numbers of this rank's images of the batch, all B without other ranks.
        epoch: epochs done, with the fraction of the current one.
        epochs: length of the whole training.
        settings: settings of the method.
        tables: the term's state.
        presence: (B, C) presence in the views, from the running averages; None before the loss
            uses the averages, and for terms that need none.
    """

    indices: Tensor
    epoch: float
    epochs: int
    settings: MethodSettings
    tables: Tables
    presence: Tensor | None = None

    def rows(self, name: str, like: Tensor) -> Tensor:
        """A table's rows (B, C) for the images of the batch, on the device of `like`."""
        return ranks.gather(self.tables[name][self.indices.cpu()].to(like.device))

    def keep(self, name: str, rows: Tensor) -> None:
        """Replaces a table's rows for the images of the batch, by rows (B, C)."""
        self.tables[name][self.indices.cpu()] = ranks.part(rows).cpu()


Loss = Callable[[Tensor, Tensor, Step], Tensor]  # of logits s (B, C) and labels z (B, C)


@dataclass(frozen=True)
class Term:
    """A supervised term.

    Attributes:
        loss: the loss of a batch.
        description: the term in words.
        source: the paper that it comes from.
        title: the name that people read; None means the key in capitals.
        make_tables: makes the first state from labels z (N, C), settings and a seed.
        end_epoch: changes the state after an epoch; takes the state, labels, epochs done, the
            number of all epochs, and settings.
        learned: tables that the optimiser changes together with the network.
        reads_averages: whether it needs running averages of every training image.
        sees: for a term that sees all labels, y: makes the labels (N, C) that it gets in place of
            z; takes y and z (N, C) bool.
    """

    loss: Loss
    description: str
    source: str
    make_tables: Callable[[Tensor, MethodSettings, int], Tables] | None = None
    end_epoch: Callable[[Tables, Tensor, int, int, MethodSettings], None] | None = None
    learned: tuple[str, ...] = ()
    reads_averages: bool = False
    sees: Callable[[Tensor, Tensor], Tensor] | None = None
    title: str | None = None


# --- losses that need more than a line ------------------------------------------------------------


def _expected_negative(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    """EN, after `start` epochs of AN."""
    if step.presence is None:
        return losses.assume_negative(logits, labels)
    return losses.expected_negative(logits, labels, _possible(step))


def _possible(step: Step) -> Tensor:
    """(B, C) bool: labels that may be positive, according to the running averages."""
    return step.presence >= step.tables["threshold"].to(step.presence.device)


def _pseudo_robust(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    """GPR, after `start` epochs of GR."""
    s, progress = step.settings, _progress(step)
    if step.presence is None:
        return losses.generalised_robust(logits, labels, progress)
    return losses.pseudo_robust(
        logits, labels, _possible(step), progress,
        s.expected_positives, s.pseudo_least, s.count_weight,
    )  # fmt: skip


def _progress(step: Step) -> float:
    """The finished share of the training, in [0, 1]."""
    return min(1.0, step.epoch / step.epochs)


def _asset(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    averages, s = step.rows("slow_averages", logits), step.settings
    loss = losses.asset_regularisation(logits, labels, averages, s.asset_weight)
    step.keep("slow_averages", losses.moved_averages(averages, logits, s.asset_step))
    return loss


def _robust_expected_negative(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    """REN; from `start` on with Crisp's loss, which tells how frequent each class is."""
    threshold, s = step.tables["threshold"].to(logits.device), step.settings
    hidden = s.hidden_share * (s.expected_positives - 1) / max(1, logits.shape[1] - 1)
    loss = losses.robust_expected_negative(
        logits, labels, step.presence, threshold, s.robustness, min(hidden, 0.5)
    )
    if step.epoch < s.start:
        return loss
    priors = step.tables["priors"].to(logits)
    return loss + s.prior_weight * losses.crisp(logits, labels, priors)


def _reject_large(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    count = losses.rejected_count(logits.numel(), step.epoch, step.settings.rejected)
    return losses.large_loss(logits, labels, count)


def _correct_large(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    count = losses.rejected_count(logits.numel(), step.epoch, step.settings.rejected)
    return losses.large_loss(logits, labels, count, "correct")


def _correct_for_good(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    made = step.rows("made_positive", logits)
    after_first = min(1, int(step.epoch))
    count = losses.rejected_count(logits.numel(), after_first, step.settings.rejected)
    loss = losses.correct_for_good(logits, labels, made, count)
    step.keep("made_positive", made)
    return loss


def _asymmetric_pseudo_labels(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    pseudo, s = step.rows("pseudo", logits), step.settings
    return losses.entropy_maximisation(logits, labels, s.entropy_weight, pseudo, s.pseudo_weight)


def _add_pseudo_labels(
    tables: Tables, labels: Tensor, epoch: int, epochs: int, settings: MethodSettings
) -> None:
    if settings.start <= epoch < epochs:
        left = epochs - settings.start
        losses.add_pseudo_labels(tables["pseudo"], tables["predictions"], labels, left)


def _crisp(logits: Tensor, labels: Tensor, step: Step) -> Tensor:
    if step.epoch < step.settings.start:
        return losses.assume_negative(logits, labels)
    return losses.crisp(logits, labels, step.tables["priors"].to(logits))


def _start_priors(labels: Tensor, settings: MethodSettings, seed: int) -> Tables:
    predictions = torch.full(labels.shape, 0.5)
    return {"predictions": predictions, "priors": torch.zeros(labels.shape[1])}


def _estimate_priors(
    tables: Tables, labels: Tensor, epoch: int, epochs: int, settings: MethodSettings
) -> None:
    tables["priors"].copy_(losses.class_priors(tables["predictions"], labels))


# --- the table ------------------------------------------------------------------------------------

_COLE = "Cole et al., CVPR 2021"
_ZHOU = "Zhou et al., ECCV 2022"
_KIM = "Kim et al., CVPR 2022"
_ZHANG = "Zhang et al., 2021"

TERMS: dict[str, Term] = {
    "an": Term(
        lambda s, z, step: losses.assume_negative(s, z),
        "assume negative: BCE, every unknown label is a negative (baseline)", "the paper",
    ),
    "en": Term(
        _expected_negative, "expected negatives: likely positives are left out of the BCE",
        "the paper; the selection is ours", reads_averages=True,
    ),
    "full": Term(
        lambda s, z, step: losses.assume_negative(s, z), "BCE with all labels: the upper bound", "",
        sees=lambda y, z: y, title="Full",
    ),
    "iun": Term(  # as in the paper; the published code never counts a negative
        lambda s, z, step: losses.expected_negative(s, z > 0, z < 0),
        "BCE without the hidden positives: EN and LL-R, if they knew them", _COLE,
        sees=lambda y, z: z.to(torch.int8) - (y & ~z).to(torch.int8),  # hidden positives: -1
    ),
    "an_ls": Term(
        lambda s, z, step: losses.label_smoothing(s, z, step.settings.smoothing),
        "AN with label smoothing", _COLE, title="AN-LS",
    ),
    "wan": Term(
        lambda s, z, step: losses.weak_negatives(s, z), "AN with weak negatives", _COLE,
    ),
    "epr": Term(
        lambda s, z, step: losses.expected_positive_regularisation(
            s, z, step.settings.expected_positives
        ),
        "the positive, and how many positives an image has", _COLE,
    ),
    "role": Term(
        lambda s, z, step: losses.role(
            s, z, step.rows("estimates", s), step.settings.expected_positives
        ),
        "labels are estimated together with the network", _COLE,
        make_tables=lambda z, s, seed: {"estimates": losses.first_estimates(z, seed)},
        learned=("estimates",),
    ),
    "em": Term(
        lambda s, z, step: losses.entropy_maximisation(s, z, step.settings.entropy_weight),
        "entropy maximisation of the unknown labels", _ZHOU,
    ),
    "apl": Term(
        _asymmetric_pseudo_labels, "EM with asymmetric pseudo-labels", _ZHOU, title="EM + APL",
        make_tables=lambda z, s, seed: {
            "predictions": torch.full(z.shape, 0.5), "pseudo": torch.full(z.shape, torch.nan),
        },
        end_epoch=_add_pseudo_labels,
    ),
    "ll_r": Term(_reject_large, "AN without the largest losses", _KIM, title="LL-R"),
    "ll_ct": Term(
        _correct_large, "AN, the largest losses as positives in their batch", _KIM,
        title="LL-Ct",
    ),
    "ll_cp": Term(
        _correct_for_good, "AN, the largest losses as positives for good", _KIM, title="LL-Cp",
        make_tables=lambda z, s, seed: {"made_positive": torch.zeros(z.shape, dtype=torch.bool)},
    ),
    "splc": Term(
        lambda s, z, step: losses.splc(s, z, step.epoch),
        "focal loss, sure predictions count as positives", _ZHANG,
    ),
    "hill": Term(
        lambda s, z, step: losses.hill(s, z), "negatives that fall where the network is sure",
        _ZHANG, title="Hill",
    ),
    "asl": Term(
        lambda s, z, step: losses.asymmetric(s, z), "asymmetric focusing",
        "Ridnik et al., ICCV 2021",
    ),
    "gr": Term(
        lambda s, z, step: losses.generalised_robust(s, z, _progress(step)),
        "generalised robust loss", "Chen et al., IJCAI 2024",
    ),
    "ren": Term(
        _robust_expected_negative,
        "robust expected negatives: EN made smooth and forgiving, with class priors", "ours",
        make_tables=_start_priors, end_epoch=_estimate_priors, reads_averages=True,
    ),
    "gpr": Term(
        _pseudo_robust, "GR, likely positives are pseudo-labels",
        "Tran et al., ICCV 2025; the selection is ours", reads_averages=True,
    ),
    "crisp": Term(
        _crisp, "estimated class priors", "Crisp", title="Crisp",
        make_tables=_start_priors, end_epoch=_estimate_priors,
    ),
    "asset": Term(
        _asset, "AN with asset regularisation: agreement with a slow average of the predictions",
        "Sun et al., NeurIPS 2025", title="Asset",
        make_tables=lambda z, s, seed: {"slow_averages": losses.first_averages(z, seed)},
    ),
}  # fmt: skip
