"""What `audit` writes: a page of pictures that needs no other file, and a CSV file for other tools.

audit.csv has a row per suggestion: path (of your own images, below their folder; of other data
sets, the whole path; of drawn images, their name), class, kind ("missing" or "wrong"), score (how
sure, in 0..1), and the box x0, y0, x1, y1 as fractions of the image.

FiftyOne has no loader for several rows of one image: its `CSVDataset` keeps the last. Its boxes are
x, y, width, height as fractions of the image, so its own loop over rows reads ours:

    for path, rows in pandas.read_csv("audit/audit.csv").groupby("path"):
        sample = fiftyone.Sample(filepath=os.path.join(folder, path))
        sample["audit"] = fiftyone.Detections(detections=[
            fiftyone.Detection(
                label=row["class"], kind=row.kind, confidence=row.score,
                bounding_box=[row.x0, row.y0, row.x1 - row.x0, row.y1 - row.y0],
            )
            for _, row in rows.iterrows()
        ])
        dataset.add_sample(sample)

cleanlab reads no files. `cleanlab.multilabel_classification` takes a probability for every image
and class, and lists of class numbers. So let `audit --most` be at least images times classes:

    table = pandas.read_csv("audit/audit.csv")
    table["presence"] = table.score.where(table.kind == "missing", 1 - table.score)
    pred_probs = table.pivot(index="path", columns="class", values="presence")
    given = table[table.kind == "wrong"].groupby("path")["class"]
    number = pred_probs.columns.get_loc
    labels = [[number(name) for name in given.get_group(path)] for path in pred_probs.index]
    scores = get_label_quality_scores(labels, pred_probs.to_numpy())
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from spcl_lib.analysis.audit import Precision, ReadMaps, Suggestions, maps_of_pairs
from spcl_lib.data.image_set import ImageSet
from spcl_lib.runs.prediction_files import plain, plain_path
from spcl_lib.system.errors import printable
from spcl_lib.system.files import atomic_write
from spcl_lib.viewer.heat import draw_smooth_heat, picture_of
from spcl_lib.viewer.overlays import shrink

SHOWN = 100  # most suggestions of each kind on the page
_SIDE = 240  # pixels, longer side of a picture
_COLUMNS = ("path", "class", "kind", "score", "x0", "y0", "x1", "y1")


def write_suggestions(file: Path, found: Sequence[Suggestions], data: ImageSet) -> None:
    """Writes audit.csv, see above; what is there is replaced.

    Args:
        file: the CSV file.
        found: suggestions of every kind.
        data: the images.
    """
    with atomic_write(file) as temporary:
        # File names that are not valid text are written unchanged, as in files of predictions.
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(_COLUMNS)
            for part in found:
                columns = (part.image, part.label, part.score, part.box)
                for image, label, score, box in zip(*(c.tolist() for c in columns), strict=True):
                    numbers = (f"{value:.4f}" for value in (score, *box))
                    path, name = plain_path(_path(data, image)), plain(data.classes[label])
                    writer.writerow([path, name, part.kind, *numbers])


def _path(data: ImageSet, image: int) -> str:
    name = data.ids[image]
    if data.files is None or data.files[image].as_posix().endswith(f"/{name}"):
        return name
    return str(data.files[image])


def precision_text(found: Precision) -> str:
    """How many suggestions are right, in one sentence."""
    text = (
        f"Of the first {found.count} missing labels, {found.right:.0f} % are right "
        f"(a random pair: {found.chance:.1f} %)."
    )
    if found.place is None:
        return text
    return (
        f"{text} For {found.place:.0f} % of these, the highest cell is on an object of the class "
        f"(a random cell: {found.place_chance:.0f} %)."
    )


def write_page(
    file: Path,
    facts: Sequence[str],
    found: Sequence[Suggestions],
    read: ReadMaps,
    data: ImageSet,
    given: torch.Tensor,
) -> None:
    """Writes the page with the first suggestions of every kind.

    Args:
        file: HTML file; it is replaced.
        facts: sentences below the title.
        found: suggestions of every kind.
        read: gives the heatmaps of the images.
        data: the N images.
        given: (N, C) bool, the labels that the run was trained on.
    """
    lines = [*map(_text, facts), _HELP, _scale()]
    body = [f"<h1>{_TITLE}</h1>", *(f"<p>{line}</p>" for line in lines)]
    for part in found:
        part = part.first(SHOWN)
        cards: list[str] = [""] * len(part)
        for which, maps in maps_of_pairs(read, part.image, part.label):
            for m, heat in zip(which.tolist(), maps, strict=True):
                cards[m] = _card(m, part, heat, data, given)
        heading = _HEADINGS[part.kind]
        body.append(f'<h2>{heading}</h2>\n<div class="cards">\n{"".join(cards)}</div>')
    content = _PAGE.format(title=_TITLE, body="\n".join(body))
    with atomic_write(file) as temporary:
        temporary.write_text(content, encoding="utf-8")


_TITLE = "spcl: labels to check"
_HELP = (
    "Every entry shows the image, and beside it the heatmap of the class in question. "
    "The number says how sure the run is, from 0 to 1. A box is where a missing label is most "
    "likely. Small and rare objects often look wrong although their label is right."
)
_HEADINGS = {"missing": "Labels that may be missing", "wrong": "Labels that may be wrong"}


def _card(
    m: int, part: Suggestions, heat: torch.Tensor, data: ImageSet, given: torch.Tensor
) -> str:
    image, label = int(part.image[m]), _text(data.classes[int(part.label[m])])
    name, score = _text(data.ids[image]), f"<span>{float(part.score[m]):.3f}</span>"
    if data.files is None:
        picture = picture_of(data.images[torch.tensor([image])][0], _SIDE)
    else:
        picture = shrink(data.files[image], _SIDE)
    under = draw_smooth_heat(picture, heat)
    says = f"not {label}? {score}"
    if part.kind == "missing":
        _draw_box(picture, part.box[m].tolist())
        labels = [_text(data.classes[c]) for c in given[image].nonzero().flatten().tolist()]
        says = f"{label}? {score}<small>has: {', '.join(labels)}</small>"
    return (
        f"<figure><div>{_embed(picture, name)}{_embed(under, f'heatmap of {label}')}</div>"
        f"<figcaption><b>{m + 1}. {says}</b><i>{name}</i></figcaption></figure>\n"
    )


def _draw_box(picture: Image.Image, box: Sequence[float]) -> None:
    """Draws a white line between black ones, which is seen on any image."""
    x0, y0, x1, y1 = (round(v * side) for v, side in zip(box, picture.size * 2, strict=True))
    pen = ImageDraw.Draw(picture)
    for inset, colour in enumerate(("black", "white", "white", "black")):
        corners = (x0 + inset, y0 + inset, x1 - 1 - inset, y1 - 1 - inset)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            pen.rectangle(corners, outline=colour)


def _scale() -> str:
    bar = draw_smooth_heat(Image.new("RGB", (240, 14), "#808080"), torch.linspace(0, 1, 240)[None])
    return f'probability in a cell: 0 <span class="scale">{_embed(bar, "colours")}</span> 1'


def _embed(picture: Image.Image, alt: str) -> str:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="{alt}" loading="lazy">'


def _text(text: str) -> str:
    return html.escape(printable(text))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 84rem; padding: 0 1rem 2rem; background: #fff; color: #1c1c1c;
  font: 16px/1.5 system-ui, sans-serif; }}
h1, h2 {{ line-height: 1.25; margin: 1.6rem 0 .6rem; }}
p {{ max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }}
.scale img {{ width: 10rem; height: .9rem; vertical-align: middle; }}
.cards {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr));
  align-items: start; }}
figure {{ margin: 0; padding: .6rem; border: 1px solid #ddd; border-radius: 6px; }}
figure div {{ display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; align-items: center; }}
figure img {{ width: 100%; height: auto; max-height: 15rem; object-fit: contain; }}
figcaption {{ margin-top: .4rem; }}
figcaption span {{ font-variant-numeric: tabular-nums; color: #555; font-weight: normal; }}
small, i {{ display: block; font: .8rem/1.4 system-ui, sans-serif; color: #555;
  overflow-wrap: anywhere; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
