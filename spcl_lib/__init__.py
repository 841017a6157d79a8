"""spcl: spatial consistency loss for multi-label classifiers from single-label annotations."""

__version__ = "0.1.0"

from typing import Any

from spcl_lib.bank import HeatmapBank
from spcl_lib.errors import UserError
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.losses import spatial_consistency
from spcl_lib.views import Views

__all__ = [
    "HeatmapBank",
    "Predictor",
    "UserError",
    "Views",
    "__version__",
    "mean_average_precision",
    "spatial_consistency",
]


def __getattr__(name: str) -> Any:
    """Imports `Predictor` when it is asked for: it needs all of the library."""
    if name != "Predictor":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from spcl_lib.predict import Predictor

    return Predictor
