"""What the explorer shows, as explorer.js reads it, and a page that shows it without a kernel.

    header   what all images share: classes, names and labels of the images, the runs
    record   one image in one run: the picture, the heatmaps of every epoch, regions of objects

Numbers of many cells are base64 texts of uint8, where 255 means 1. explorer.js reads heatmaps
through crops as `HeatmapBank` does; a test compares the two.
"""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spcl_lib.analysis.visibility import in_view, visible_fraction
from spcl_lib.runs.snapshots import Trace, as_bytes
from spcl_lib.system.errors import UserError, printable
from spcl_lib.viewer.heat import heat_colours
from spcl_lib.viewer.overlays import picture_in
from spcl_lib.viewer.pages import embedded, write_page
from spcl_lib.views import Views

_SIDE = 320  # pixels, longer side of a photograph
_TRIES = 200  # random crops, to find one without the label
_CLASSES = 12  # most classes of an image
_PAGE_IMAGES = 16  # in a page, which has then up to 4 MB
_LATTICE = ((1.0, 1), (0.75, 3), (0.5, 4), (0.35, 5))  # side of a crop, crops along each axis


def header_of(traces: Sequence[Trace]) -> dict[str, Any]:
    """What all images share; refuses runs that follow different images."""
    data = traces[0].data
    for trace in traces:
        if (trace.data.ids, trace.data.classes) != (data.ids, data.classes):
            raise UserError(f"'{trace.name}' follows other images than '{traces[0].name}'")
    images = [
        {"name": printable(name), "labels": _numbers(labels)}
        for name, labels in zip(data.ids, data.labels, strict=True)
    ]
    runs = [{
        "name": trace.name, "epochs": list(trace.epochs), "averaged": trace.averaged,
        "grid": trace.predict(0, Views.whole(1)).shape[-1],
        "observed": [_numbers(row) for row in trace.observed], "order": trace.most_corrected(),
    } for trace in traces]  # fmt: skip
    palette = as_text(heat_colours(np.linspace(0, 1, 256)))
    classes = [printable(name) for name in data.classes]
    return {"classes": classes, "images": images, "runs": runs, "palette": palette}


def record_of(trace: Trace, image: int, boxes: Views | None = None) -> dict[str, Any]:
    """One image (by its number in the trace), with up to twelve classes, the most telling first.

    It has the network's predictions for the crops `boxes`.
    """
    classes, regions = _telling(trace, image), trace.region(image)
    lost = view_without_label(trace, image)
    predicted = boxes and as_text(highest_cells(trace, image, boxes)[:, classes])
    return {
        "picture": embedded(picture_in(trace.data, image, _SIDE)),
        "size": trace.heatmaps.shape[-1], "classes": classes,
        "heat": as_text(trace.heatmaps[:, image, classes]),
        "seen": as_text(np.packbits(trace.seen[:, image].numpy())),
        "side": None if regions is None else regions.shape[-1],
        "regions": None if regions is None else {
            c: as_text(np.packbits(regions[c].numpy())) for c in classes if regions[c].any()
        },
        "start": starting_class(trace, image),
        "lost": None if lost is None else lost.boxes[0].tolist(), "predictions": predicted,
    }  # fmt: skip


def highest_cells(trace: Trace, image: int, views: Views) -> Tensor:
    """The finished network's highest probability of every class (B, C) in views, as uint8."""
    return as_bytes(trace.model.pooling.heat(trace.predict(image, views)).amax((2, 3)))


def starting_class(trace: Trace, image: int) -> int:
    """The class without a label that the heatmaps found best; the label if nothing is hidden."""
    hidden = trace.hidden()[image]
    found = trace.heatmaps[-1, image].flatten(1).amax(1).int()
    wanted = found.masked_fill(~hidden, -1) if bool(hidden.any()) else trace.observed[image].int()
    return int(wanted.argmax())


def view_without_label(trace: Trace, image: int) -> Views | None:
    """Finds a crop without the labelled class that shows most of the class to start with.

    Where the objects are not known, the upper half of the last heatmaps' values stands for them.
    It is the same at every call, and None if none of the random crops has lost the label.
    """
    generator = torch.Generator().manual_seed(image)
    views = Views.sample(_TRIES, (0.1, 0.6), flip=0.0, generator=generator)
    regions, heat = trace.region(image), trace.heatmaps[-1, image].float()
    regions = heat >= heat.amax((1, 2), keepdim=True) / 2 if regions is None else regions
    pair = [int(trace.observed[image].int().argmax()), starting_class(trace, image)]
    fraction = visible_fraction(regions[pair].expand(_TRIES, -1, -1, -1), views)
    lost = ~in_view(fraction[:, 0])
    best = int(fraction[:, 1].nan_to_num().masked_fill(~lost, -1).argmax())
    return views[best : best + 1] if bool(lost[best]) else None


def _telling(trace: Trace, image: int) -> list[int]:
    """Labels, then what is there without a label, then by the height of heatmaps."""
    height = trace.heatmaps[:, image].flatten(2).amax((0, 2)) / 255  # (C,)
    weight = 4.0 * trace.observed[image] + 2.0 * trace.data.labels[image] + height
    return weight.argsort(descending=True, stable=True)[:_CLASSES].tolist()


def _numbers(row: Tensor) -> list[int]:
    return row.nonzero().flatten().tolist()


def as_text(values: np.ndarray | Tensor) -> str:
    """The bytes of an array of uint8 as a base64 text."""
    return base64.b64encode(np.ascontiguousarray(values)).decode()


def write_explorer_page(file: Path, *traces: Trace) -> None:
    """Writes a page with the explorer of some runs, with the images that were corrected most.

    The network cannot run in the page. So the page has its predictions for a lattice of crops,
    shows that of the nearest one, and draws which it is.
    """
    header_of(traces)  # checks the traces before the work
    images = torch.tensor(traces[0].most_corrected()[:_PAGE_IMAGES])
    parts, boxes = [_part(trace, images) for trace in traces], lattice()
    records = [[record_of(part, i, boxes) for i in range(len(images))] for part in parts]
    page = {"header": header_of(parts), "records": records, "boxes": boxes.boxes.tolist()}
    write_page(file, "explorer.html", page=page, runs=[trace.name for trace in traces])


def lattice() -> Views:
    """The crops of which a page knows the predictions: squares of four sizes, evenly spread."""
    boxes = [
        [x, y, min(x + side, 1), min(y + side, 1)]
        for side, count in _LATTICE
        for y in torch.linspace(0, 1 - side, count).tolist()
        for x in torch.linspace(0, 1 - side, count).tolist()
    ]
    return Views(torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.bool))


def _part(trace: Trace, images: Tensor) -> Trace:
    """Some images of a trace."""
    return replace(
        trace, data=trace.data.subset(images), observed=trace.observed[images],
        heatmaps=trace.heatmaps[:, images], seen=trace.seen[:, images],
    )  # fmt: skip
