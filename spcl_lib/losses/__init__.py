"""The losses: one small file each, pure functions of tensors.

Notation: f score-map logits (B, C, G, G); s = mean of f over the cells (B, C); p = sigmoid(s);
m = sigmoid(f); z observed labels (B, C), one 1 per image, 0 = unknown; T_v reads a full-image
heatmap through view v.
"""

from spcl_lib.losses.assume_negative import assume_negative
from spcl_lib.losses.consistency import DISTANCES, consistency, distance, spatial_consistency
from spcl_lib.losses.expected_negative import expected_negative, expected_negative_threshold

__all__ = [
    "DISTANCES",
    "assume_negative",
    "consistency",
    "distance",
    "expected_negative",
    "expected_negative_threshold",
    "spatial_consistency",
]
