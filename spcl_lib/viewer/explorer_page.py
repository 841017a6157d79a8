"""What the explorer shows, as explorer.js reads it, and a page that shows it without a kernel.

    header   what all images share: classes, names and labels of the images, the runs
    record   one image in one run: the picture, the heatmaps of every epoch, regions of objects

Numbers of many cells are base64 texts of uint8, where 255 means 1. explorer.js reads heatmaps
through crops as `HeatmapBank` does; a test compares the two.
"""

from __future__ import annotations

import base64
import io
import json
import os
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
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import heat_colours, picture_of
from spcl_lib.viewer.overlays import shrink
from spcl_lib.views import Views

_SIDE = 320  # pixels, longer side of a photograph
_TRIES = 200  # random crops, to find one without the label
_PAGE_BYTES = 3_000_000
_PAGE_EPOCHS = 12  # most epochs in a page
_CLASSES = 12  # most classes of an image
_LATTICE = ((1.0, 1), (0.75, 3), (0.5, 4), (0.35, 5))  # side of a crop, crops along each axis


def source_of(name: str) -> str:
    """The text of a file beside this module, such as explorer.js."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def template(name: str, **values: Any) -> str:
    """A page from a jinja2 template beside this module; all values are escaped."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source_of(name)).render(**values)


# --- what the explorer shows ----------------------------------------------------------------------


def header_of(traces: Sequence[Trace]) -> dict[str, Any]:
    """What all images share.

    Args:
        traces: one trace for each run to choose from.

    Raises:
        ValueError: there is no trace, or they follow different images.
    """
    if not traces:
        raise ValueError("the explorer needs at least one trace")
    data = traces[0].data
    for trace in traces:
        if (trace.data.ids, trace.data.classes) != (data.ids, data.classes):
            raise ValueError(f"'{trace.name}' follows other images than '{traces[0].name}'")
    images = [
        {"name": printable(name), "labels": _numbers(labels)}
        for name, labels in zip(data.ids, data.labels, strict=True)
    ]
    return {
        "classes": [printable(name) for name in data.classes], "images": images,
        "runs": [_describe(trace) for trace in traces],
        "palette": as_text(heat_colours(np.linspace(0, 1, 256))),
    }  # fmt: skip


def _describe(trace: Trace) -> dict[str, Any]:
    return {
        "name": trace.name, "epochs": list(trace.epochs), "averaged": trace.averaged,
        "grid": trace.predict(0, Views.whole(1)).shape[-1],
        "observed": [_numbers(row) for row in trace.observed], "order": trace.most_corrected(),
    }  # fmt: skip


def record_of(trace: Trace, image: int) -> dict[str, Any]:
    """One image in one run, with up to twelve classes; the most telling ones come first.

    Args:
        trace: trace of the run.
        image: number of the image in the trace.
    """
    classes, regions = _telling(trace, image), trace.region(image)
    lost = view_without_label(trace, image)
    return {
        "picture": _picture(trace, image), "size": trace.heatmaps.shape[-1], "classes": classes,
        "heat": as_text(trace.heatmaps[:, image, classes]),
        "seen": as_text(np.packbits(trace.seen[:, image].numpy())),
        "side": None if regions is None else regions.shape[-1],
        "regions": None if regions is None else {
            c: as_text(np.packbits(regions[c].numpy())) for c in classes if regions[c].any()
        },
        "start": starting_class(trace, image),
        "lost": None if lost is None else lost.boxes[0].tolist(),
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

    Returns:
        One view, the same at every call; None if none of the random crops has lost the label.
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


def _picture(trace: Trace, image: int) -> str:
    stream, data = io.BytesIO(), trace.data
    if data.files is None:
        drawn = data.images[torch.tensor([image])][0]
        picture_of(drawn, drawn.shape[-1]).save(stream, "png")
        return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    shrink(data.files[image], _SIDE).save(stream, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _numbers(row: Tensor) -> list[int]:
    return row.nonzero().flatten().tolist()


def as_text(values: np.ndarray | Tensor) -> str:
    """The bytes of an array of uint8 as a base64 text."""
    return base64.b64encode(np.ascontiguousarray(values)).decode()


# --- the page -------------------------------------------------------------------------------------


def write_explorer_page(file: Path, *traces: Trace, limit: int = _PAGE_BYTES) -> None:
    """Writes a page with the explorer that needs neither a kernel nor another file.

    It has the images that were corrected most, as many as fit, and up to twelve epochs. The network
    cannot run in the page. So the page has its predictions for a lattice of crops, shows that of
    the nearest one, and draws which it is.

    Args:
        file: HTML file; it is replaced.
        *traces: one trace for each run to choose from, all with the same images.
        limit: most bytes of the records; the first image is always there.

    Raises:
        ValueError: see `header_of`.
    """
    header_of(traces)  # checks the traces before the work
    traces, boxes = tuple(map(_thin_out, traces)), lattice()
    found: dict[int, list[dict[str, Any]]] = {}
    used = 0
    for image in traces[0].most_corrected():
        records = [_with_predictions(trace, image, boxes) for trace in traces]
        used += len(json.dumps(records))
        if found and used > limit:
            break
        found[image] = records
    header = header_of([_subset(trace, torch.tensor(list(found))) for trace in traces])
    records = [list(of_run) for of_run in zip(*found.values(), strict=True)]
    page = {"header": header, "records": records, "boxes": boxes.boxes.tolist()}
    content = template(
        "explorer.html", page=page, style=source_of("explorer.css"),
        script=source_of("explorer.js"), runs=[trace.name for trace in traces],
    )  # fmt: skip
    with atomic_write(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


def check_page_place(file: Path) -> None:
    """Refuses a place where something else than a page of the explorer would be lost.

    Raises:
        UserError: there is something else.
    """
    start = source_of("explorer.html").partition("<html")[0]
    known = file.is_file() and file.read_bytes().startswith(start.encode())
    if os.path.lexists(file) and not known:
        raise UserError(f"'{file}' exists and is no page of the explorer; give another name")


def lattice() -> Views:
    """The crops of which a page knows the predictions: squares of four sizes, evenly spread."""
    boxes = [
        [x, y, min(x + side, 1), min(y + side, 1)]
        for side, count in _LATTICE
        for y in torch.linspace(0, 1 - side, count).tolist()
        for x in torch.linspace(0, 1 - side, count).tolist()
    ]
    return Views(torch.tensor(boxes), torch.zeros(len(boxes), dtype=torch.bool))


def _with_predictions(trace: Trace, image: int, boxes: Views) -> dict[str, Any]:
    record = record_of(trace, image)
    predicted = highest_cells(trace, image, boxes)[:, record["classes"]]
    return record | {"predictions": as_text(predicted)}


def _thin_out(trace: Trace) -> Trace:
    """The trace with at most `_PAGE_EPOCHS` epochs, from the one before anything was seen."""
    seen = trace.seen.flatten(1).any(1).int()
    first = max(0, int(seen.argmax()) - 1)
    count = min(_PAGE_EPOCHS, len(trace.epochs) - first)
    kept = torch.linspace(first, len(trace.epochs) - 1, count).round().long()
    epochs = [trace.epochs[e] for e in kept.tolist()]
    return replace(trace, epochs=epochs, heatmaps=trace.heatmaps[kept], seen=trace.seen[kept])


def _subset(trace: Trace, images: Tensor) -> Trace:
    """The trace of some of its images, in the given order."""
    return replace(
        trace, data=trace.data.subset(images), observed=trace.observed[images],
        heatmaps=trace.heatmaps[:, images], seen=trace.seen[:, images],
    )  # fmt: skip
