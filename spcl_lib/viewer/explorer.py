"""`HeatmapExplorer`: drag a crop over a training image and see what the heatmaps say about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import torch

from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.explorer_page import (
    as_text,
    header_of,
    highest_cells,
    record_of,
    source_of,
    starting_class,
    view_without_label,
)
from spcl_lib.viewer.figures import overlay
from spcl_lib.views import Views

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class HeatmapExplorer(anywidget.AnyWidget):
    """Pick a run, an image, a class and an epoch; drag a crop; see target and prediction.

    explorer.js draws it in the browser, and asks for one image at a time, and for the network's
    prediction for every crop. All can be done with a mouse, by touch and from the keyboard.

    Args:
        traces: one trace for each run to choose from, all with the same images.

    Raises:
        ValueError: there is no trace, or they follow different images.
    """

    _esm = source_of("explorer.js")
    _css = source_of("explorer.css")

    def __init__(self, *traces: Trace) -> None:
        self._header, self._shown = header_of(traces), traces
        super().__init__()
        self.on_msg(lambda widget, question, buffers: self.send(self.answer(question)))

    def __repr__(self) -> str:
        return f"HeatmapExplorer({'; '.join(trace.name for trace in self._shown)})"

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question of explorer.js, with the question's `id`."""
        if question["kind"] == "header":
            return {"id": question["id"], "answer": self._header}
        trace, image = self._shown[question["run"]], question["image"]
        if question["kind"] == "record":
            return {"id": question["id"], "answer": record_of(trace, image)}
        box = torch.tensor([question["box"]], dtype=torch.float32)  # JavaScript writes 1.0 as 1
        view = Views(box, torch.tensor([question["flipped"]]))
        return {"id": question["id"], "answer": as_text(highest_cells(trace, image, view))}

    def still(self) -> Figure:
        """What the explorer shows first, for pages without a running kernel."""
        trace = self._shown[0]
        image = trace.most_corrected()[0]
        view = view_without_label(trace, image) or Views.whole(1)
        given, other = int(trace.observed[image].int().argmax()), starting_class(trace, image)
        bank, whole = trace.bank(-1, image), trace.data.images[image : image + 1]
        target, _ = bank.read(torch.tensor([0]), view, bank.size)
        label, hidden = trace.data.classes[given], trace.data.classes[other]
        heat, crop = bank.heatmaps[0].float() / 255, view.crop(whole, whole.shape[-1])
        titles = [f"“{label}”,\nthe label, and a crop", f"“{hidden}”", f"target for “{hidden}”"]
        return overlay(
            torch.cat([whole, whole, crop]).float(),
            torch.stack([heat[given], heat[other], target[0, other]]),
            titles, 1.0, torch.cat([view.boxes, view.boxes, Views.whole(1).boxes]),
        )  # fmt: skip
