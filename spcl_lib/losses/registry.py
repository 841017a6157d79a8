"""TERMS: a row for each supervised loss, with its name, its paper and what it needs.

A new loss needs a function or a State in this folder, and one row here. Then `NAME`, `NAME_cl` and
`NAME_scl` are methods.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spcl_lib.losses import expected, stateful
from spcl_lib.losses import stateless as of
from spcl_lib.losses.state import Context, State

Loss = Callable[[Tensor, Tensor, Context], Tensor]  # of logits s (B, C) and labels z (B, C)


@dataclass(frozen=True)
class Term:
    """A supervised term."""

    title: str
    loss: Loss | type[State]
    source: str  # the paper that it comes from
    reads_averages: bool = False
    # (y, z) -> the labels that it gets, if it sees more than z; all (N, C), y and z bool.
    sees: Callable[[Tensor, Tensor], Tensor] | None = None
    pooling: str = ""  # the kind that it needs in place of the mean
    scheduled: bool = False  # whether it depends on the length of the training

    @property
    def has_state(self) -> bool:
        """Whether the loss is a State."""
        return isinstance(self.loss, type)


def _hidden_as_minus_one(y: Tensor, z: Tensor) -> Tensor:
    return z.to(torch.int8) - (y & ~z).to(torch.int8)


_COLE, _ZHOU, _KIM = "Cole et al., CVPR 2021", "Zhou et al., ECCV 2022", "Kim et al., CVPR 2022"
_ZHANG, _EVERYBODY = "Zhang et al., 2021", "textbooks"
_TRAN = "Tran et al., ICCV 2025; the selection is ours"

TERMS: dict[str, Term] = {
    "an": Term("AN", of.assume_negative, "the paper"),
    "en": Term("EN", expected.ExpectedNegatives, "the paper; the selection is ours", True),
    "full": Term("Full", of.assume_negative, _EVERYBODY, sees=lambda y, z: y),
    "iun": Term("IUN", of.ignore_unobserved, _COLE, sees=_hidden_as_minus_one),
    "softmax": Term("Softmax", of.annotated_only, _EVERYBODY, pooling="softmax"),
    "softmax_ls": Term("Softmax-LS", of.smoothed_annotated_only, _EVERYBODY, pooling="softmax"),
    "cells": Term("Cells", of.annotated_only, "ours", pooling="cells"),
    "en_cells": Term("EN-Cells", expected.ExpectedCompetitors, "ours", True, pooling="cells"),
    "an_ls": Term("AN-LS", of.label_smoothing, _COLE),
    "wan": Term("WAN", of.weak_negatives, _COLE),
    "epr": Term("EPR", of.expected_positive_regularisation, _COLE),
    "role": Term("ROLE", stateful.Role, _COLE),
    "em": Term("EM", of.entropy_maximisation, _ZHOU),
    "apl": Term("EM + APL", stateful.AsymmetricPseudoLabels, _ZHOU, scheduled=True),
    "ll_r": Term("LL-R", of.reject_large, _KIM),
    "ll_ct": Term("LL-Ct", of.correct_large, _KIM),
    "ll_cp": Term("LL-Cp", stateful.LargeLossForGood, _KIM),
    "splc": Term("SPLC", of.splc, _ZHANG),
    "hill": Term("Hill", of.hill, _ZHANG),
    "asl": Term("ASL", of.asymmetric, "Ridnik et al., ICCV 2021"),
    "gr": Term("GR", of.generalised_robust, "Chen et al., IJCAI 2024", scheduled=True),
    "ren": Term("REN", expected.RobustExpectedNegatives, "ours", True),
    "gpr": Term("GPR", expected.PseudoRobust, _TRAN, True, scheduled=True),
    "crisp": Term("Crisp", expected.ClassPriors, "Liu et al., 2023, without its logit term"),
    "asset": Term("Asset", stateful.AssetRegularisation, "Sun et al., NeurIPS 2025"),
}
