"""`HeatmapExplorer`: drag a crop over a training image and see what the heatmaps say about it."""

from pathlib import Path
from typing import Any

import anywidget
import torch

from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.explorer_page import as_text, header_of, highest_cells, record_of
from spcl_lib.views import Views


class HeatmapExplorer(anywidget.AnyWidget):
    """Pick a run, an image, a class and an epoch; drag a crop; see target and prediction.

    The runs are given by traces of the same images. explorer.js draws it in the browser, and asks
    for one image at a time, and for the network's prediction for every crop. All can be done with a
    mouse, by touch and from the keyboard.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")

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
