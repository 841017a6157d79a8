"""Heatmaps over the epochs: what appears, and what a strip shows."""

from dataclasses import replace

import pytest
from fake_trace import fake_trace
from matplotlib import pyplot

from spcl_lib.viewer.film import CLASS_GROUPS, appearance, class_groups, film_strip, peaks

pyplot.switch_backend("agg")


@pytest.fixture(scope="module")
def trace():
    return fake_trace()


def test_supervision_appears_where_no_label_was(trace):
    table = appearance(trace)
    assert set(table.group) == set(CLASS_GROUPS)
    assert set(table.epoch) == {2, 3}  # 1 has seen nothing
    assert len(table) == 2 * 6 * 12  # epochs, images, classes
    last = table[table.epoch == 3].groupby("group").peak.mean()
    assert last["absent"] == 0 and last["unlabelled"] > 0.3
    assert peaks(trace)[0].max() == 0  # unseen cells do not count


def test_without_full_labels_no_class_is_unlabelled(trace):
    single = replace(trace, data=replace(trace.data, labels=trace.observed))
    assert set(appearance(single).group) == {"labelled", "absent"}


def test_a_film_strip_shows_labelled_unlabelled_and_absent_classes(trace):
    image = int(class_groups(trace)["unlabelled"].sum(1).argmax())
    figure = film_strip(trace, image, frames=8)
    names = [axes.get_ylabel() for axes in figure.axes]
    assert all(any(f"({group})" in name for name in names) for group in CLASS_GROUPS)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["image", "epoch 1", "epoch 2", "epoch 3"]
    one = film_strip(trace, image, [0], frames=2)
    assert [a.get_title() for a in one.axes if a.get_title()] == ["image", "epoch 1", "epoch 3"]
