"""The losses: one small file each, pure functions of tensors.

Notation: f score-map logits (B, C, G, G); s = f pooled over the cells (B, C); p = sigmoid(s);
m = sigmoid(f); z observed labels (B, C), one 1 per image, 0 = unknown; T_v reads a full-image
heatmap through view v. `terms.py` lists the names of the losses.
"""

from spcl_lib.losses.asset import asset_regularisation, first_averages, moved_averages
from spcl_lib.losses.assume_negative import assume_negative
from spcl_lib.losses.asymmetric import asymmetric
from spcl_lib.losses.consistency import DISTANCES, consistency, distance, spatial_consistency
from spcl_lib.losses.crisp import class_priors, crisp
from spcl_lib.losses.entropy import add_pseudo_labels, entropy_maximisation
from spcl_lib.losses.expected_negative import expected_negative, expected_negative_threshold
from spcl_lib.losses.expected_positives import expected_positive_regularisation
from spcl_lib.losses.label_smoothing import label_smoothing
from spcl_lib.losses.large_loss import correct_for_good, large_loss, rejected_count
from spcl_lib.losses.margin import hill, splc
from spcl_lib.losses.pseudo_robust import pseudo_robust
from spcl_lib.losses.robust import generalised_robust
from spcl_lib.losses.robust_expected_negative import robust_expected_negative
from spcl_lib.losses.role import first_estimates, role
from spcl_lib.losses.weak_negatives import weak_negatives

__all__ = [
    "DISTANCES",
    "add_pseudo_labels",
    "asset_regularisation",
    "assume_negative",
    "asymmetric",
    "class_priors",
    "consistency",
    "correct_for_good",
    "crisp",
    "distance",
    "entropy_maximisation",
    "expected_negative",
    "expected_negative_threshold",
    "expected_positive_regularisation",
    "first_averages",
    "first_estimates",
    "generalised_robust",
    "hill",
    "label_smoothing",
    "large_loss",
    "moved_averages",
    "pseudo_robust",
    "rejected_count",
    "robust_expected_negative",
    "role",
    "spatial_consistency",
    "splc",
    "weak_negatives",
]
