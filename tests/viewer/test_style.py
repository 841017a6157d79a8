"""The style of the figures: the size of their text is one setting."""

import pytest
import torch

from spcl_lib.system.errors import UserError
from spcl_lib.viewer import figures


def title_size():
    images = torch.zeros(1, 3, 8, 8)
    return figures.contact_sheet(images, ["a cat"]).axes[0].title.get_fontsize()


def test_text_is_enlarged_for_a_lecture(monkeypatch):
    monkeypatch.delenv("SPCL_FONT", raising=False)
    usual = title_size()
    for given, size in (("1.5", 1.5), ("", 1), ("2", 2)):
        monkeypatch.setenv("SPCL_FONT", given)
        assert title_size() == pytest.approx(size * usual)


@pytest.mark.parametrize("given", ["large", "0.1", "1000", "nan", "-1"])
def test_another_size_is_refused(given, monkeypatch):
    monkeypatch.setenv("SPCL_FONT", given)
    with pytest.raises(UserError, match=f"SPCL_FONT must be a number in 0.5..3; got '{given}'"):
        title_size()
