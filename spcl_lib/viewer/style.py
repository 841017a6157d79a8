"""The style of all figures: colours that people with any colour vision can tell apart."""

# Mostly of Okabe and Ito's palette.
COLOURS = {
    "an": "#6b6b6b", "cl": "#56b4e9", "scl": "#0072b2", "en": "#e69f00", "en_cl": "#cc79a7",
    "en_scl": "#d55e00", "gr_scl": "#009e73", "ren_scl": "#882255", "full": "#000000",
}  # fmt: skip
HEAT = "viridis"


def set_theme() -> None:
    """Gives the style to what a notebook draws itself."""
    import seaborn as sns

    cycle = [COLOURS[name] for name in ("scl", "en", "gr_scl", "en_scl", "en_cl", "cl", "an")]
    more = {"figure.dpi": 90}
    sns.set_theme("notebook", "whitegrid", cycle, "DejaVu Sans", font_scale=0.9, rc=more)
