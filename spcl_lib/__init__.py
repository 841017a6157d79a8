"""spcl: spatial consistency loss for multi-label classifiers from single-label annotations."""

__version__ = "0.1.0"

from spcl_lib.bank import HeatmapBank
from spcl_lib.errors import UserError
from spcl_lib.evaluate import mean_average_precision
from spcl_lib.losses import spatial_consistency
from spcl_lib.views import Views

__all__ = [
    "HeatmapBank",
    "UserError",
    "Views",
    "__version__",
    "mean_average_precision",
    "spatial_consistency",
]
