"""The README's example of a new loss works, and the method with SCL can be trained."""

import re

from spcl_lib import losses, methods
from spcl_lib.runs import settings
from spcl_lib.runs.run import run
from spcl_lib.system import paths

README = (paths.project() / "README.md").read_text()
SECTION = re.search(r"^## Your own loss$(.*?)^## ", README, re.M | re.S)[1]
FILE, ROW = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)


def test_a_file_and_a_row_make_three_methods_that_train(results, tiny, monkeypatch):
    names = {"Term": losses.Term}
    exec(FILE, names)
    ((name, term),) = eval("{" + ROW + "}", names).items()
    monkeypatch.setitem(losses.TERMS, name, term)
    every = methods._all_methods()
    assert every.keys() - methods.METHODS.keys() == {"mine", "mine_cl", "mine_scl"}
    for each, spec in every.items():
        monkeypatch.setitem(methods.METHODS, each, spec)
    metrics = run(settings.make_config("scenes", "mine_scl", 0, "smoke", tiny))
    assert metrics["method"] == "mine_scl" and metrics["mAP"] > 0
    assert methods.title_of("mine_scl") == "Mine + SCL"
