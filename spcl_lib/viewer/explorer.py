"""`HeatmapExplorer`: drag a crop over a training image and see what the heatmaps say about it."""

from __future__ import annotations

import html
import math

import ipywidgets as widgets
import torch
from IPython.display import Image

from spcl_lib.analysis.visibility import in_view, visible_fraction
from spcl_lib.model import normalise
from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.explorer_picture import ClassBar, ExplorerPicture, as_png, draw
from spcl_lib.views import Views

_LEAST = 0.06  # least side of a crop, as a fraction of the image's
_STEP = 0.02
_TRIES = 200  # number of crops that are tried to find one without the label


def compose_picture(
    trace: Trace, image: int, label: int, epoch: int, view: Views
) -> ExplorerPicture:
    """Collects what the picture shows; `image` and `epoch` are places in the trace."""
    data, bank = trace.data, trace.bank(epoch, image)
    crop = view.crop(data.images[image : image + 1], trace.crop_side)
    with torch.no_grad():
        maps = trace.model(normalise(crop)).float()  # (1, C, G, G)
    target, target_seen = bank.read(torch.tensor([0]), view, maps.shape[-1])
    known = bool(target_seen.any())
    presence = trace.model.pooling.presence(target, target_seen)[0].tolist() if known else None
    visible = _visible(trace, image, view)
    predicted = trace.model.pooling(maps).sigmoid()[0].tolist()
    rows = [
        ClassBar(
            data.classes[c], bool(trace.observed[image, c]), visible[c],
            presence[c] if presence else None, predicted[c], c == label,
        )
        for c in range(len(data.classes))
    ]  # fmt: skip
    region = trace.region(image)
    return ExplorerPicture(
        data.images[image], None if region is None else region[label],
        tuple(view.boxes[0].tolist()), crop[0], bank.heatmaps[0, label].float() / 255,
        bank.seen[0].reshape(bank.size, bank.size) > 0, target[0, label], target_seen[0, 0] > 0,
        _most_telling(rows), data.classes[label], trace.epochs[epoch], bool(view.flipped[0]),
    )  # fmt: skip


def sentence(stage: ExplorerPicture) -> str:
    """Says in words what the picture shows, for people who cannot see it and for tests."""
    chosen = next(row for row in stage.rows if row.chosen)
    label = next((row.name for row in stage.rows if row.labelled), "none")
    target = "nothing, these cells are unseen" if chosen.target is None else f"{chosen.target:.2f}"
    there = "" if chosen.visible is None else f"; {100 * chosen.visible:.0f} % of it is in the crop"
    x0, y0, x1, y1 = stage.box
    return (
        f"Label: {label}. Crop x {x0:.2f} to {x1:.2f}, y {y0:.2f} to {y1:.2f}"
        f"{', flipped' if stage.flipped else ''}. After epoch {stage.epoch} the heatmap asks for "
        f"{chosen.name}: {target}; the network says {chosen.prediction:.2f}{there}."
    )


def view_without_label(
    trace: Trace, image: int, label: int, generator: torch.Generator
) -> Views | None:
    """Finds the random crop without the labelled class that shows most of another class.

    Args:
        trace: trace of a run.
        image: number of the image in the trace.
        label: the class to show; if it is the labelled class, any crop without it will do.
        generator: source of random numbers.

    Returns:
        One view, or None if no such crop was found or the places of the objects are not known.
    """
    regions = trace.region(image)
    if regions is None:
        return None
    given = int(trace.observed[image].int().argmax())
    views = Views.sample(_TRIES, (0.1, 0.6), flip=0.0, generator=generator)
    fraction = visible_fraction(regions[[given, label]].expand(_TRIES, -1, -1, -1), views)
    lost, shown = ~in_view(fraction[:, 0]), fraction[:, 1].nan_to_num()
    best = int(shown.masked_fill(~lost, -1).argmax())
    return views[best : best + 1] if bool(lost[best]) else None


class HeatmapExplorer(widgets.VBox):
    """Pick a run, an image, a class and an epoch; drag a crop; see label, target and prediction.

    All controls can be used from the keyboard. `still` gives the present picture, for pages without
    a running kernel.

    Args:
        traces: one trace for each run to choose from, all with the same images.

    Raises:
        ValueError: there is no trace.
    """

    def __init__(self, *traces: Trace) -> None:
        if not traces:
            raise ValueError("the explorer needs at least one trace")
        self._traces = {trace.name: trace for trace in traces}
        classes = traces[0].data.classes
        style = {"description_width": "56px"}
        kind = {"layout": widgets.Layout(width="auto"), "style": style}
        self.run = widgets.Dropdown(options=list(self._traces), description="run", **kind)
        choices = ["most corrected first", "in order", *[f"with {name}" for name in classes]]
        self.order = widgets.Dropdown(options=choices, description="images", **kind)
        self.image = widgets.IntSlider(value=1, min=1, max=1, description="image", **kind)
        self.label = widgets.Dropdown(options=[""], description="class", **kind)
        self.epoch = widgets.SelectionSlider(options=[("0", 0)], description="epoch", **kind)
        across = {"min": 0.0, "max": 1.0, "step": _STEP, "readout_format": ".2f", **kind}
        self.x = widgets.FloatRangeSlider(value=(0.0, 1.0), description="x", **across)
        self.y = widgets.FloatRangeSlider(value=(0.0, 1.0), description="y", **across)
        self.flip = widgets.Checkbox(value=False, description="flip", **kind)
        self.random = _button("random crop", "any crop of a tenth to half of the image")
        self.whole = _button("whole image", "no crop, no flip")
        self.lose = _button("lose the label", "a crop without the label that shows the class")
        self.text = widgets.HTML()
        self.picture = widgets.Image(format="png")
        self.text.add_class("spcl-says")  # names for style sheets and for tests in a browser
        self.picture.add_class("spcl-picture")
        self._generator = torch.Generator().manual_seed(0)
        self._busy = False
        self._listen()
        self._new_run()
        buttons = widgets.HBox([self.random, self.whole, self.lose], layout=_wrapping())
        columns = (
            [self.run, self.order, self.image],
            [self.label, self.epoch, self.flip],
            [self.x, self.y, buttons],
        )
        # On a wide page, the columns are side by side; on a narrow page, below each other.
        beside = {"flex": "1 1 300px", "min_width": "290px", "max_width": "460px"}
        boxes = [widgets.VBox(column, layout=widgets.Layout(**beside)) for column in columns]
        super().__init__([widgets.HBox(boxes, layout=_wrapping()), self.text, self.picture])

    @property
    def trace(self) -> Trace:
        """The chosen run."""
        return self._traces[self.run.value]

    @property
    def view(self) -> Views:
        """The chosen crop and flip."""
        (x0, x1), (y0, y1) = (_widen(*slider.value) for slider in (self.x, self.y))
        return Views(torch.tensor([[x0, y0, x1, y1]]), torch.tensor([self.flip.value]))

    def stage(self) -> ExplorerPicture:
        """What the explorer shows now."""
        image = self._images[self.image.value - 1]
        return compose_picture(self.trace, image, self.label.value, self.epoch.value, self.view)

    def still(self) -> Image:
        """The present picture, for pages without a running kernel."""
        return Image(as_png(draw(self.stage())))

    def _listen(self) -> None:
        self.run.observe(lambda change: self._new_run(), "value")
        self.order.observe(lambda change: self._new_order(), "value")
        self.image.observe(lambda change: self._new_image(), "value")
        for control in (self.label, self.epoch, self.x, self.y, self.flip):
            control.observe(lambda change: self._show(), "value")
        self.random.on_click(lambda button: self._random_view())
        self.whole.on_click(lambda button: self._set_view(0.0, 0.0, 1.0, 1.0, False))
        self.lose.on_click(lambda button: self._lose_label())

    def _new_run(self) -> None:
        options = [(str(number), i) for i, number in enumerate(self.trace.epochs)]
        keep = min(self.epoch.value, len(options) - 1) if len(self.epoch.options) > 1 else None
        busy, self._busy = self._busy, True
        self.epoch.options = options
        self.epoch.value = len(options) - 1 if keep is None else keep
        self._busy = busy
        self._new_order()

    def _new_order(self) -> None:
        """Sets the images to choose from, and shows the first."""
        trace, choice = self.trace, self.order.value
        images = trace.most_corrected()
        if choice == "in order":
            images.sort()
        elif choice.startswith("with "):
            c = trace.data.classes.index(choice.removeprefix("with "))
            images = [i for i in images if trace.data.labels[i, c]] or images
        busy, self._busy = self._busy, True
        self._images = images
        self.image.max = len(images)
        self.image.value = 1
        self._busy = busy
        self._new_image()

    def _new_image(self) -> None:
        if self._busy:
            return
        trace, image = self.trace, self._images[self.image.value - 1]
        hidden = trace.hidden()[image]
        found = trace.heatmaps[-1, image].flatten(1).amax(1).int()
        wanted = found.masked_fill(~hidden, -1) if bool(hidden.any()) else trace.observed[image]
        self._busy = True
        self.label.options = [
            (f"{name}{self._remark(image, c)}", c) for c, name in enumerate(trace.data.classes)
        ]
        self.label.value = int(wanted.int().argmax())
        self._busy = False
        self._show()

    def _remark(self, image: int, c: int) -> str:
        if self.trace.observed[image, c]:
            return " (the label)"
        return " (there, not labelled)" if self.trace.data.labels[image, c] else ""

    def _random_view(self) -> None:
        view = Views.sample(1, (0.1, 0.5), generator=self._generator)
        self._set_view(*view.boxes[0].tolist(), bool(view.flipped[0]))

    def _lose_label(self) -> None:
        image = self._images[self.image.value - 1]
        view = view_without_label(self.trace, image, self.label.value, self._generator)
        if view is None:
            self.text.value = "No crop without the label was found in this image."
        else:
            self._set_view(*view.boxes[0].tolist(), False)

    def _set_view(self, x0: float, y0: float, x1: float, y1: float, flip: bool) -> None:
        self._busy = True
        self.x.value, self.y.value, self.flip.value = (x0, x1), (y0, y1), flip
        self._busy = False
        self._show()

    def _show(self) -> None:
        if self._busy:
            return
        stage = self.stage()
        self.text.value = html.escape(sentence(stage))
        self.picture.value = as_png(draw(stage))


def _button(name: str, tooltip: str) -> widgets.Button:
    return widgets.Button(description=name, tooltip=tooltip, layout=widgets.Layout(width="auto"))


def _wrapping() -> widgets.Layout:
    return widgets.Layout(flex_flow="row wrap")


def _widen(low: float, high: float) -> tuple[float, float]:
    """Makes a range at least as long as the least side, within 0..1."""
    if high - low >= _LEAST:
        return low, high
    low = min(max(0.0, (low + high - _LEAST) / 2), 1 - _LEAST)
    return low, low + _LEAST


def _visible(trace: Trace, image: int, view: Views) -> list[float | None]:
    """The share of every class's pixels that the view shows; None if it is not in the image."""
    regions = trace.region(image)
    if regions is None:
        return [None] * len(trace.data.classes)
    fractions = visible_fraction(regions[None], view)[0].tolist()
    return [None if math.isnan(fraction) else fraction for fraction in fractions]


def _most_telling(rows: list[ClassBar], most: int = 12) -> list[ClassBar]:
    """The most informative rows, at most `most`, in the order of the classes."""
    weight = [
        4 * row.chosen + 3 * row.labelled + 2 * (row.visible is not None)
        + max(row.prediction, row.target or 0) for row in rows
    ]  # fmt: skip
    kept = sorted(range(len(rows)), key=lambda i: -weight[i])[:most]
    return [rows[i] for i in sorted(kept)]
