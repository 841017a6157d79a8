"""spcl: spatial consistency loss for multi-label classifiers from single-label annotations.

The method is in the modules beside this file. README.md in this folder says how to read them.
"""

from typing import Any

from spcl_lib.system.processes import say_stopped_while_loading

say_stopped_while_loading()  # before torch, which takes seconds to load

# ruff: noqa: E402
from spcl_lib.bank import HeatmapBank
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.losses import spatial_consistency
from spcl_lib.system import VERSION as __version__
from spcl_lib.system.errors import UserError
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
    """Imports `Predictor` on demand, because it loads many more modules than the method."""
    if name != "Predictor":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from spcl_lib.runs.predictor import Predictor

    return Predictor
