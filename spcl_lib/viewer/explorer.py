"""`HeatmapExplorer`: drag a crop over a training image and see what the heatmaps say about it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import anywidget
import torch

from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.explorer_page import (
    header_of,
    predict_bytes,
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
    """Pick a run, an image, classes and an epoch; drag a crop; see label, target and prediction.

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
        self._header = header_of(traces)
        self._shown = traces
        super().__init__()
        self.on_msg(lambda widget, question, buffers: self.send(self.answer(question)))

    def __repr__(self) -> str:
        return f"HeatmapExplorer({'; '.join(trace.name for trace in self._shown)})"

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question of explorer.js, with the question's `id`."""
        if question["kind"] == "header":
            found: Any = self._header
        else:
            trace, image = self._shown[question["run"]], question["image"]
            if question["kind"] == "record":
                found = record_of(trace, image)
            else:
                view = Views(torch.tensor([question["box"]]), torch.tensor([question["flipped"]]))
                found = base64.b64encode(predict_bytes(trace, image, view)).decode()
        return {"id": question["id"], "answer": found}

    def still(self) -> Figure:
        """What the explorer shows first, for pages without a running kernel."""
        trace = self._shown[0]
        image = trace.most_corrected()[0]
        return still(trace, image)


def still(trace: Trace, image: int) -> Figure:
    """One image, its crop without the label, the heatmap and the target after the last epoch.

    Args:
        trace: trace of a run.
        image: number of the image in the trace.
    """
    view = view_without_label(trace, image) or Views.whole(1)
    given, other = int(trace.observed[image].int().argmax()), starting_class(trace, image)
    bank, whole = trace.bank(-1, image), trace.data.images[image : image + 1]
    target, _ = bank.read(torch.tensor([0]), view, bank.size)
    classes = [trace.data.classes[c] for c in (given, other)]
    heat = bank.heatmaps[0].float() / 255
    crop = view.crop(whole, whole.shape[-1])
    return overlay(
        torch.cat([whole, whole, crop]).float(),
        torch.stack([heat[given], heat[other], target[0, other]]),
        [f"heatmap of “{classes[0]}”,\nthe label, and a crop", f"heatmap of “{classes[1]}”",
         f"the crop: the target\nfor “{classes[1]}”"],
        1.0, torch.cat([view.boxes, view.boxes, Views.whole(1).boxes]),
    )  # fmt: skip
