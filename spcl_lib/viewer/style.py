"""The style of all figures: colours, fonts, and a decorator that returns figures unshown.

People with any colour vision can tell the colours apart: one fixed colour for every method (Okabe
and Ito's palette), a sequential scale for probabilities and a diverging one for gains.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import ImageFont

if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOURS = {
    "an": "#6b6b6b", "cl": "#56b4e9", "scl": "#0072b2", "en": "#e69f00", "en_cl": "#cc79a7",
    "en_scl": "#d55e00", "gr_scl": "#009e73", "ren_scl": "#882255", "full": "#000000",
}  # fmt: skip
OTHER_METHOD = "#b3b3b3"
HEAT = "viridis"
F = TypeVar("F", bound=Callable[..., "Figure"])


def colour(method: str) -> str:
    """The colour of a method in every figure."""
    return COLOURS.get(method, OTHER_METHOD)


def theme() -> dict[str, Any]:
    """The style as matplotlib's settings."""
    import seaborn as sns
    from cycler import cycler

    cycle = [COLOURS[name] for name in ("scl", "en", "gr_scl", "en_scl", "en_cl", "cl", "an")]
    own = {"font.family": "DejaVu Sans", "figure.dpi": 90, "axes.prop_cycle": cycler(color=cycle)}
    return sns.plotting_context("notebook", 0.9) | sns.axes_style("whitegrid") | own


def set_theme() -> None:
    """Gives the style to what a notebook draws itself."""
    import matplotlib.pyplot as plt

    plt.switch_backend(plt.get_backend())  # loaded in `house_style`, it would show no figures
    plt.rcParams.update(theme())


def house_style(function: F) -> F:
    """Lets a function draw in this style, and keeps pyplot from showing its figure."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Figure:
        import matplotlib.pyplot as plt

        with plt.rc_context(theme()):
            figure = function(*args, **kwargs)
        plt.close(figure)  # else a notebook would show it twice
        return figure

    return draw  # type: ignore[return-value]


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font for pictures that ships inside matplotlib; the size is in pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
