"""What the explorer shows, as explorer.js reads it, and a page that shows it without a kernel.

    header   what all images share: classes, names and labels of the images, the runs
    record   one image in one run: the picture, the heatmaps of every epoch, regions of objects

Numbers of many cells are base64 texts of uint8, where 255 means 1. The page has all records inside,
and predictions for a lattice of crops. explorer.js reads heatmaps through crops as `HeatmapBank`
does, so target and picture follow every crop; a test compares the two.
"""

from __future__ import annotations

import base64
import html
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
_LOST = 0.3  # below this presence by its heatmap, a class counts as cut out
_PAGE_BYTES = 3_000_000
_PAGE_EPOCHS = 12  # most epochs in a page
_PAGE_CLASSES = 12  # most classes of an image in a page
_LATTICE = ((1.0, 1), (0.75, 3), (0.5, 4), (0.35, 5))  # side of a crop, crops along each axis


def source_of(name: str) -> str:
    """The text of a file beside this module: explorer.js or explorer.css."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


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
    return {
        "classes": [printable(name) for name in data.classes],
        "images": [
            {"name": printable(name), "labels": _numbers(labels)}
            for name, labels in zip(data.ids, data.labels, strict=True)
        ],
        "runs": [_describe(trace) for trace in traces],
        "palette": _as_text(heat_colours(np.linspace(0, 1, 256))),
    }


def _describe(trace: Trace) -> dict[str, Any]:
    pooling = trace.model.pooling
    return {
        "name": trace.name, "epochs": list(trace.epochs), "averaged": trace.averaged,
        "grid": trace.predict(0, Views.whole(1)).shape[-1],
        "pooling": [pooling.kind, pooling.effective_strength],
        "observed": [_numbers(row) for row in trace.observed], "order": trace.most_corrected(),
    }  # fmt: skip


def record_of(trace: Trace, image: int, most: int | None = None) -> dict[str, Any]:
    """One image in one run.

    Args:
        trace: trace of the run.
        image: number of the image in the trace.
        most: most classes; all by default. The most telling classes come first.
    """
    classes = _telling(trace, image)[:most]
    regions, lost = trace.region(image), view_without_label(trace, image)
    return {
        "picture": _picture(trace, image), "size": trace.heatmaps.shape[-1], "classes": classes,
        "heat": _as_text(trace.heatmaps[:, image, classes].numpy()),
        "seen": _as_text(np.packbits(trace.seen[:, image].numpy())),
        "side": None if regions is None else regions.shape[-1],
        "regions": None if regions is None else {
            c: _as_text(np.packbits(regions[c].numpy()))
            for c in classes if bool(regions[c].any())
        },
        "start": starting_class(trace, image),
        "lost": None if lost is None else lost.boxes[0].tolist(),
    }  # fmt: skip


def predict_bytes(trace: Trace, image: int, views: Views) -> np.ndarray:
    """The finished network's probabilities (B, C) of views of one image, as uint8."""
    maps = trace.predict(image, views)
    return as_bytes(trace.model.pooling(maps).sigmoid()).numpy()


def starting_class(trace: Trace, image: int) -> int:
    """The class without a label that the heatmaps found best; the label if nothing is hidden."""
    hidden = trace.hidden()[image]
    found = trace.heatmaps[-1, image].flatten(1).amax(1).int()
    wanted = found.masked_fill(~hidden, -1) if bool(hidden.any()) else trace.observed[image].int()
    return int(wanted.argmax())


def view_without_label(trace: Trace, image: int) -> Views | None:
    """Finds a crop without the labelled class that shows most of the class to start with.

    Where the places of objects are not known, the heatmaps after the last epoch stand for them.

    Returns:
        One view, the same at every call; None if none of the random crops has lost the label.
    """
    generator = torch.Generator().manual_seed(image)
    views = Views.sample(_TRIES, (0.1, 0.6), flip=0.0, generator=generator)
    given, other = int(trace.observed[image].int().argmax()), starting_class(trace, image)
    regions = trace.region(image)
    if regions is not None:
        fraction = visible_fraction(regions[[given, other]].expand(_TRIES, -1, -1, -1), views)
        lost, shown = ~in_view(fraction[:, 0]), fraction[:, 1].nan_to_num()
    else:
        bank, size = trace.bank(-1, image), trace.heatmaps.shape[-1]
        target, seen = bank.read(torch.zeros(_TRIES, dtype=torch.long), views, size)
        presence = trace.model.pooling.presence(target, seen)  # (_TRIES, C)
        lost, shown = presence[:, given] < _LOST, 1 - presence[:, given]
    best = int(shown.masked_fill(~lost, -1).argmax())
    return views[best : best + 1] if bool(lost[best]) else None


def _telling(trace: Trace, image: int) -> list[int]:
    """All classes: labels, then what is there without a label, then by the height of heatmaps."""
    height = trace.heatmaps[:, image].flatten(2).amax((0, 2)) / 255  # (C,)
    weight = 4.0 * trace.observed[image] + 2.0 * trace.data.labels[image] + height
    return weight.argsort(descending=True, stable=True).tolist()


def _picture(trace: Trace, image: int) -> str:
    stream, data = io.BytesIO(), trace.data
    if data.files is None:
        kind, drawn = "png", data.images[torch.tensor([image])][0]
        picture_of(drawn, drawn.shape[-1]).save(stream, kind)
    else:
        kind = "jpeg"
        shrink(data.files[image], _SIDE).save(stream, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _numbers(row: Tensor) -> list[int]:
    return row.nonzero().flatten().tolist()


def _as_text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values)).decode()


# --- the page -------------------------------------------------------------------------------------


def write_explorer_page(file: Path, *traces: Trace, limit: int = _PAGE_BYTES) -> None:
    """Writes a page with the explorer that needs neither a kernel nor another file.

    It has the images that were corrected most, as many as fit, up to twelve epochs, and up to
    twelve classes of an image. The network cannot run in the page. So the page has its predictions
    for a lattice of crops, shows that of the nearest crop, and says so.

    Args:
        file: HTML file; it is replaced.
        *traces: one trace for each run to choose from, all with the same images.
        limit: most bytes of the records; the first image is always there.

    Raises:
        ValueError: see `header_of`.
    """
    header_of(traces)  # checks the traces before the work
    traces = tuple(map(_thin_out, traces))
    boxes, found, used = lattice(), {}, 0
    for image in traces[0].most_corrected():
        records = [_record_with_predictions(trace, image, boxes) for trace in traces]
        used += sum(len(json.dumps(record)) for record in records)
        if found and used > limit:
            break
        found[image] = records
    chosen = sorted(found)
    header = header_of([_subset(trace, torch.tensor(chosen)) for trace in traces])
    records = [list(of_run) for of_run in zip(*(found[i] for i in chosen), strict=True)]
    page = {"header": header, "records": records, "boxes": boxes.boxes.tolist()}
    data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")
    names = "; ".join(trace.name for trace in traces)
    content = (
        _PAGE.replace("STYLE", source_of("explorer.css")).replace("RUNS", html.escape(names))
        .replace("SCRIPT", source_of("explorer.js")).replace("DATA", data)
    )  # fmt: skip
    with atomic_write(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


def check_page_place(file: Path) -> None:
    """Refuses a place where something else than a page of the explorer would be lost.

    Raises:
        UserError: there is something else.
    """
    start = _PAGE.partition("<style>")[0].encode()
    if not os.path.lexists(file):
        return
    if file.is_file():
        with open(file, "rb") as handle:
            if handle.read(len(start)) == start:
                return
    raise UserError(f"'{file}' exists and is no page of the explorer; give another name")


def lattice() -> Views:
    """The crops of which a page knows the predictions: squares of four sizes, evenly spread."""
    boxes = [
        [x, y, x + side, y + side]
        for side, count in _LATTICE
        for y in torch.linspace(0, 1 - side, count).tolist()
        for x in torch.linspace(0, 1 - side, count).tolist()
    ]
    corners = torch.tensor(boxes).clamp(max=1)
    return Views(corners, torch.zeros(len(corners), dtype=torch.bool))


def _record_with_predictions(trace: Trace, image: int, boxes: Views) -> dict[str, Any]:
    record = record_of(trace, image, _PAGE_CLASSES)
    predicted = predict_bytes(trace, image, boxes)[:, record["classes"]]
    return record | {"predictions": _as_text(predicted)}


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


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>spcl: the explorer</title>
<style>
body { margin: 0; background: #fff; color: #1c1c1c; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 84rem; margin: 0 auto; padding: 0 .4rem 2rem; }
h1 { margin: 1rem 10px .3rem; font-size: 1.5rem; line-height: 1.25; }
main > p { margin: .3rem 10px; max-width: 62rem; }
STYLE</style>
</head>
<body>
<main>
<h1>Drag a crop, see what the heatmaps ask for</h1>
<p>Every training image has one label. Its heatmaps remember what the network saw in earlier crops.
The <em>target</em> is a heatmap read through the crop: that is what SCL teaches. AN teaches the
label, whatever the crop shows. Runs: RUNS.</p>
<div id="explorer"><noscript>The explorer needs JavaScript.</noscript></div>
</main>
<script type="module">
SCRIPT
startPage(document.getElementById("explorer"), DATA);
</script>
</body>
</html>
"""
