"""The explorer: its sentence agrees with the library's own reading, and every control works."""

import io
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from spcl_lib.bank import HeatmapBank
from spcl_lib.data import scenes
from spcl_lib.data.draws import single_label_draw
from spcl_lib.model import SpatialClassifier, build_backbone
from spcl_lib.pooling import MEAN_POOLING
from spcl_lib.runs.snapshots import Trace
from spcl_lib.viewer.explorer import HeatmapExplorer, compose_picture, sentence
from spcl_lib.viewer.explorer_picture import SIDE, as_png, draw
from spcl_lib.viewer.film import CLASS_GROUPS, appearance, appearance_curves, film_strip, verdict
from spcl_lib.views import Views


def some_trace(name: str = "SCL, seed 0", epochs: int = 3, count: int = 6) -> Trace:
    """A trace of an untrained network whose heatmaps are the true masks, stronger every epoch."""
    data = scenes.make_scenes(count, "train", 64)
    torch.manual_seed(0)
    model = SpatialClassifier(*build_backbone("small_resnet", None), len(data.classes)).eval()
    masks = data.regions(torch.arange(count)).float()
    small = torch.nn.functional.adaptive_avg_pool2d(masks, 16)
    heat = [(255 * (e + 1) / epochs * small).to(torch.uint8) for e in range(epochs)]
    seen = torch.ones(epochs, count, 16, 16, dtype=torch.bool)
    seen[0] = False
    seen[:, :, :2] = False  # the top rows have never been seen
    observed = single_label_draw(data.labels, 0)
    return Trace(name, data, observed, range(1, epochs + 1), torch.stack(heat), seen, model, 48)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return some_trace()


def test_the_stage_agrees_with_the_library(trace):
    view = Views(torch.tensor([[0.1, 0.2, 0.8, 0.9]]), torch.tensor([True]))
    label = int(trace.observed[2].int().argmax())
    stage = compose_picture(trace, 2, label, 2, view)
    bank = HeatmapBank(1, 12, 16)
    bank.heatmaps.copy_(trace.heatmaps[2, 2])
    bank.seen.copy_(trace.seen[2, 2])
    target, seen = bank.read(torch.tensor([0]), view, stage.target.shape[-1])
    assert torch.equal(stage.target, target[0, label])
    assert [row.target for row in stage.rows] == MEAN_POOLING.presence(target, seen)[0].tolist()
    assert [row.name for row in stage.rows if row.labelled] == [trace.data.classes[label]]
    assert [row.name for row in stage.rows if row.chosen] == [trace.data.classes[label]]
    assert stage.epoch == 3 and not stage.seen[:2].any() and stage.seen[2:].all()


def test_the_visible_share_is_a_count_of_pixels(trace):
    view = Views(torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.tensor([False]))
    for image in range(len(trace.data)):
        for row in compose_picture(trace, image, 0, 2, view).rows:
            mask = trace.data.class_map[image] == trace.data.classes.index(row.name) + 1
            expected = float(mask[:, :32].sum() / mask.sum()) if mask.any() else None
            assert row.visible == pytest.approx(expected)


def test_what_nobody_has_seen_has_no_target(trace):
    stage = compose_picture(trace, 0, 0, 0, Views.whole(1))
    assert all(row.target is None for row in stage.rows)
    assert "unseen" in sentence(stage)
    draw(stage)  # and can be drawn


def test_every_control_changes_the_picture(trace):
    explorer = HeatmapExplorer(trace, some_trace("another", epochs=2))
    shown = [explorer.picture.value]

    def changed() -> None:
        assert explorer.picture.value not in shown
        shown.append(explorer.picture.value)

    assert Image.open(io.BytesIO(shown[0])).size[1] > SIDE
    explorer.image.value = 3
    changed()
    explorer.epoch.value = 1
    changed()
    explorer.label.value = (explorer.label.value + 1) % 12
    changed()
    explorer.x.value = (0.2, 0.7)
    changed()
    explorer.y.value = (0.3, 0.9)
    changed()
    explorer.flip.value = True
    changed()
    explorer.random.click()
    changed()
    explorer.whole.click()
    assert explorer.view.boxes.tolist() == [[0, 0, 1, 1]] and not explorer.view.flipped.any()
    explorer.run.value = "another"
    changed()
    assert explorer.trace.name == "another" and len(explorer.epoch.options) == 2


def test_a_crop_can_be_asked_for_that_has_lost_the_label_and_shows_the_class(trace):
    explorer = HeatmapExplorer(trace)
    found = 0
    for number in range(1, len(trace.data) + 1):
        explorer.whole.click()
        explorer.image.value = number
        explorer.lose.click()
        if "No crop" in explorer.text.value:
            assert explorer.x.value == (0, 1)  # nothing moved
            continue
        rows = explorer.stage().rows
        labelled, chosen = (next(r for r in rows if getattr(r, k)) for k in ("labelled", "chosen"))
        assert not labelled.visible or labelled.visible < 0.1
        assert labelled is chosen or chosen.visible > 0
        found += 1
    assert found >= 3


def test_without_known_regions_no_crop_is_promised(trace):
    blind = replace(trace, data=replace(trace.data, class_map=None))
    explorer = HeatmapExplorer(blind)
    explorer.lose.click()
    assert "No crop" in explorer.text.value


def test_images_can_be_chosen_by_class(trace):
    explorer = HeatmapExplorer(trace)
    c = int(trace.data.labels.sum(0).argmax())
    explorer.order.value = f"with {trace.data.classes[c]}"
    assert explorer.image.max == int(trace.data.labels[:, c].sum())
    for number in range(1, explorer.image.max + 1):
        explorer.image.value = number
        assert trace.data.labels[explorer._images[number - 1], c]
    explorer.order.value = "in order"
    assert explorer._images == list(range(len(trace.data)))


def test_the_classes_say_what_is_known_of_them(trace):
    explorer = HeatmapExplorer(trace)
    image = explorer._images[0]
    for text, c in explorer.label.options:
        assert ("(the label)" in text) == bool(trace.observed[image, c])
        assert ("not labelled" in text) == bool(trace.hidden()[image, c])


def test_the_first_image_is_the_one_that_was_corrected_most(trace):
    found = (trace.heatmaps[-1].flatten(2).amax(2).float() * trace.hidden()).sum(1)
    assert found[trace.most_corrected()[0]] == found.max()


def test_a_crop_of_no_width_is_opened(trace):
    explorer = HeatmapExplorer(trace)
    explorer.x.value, explorer.y.value = (1.0, 1.0), (0.5, 0.5)
    x0, y0, x1, y1 = explorer.view.boxes[0].tolist()
    assert 0 <= x0 < x1 <= 1 and x1 - x0 > 0.05 and y1 - y0 > 0.05


def test_a_change_is_instant(trace):
    explorer = HeatmapExplorer(trace)
    durations = []
    for _ in range(9):
        clock = time.process_time()  # of this process: other work on the machine does not count
        explorer.random.click()
        durations.append(time.process_time() - clock)
    assert sorted(durations)[4] < 0.1


def test_long_names_and_many_classes_fit(trace):
    stage = compose_picture(trace, 0, 0, 2, Views.whole(1))
    picture = draw(stage)
    assert as_png(picture).startswith(b"\x89PNG")
    edge = torch.tensor(list(picture.convert("L").tobytes())).view(picture.size[::-1])
    assert (edge[:, -1] == 255).all() and (edge[-1] == 255).all()  # nothing is cut off


def test_supervision_appears_where_no_label_was(trace):
    table = appearance(trace)
    assert set(table.group) == set(CLASS_GROUPS) and set(table.epoch) == {
        2,
        3,
    }  # 1 has seen nothing
    last = table[table.epoch == 3].set_index("group")["mean"]
    assert last["not there"] == 0 and last["there, not labelled"] > 0.3
    assert verdict(table).startswith("Supervision has appeared")
    nothing = table.assign(mean=0.1)
    assert verdict(nothing).startswith("No supervision")
    assert appearance_curves(table).axes


def test_a_film_strip_shows_label_hidden_and_absent_classes(trace):
    image = trace.most_corrected()[0]
    figure = film_strip(trace, image)
    names = [axes.get_ylabel() for axes in figure.axes]
    assert any("(label)" in n for n in names) and any("(not labelled)" in n for n in names)
    assert any("(not there)" in n for n in names)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["image", "epoch 1", "epoch 2", "epoch 3"]
