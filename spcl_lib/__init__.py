"""spcl: spatial consistency loss for multi-label classifiers from single-label annotations.

The method is in the modules beside this file. README.md in this folder says how to read them.
"""

from typing import Any

from spcl_lib.bank import HeatmapBank
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.losses.consistency import spatial_consistency
from spcl_lib.losses.settings import MethodSettings
from spcl_lib.methods import Method
from spcl_lib.system import VERSION as __version__
from spcl_lib.system.errors import UserError
from spcl_lib.system.ranks import RankSampler
from spcl_lib.views import RandomView, Views

__all__ = [
    "HeatmapBank",
    "Method",
    "MethodSettings",
    "Predictor",
    "RandomView",
    "RankSampler",
    "UserError",
    "Views",
    "__version__",
    "mean_average_precision",
    "spatial_consistency",
]


def __getattr__(name: str) -> Any:
    """Imports Predictor on demand: it loads many more modules than the rest."""
    if name != "Predictor":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from spcl_lib.runs.predictor import Predictor

    return Predictor
