"""The configuration: its layers, its digest, its profiles, and errors that say what is right."""

import dataclasses
import json
import re

import pytest
from refusals import message_of

from spcl_lib import UserError
from spcl_lib.analysis.runs import read_kept
from spcl_lib.config import RETIRED, RunConfig
from spcl_lib.methods import METHODS, PAPER_METHODS, MethodSettings
from spcl_lib.runs.profiles import PROFILES, cost
from spcl_lib.runs.settings import changes, make_config, methods_of, parse_overrides

OWN_OPTIONS = {"dataset", "method", "seed", "profile", "content"}
FIELDS = [f for owner in (RunConfig, MethodSettings) for f in dataclasses.fields(owner)
          if f.name not in OWN_OPTIONS | {"settings"}]  # fmt: skip


def mistake(*arguments, **options):
    return message_of(make_config, *arguments, **options)


@pytest.mark.parametrize("dataset", PROFILES)
def test_every_profile_of_every_method_is_valid_and_has_a_cost(dataset):
    for profile in PROFILES[dataset]:
        for method in methods_of(dataset):
            config = make_config(dataset, method, 3, profile)
            assert config.report == "test" and config.label_seed == 0  # the same labels for all
            assert changes(config) == {}
        assert cost(dataset, profile) > 0


def test_full_and_iun_need_a_data_set_whose_training_images_have_full_labels():
    assert methods_of("voc2007") == list(PAPER_METHODS)
    for dataset in ("imagenet", "folder"):
        assert not {"full", "iun"} & set(methods_of(dataset, METHODS))
    said = mistake("imagenet", "full")
    assert "'full' needs all labels" in said and "Valid: an, cl, scl" in said


def test_own_photographs_and_own_loops_get_what_the_league_of_coco_chose():
    """With REN's usual values, a model called every photograph "person"."""
    kept = {e["method"]: e["settings"] for e in reversed(read_kept("league-coco18")["final"])}
    for method in methods_of("folder", kept):
        config = make_config("folder", method, 0, "frozen").flat()
        assert (config["lr"], config["epochs"]) == (2e-3, 15), "rates go with the number of images"
        for name in ("prior_weight", "robustness", "weight", "distance", "momentum"):
            assert config[name] == kept[method].get(name, config[name])
    own, ren = dataclasses.asdict(MethodSettings()), kept["ren_scl"]
    assert all(own[k] == ren[k] for k in ("robustness", "prior_weight", "hidden_share", "weight"))


def test_run_needs_no_method_and_names_all_of_them(spcl, monkeypatch):
    from spcl_lib.runs import run, splits

    asked = []

    def record(config, *given):
        asked.append((config.dataset, config.profile, config.method, config.seed))
        raise UserError("enough")

    monkeypatch.setattr(splits, "identify_data", record)
    monkeypatch.setattr(run, "run", record)
    for arguments in ((), ("--data-root", "photos"), ("--profile", "smoke", "--seed", 2)):
        spcl("run", *arguments)
    assert asked == [("scenes", "cpu", "en_scl", 0), ("folder", "frozen", "ren_scl", 0),
                     ("scenes", "smoke", "en_scl", 2)]  # fmt: skip
    listed = spcl("run", "--method", "list").out.splitlines()
    assert [line.split()[0] for line in listed] == list(METHODS)


# --- layers and digest ----------------------------------------------------------------------------


def test_defaults_give_way_to_the_profile_and_that_to_overrides(monkeypatch):
    monkeypatch.setitem(PROFILES, "scenes", {"cpu": {"lr": 0.1, "epochs": 5, "weight": 0.5}})
    texts = ["lr=3e-1", "weights=/a=b.pth", "momentum=0"]
    config = make_config("scenes", "scl", overrides=parse_overrides(texts))
    values = config.flip, config.epochs, config.lr, config.settings.weight, config.weights
    assert values == (RunConfig().flip, 5, 0.3, 0.5, "/a=b.pth")
    assert isinstance(config.settings.momentum, float)
    assert changes(config) == {"lr": 0.3, "weights": "/a=b.pth", "momentum": 0.0}


def test_a_flat_configuration_is_the_same_one_again_and_knows_no_other_name():
    config = make_config("scenes", "scl", 1, overrides={"weight": 0.5, "epochs": 3})
    assert RunConfig.from_flat(config.flat()) == config
    assert config.replace(weight=1.0, epochs=24) == make_config("scenes", "scl", 1)
    own = dataclasses.make_dataclass("Own", [("n", int, 2)], bases=(MethodSettings,), frozen=True)
    assert own(weight=3).n == 2  # of a loss of one's own
    with pytest.raises(TypeError, match="wieght"):
        RunConfig.from_flat({"wieght": 1})


def test_settings_that_are_gone_are_ignored_at_their_usual_values_and_named_at_others():
    flat = RunConfig(lr=0.5).flat()
    for name, usual in RETIRED.items():
        for value in usual:
            assert RunConfig.from_flat(json.loads(json.dumps(flat | {name: value}))).lr == 0.5
        with pytest.raises(UserError, match=f"'{name}' is gone.* changed it to 7"):
            RunConfig.from_flat(flat | {name: 7})


def test_the_digest_changes_with_any_value_but_not_with_a_new_setting():
    def another(field):
        about, is_text = field.metadata, isinstance(field.default, str)
        among = (*about["choices"], "a file") if is_text else (about["low"], about["high"])
        return next(value for value in among if value != base.flat()[field.name])

    base = make_config("scenes", "an")
    others = dict.fromkeys(OWN_OPTIONS, "another") | {f.name: another(f) for f in FIELDS}
    digests = {base.replace(**{name: value}).digest() for name, value in others.items()}
    assert len({base.digest(), *digests}) == len(base.flat())  # snapshots are but a record
    later = dataclasses.make_dataclass("Later", [("new", int, 3)], bases=(RunConfig,), frozen=True)
    assert later.from_flat(base.flat()).digest() == base.digest()
    assert later.from_flat(base.flat() | {"new": 4}).digest() != base.digest()


# --- mistakes -------------------------------------------------------------------------------------


def test_unknown_names_come_with_the_closest_and_all_valid_ones():
    assert "'scene'. Did you mean 'scenes'? Valid: scenes, voc2007" in mistake("scene", "an")
    assert "Did you mean 'smoke'? Valid: cpu" in mistake("scenes", "an", profile="smok")
    said = mistake("scenes", "an", overrides={"momentun": 0.5})
    assert "setting 'momentun'" in said and "Did you mean 'momentum'?" in said and "lr," in said
    for name in (*OWN_OPTIONS, "settings", ""):
        assert f"unknown setting '{name}'" in mistake("scenes", "an", overrides={name: "1"})
    with pytest.raises(UserError, match="'--set lr 3' has no value"):
        parse_overrides(["lr 3"])


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("epochs", "1.5", "int"), ("start", 1e999, "int"), ("lr", None, "float"),
     ("distance", 1, "str")],
)  # fmt: skip
def test_a_wrong_type_is_named(name, value, kind):
    said = mistake("scenes", "an", overrides={name: value})
    assert f"'{name}' must be of type {kind}; got '{value}'" in said


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_setting_says_what_it_is_and_refuses_what_lies_outside(field):
    about = field.metadata
    assert about["help"]
    if isinstance(field.default, str):
        if about["choices"]:
            said = mistake("scenes", "an", overrides={field.name: "another"})
            assert f"unknown value of '{field.name}' 'another'" in said
            assert ", ".join(about["choices"]) in said
        return
    kind = type(field.default)
    outside = [kind(about["low"] - 1), kind(about["high"] * 2 + 1)]
    for value in (*outside, *(["nan"] if kind is float else [])):
        said = mistake("scenes", "an", overrides={field.name: str(value)})
        assert f"'{field.name}' must be in" in said


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("an", {"scale_min": 0.5, "scale_max": 0.4}, "scale_min=0.5 is above scale_max=0.4"),
        ("an", {"report": "val", "held_out": 1}, "does not go with report=val of scenes"),
        ("an", {"report": "train"}, "goes with the data set folder"),
        ("an", {"labels": "mine.csv"}, "go with the data set folder, not scenes"),
        ("an", {"trained": "head", "eval_side": 96}, "needs image_side = eval_side"),
        ("softmax", {"pooling": "lse"}, "needs a pooling where classes compete, as softmax"),
    ],
)
def test_settings_that_do_not_go_together_are_named(method, settings, said):
    assert said in mistake("scenes", method, overrides=settings)


def test_the_help_has_a_line_for_every_setting(spcl, capsys):
    with pytest.raises(SystemExit):
        spcl("run", "--help")
    text = capsys.readouterr().out.partition("settings (--set KEY=VALUE)")[2]
    found = dict(re.findall(r"^  (\w+)=\S* +(\S.*)$", text, re.MULTILINE))
    assert list(found) == [field.name for field in FIELDS]
