"""The configuration: its layers, its digest, and errors that say what would be right."""

import dataclasses
import re

import pytest

from spcl_lib import UserError
from spcl_lib.__main__ import main
from spcl_lib.config import RunConfig
from spcl_lib.methods import METHODS, PAPER_METHODS, MethodSettings
from spcl_lib.runs.profiles import COSTS, PROFILES, cost
from spcl_lib.runs.settings import changes, make_config, methods_of, parse_overrides


def mistake(*arguments, **options):
    with pytest.raises(UserError) as caught:
        make_config(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dataset", PROFILES)
def test_every_profile_of_every_method_is_valid_and_named_in_its_configuration(dataset):
    assert {"cpu", "smoke"} <= set(PROFILES[dataset])
    for profile in PROFILES[dataset]:
        for method in methods_of(dataset):
            config = make_config(dataset, method, 3, profile)
            names = (config.dataset, config.method, config.seed, config.profile)
            assert names == (dataset, method, 3, profile)
            assert config.report == "test"


@pytest.mark.parametrize("dataset", PROFILES)
def test_the_observed_labels_are_the_same_for_all_methods_and_seeds(dataset):
    configs = [
        make_config(dataset, method, seed) for method in methods_of(dataset) for seed in (0, 1)
    ]
    assert len({config.label_seed for config in configs}) == 1


def test_full_and_iun_need_a_data_set_whose_training_images_have_full_labels():
    assert methods_of("voc2007") == list(PAPER_METHODS)
    for dataset in ("imagenet", "folder"):
        assert methods_of(dataset) == [name for name in PAPER_METHODS if name != "full"]
        assert not {"full", "iun"} & set(methods_of(dataset, METHODS))
        assert "gr_scl" in methods_of(dataset, METHODS)
    said = mistake("imagenet", "full")
    assert "'full' needs all labels" in said and "Valid: an, cl, scl" in said


def test_defaults_give_way_to_the_profile_and_that_to_overrides(monkeypatch):
    monkeypatch.setitem(PROFILES, "scenes", {"cpu": {"lr": 0.1, "epochs": 5, "weight": 0.5}})
    config = make_config("scenes", "scl", overrides={"lr": 0.3})
    values = config.flip, config.epochs, config.lr, config.settings.weight
    assert values == (RunConfig.flip, 5, 0.3, 0.5)
    assert changes(config) == {"lr": 0.3}
    assert changes(make_config("scenes", "an")) == {}


def test_a_flat_configuration_is_the_same_one_again_and_knows_no_other_name():
    config = make_config("scenes", "scl", 1, overrides={"weight": 0.5, "epochs": 3})
    assert RunConfig.from_flat(config.flat()) == config
    assert config.replace(weight=1.0, epochs=24) == make_config("scenes", "scl", 1)
    with pytest.raises(TypeError, match="wieght"):
        RunConfig.from_flat({"wieght": 1})


def test_overrides_are_parsed_by_the_type_of_the_setting():
    texts = ["lr=1e-3", "epochs=3", "weights=a=b.pth", "momentum=0"]
    config = make_config("scenes", "scl", overrides=parse_overrides(texts))
    values = config.lr, config.epochs, config.weights, config.settings.momentum
    assert values == (1e-3, 3, "a=b.pth", 0.0)
    assert isinstance(config.settings.momentum, float)
    assert isinstance(make_config("scenes", "an", overrides={"lr": 1}).lr, float)


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config("scenes", "an").lr = 1.0


def test_the_digest_changes_with_any_value():
    base = make_config("scenes", "an")
    assert base.digest() == make_config("scenes", "an").digest()
    digests = {base.digest()}
    for name, value in base.flat().items():
        digests.add(base.replace(**{name: f"{value}x"}).digest())
    assert len(digests) == 1 + len(base.flat())


def test_the_digest_stays_when_a_later_version_has_one_more_setting():
    later = dataclasses.make_dataclass(
        "Later", [("added", int, 3)], bases=(RunConfig,), frozen=True
    )  # fmt: skip
    config = make_config("scenes", "scl", overrides={"lr": 0.5})
    assert later.from_flat(config.flat()).digest() == config.digest()
    assert later.from_flat(config.flat() | {"added": 4}).digest() != config.digest()


def test_the_methods_get_the_settings_of_the_configuration():
    values = {"weight": 3.0, "start": 5, "ramp": 0.5, "distance": "l1", "momentum": 0.5,
              "bank_size": 9, "bank_dtype": "float16", "bank_classes": 3, "expected_positives": 2.5,
              "expected_count": "estimated", "smoothing": 0.05,
              "entropy_weight": 0.3, "pseudo_weight": 0.4,
              "rejected": 0.1, "robustness": 0.6, "prior_weight": 2.0, "hidden_share": 0.7,
              "pseudo_least": 0.3, "count_weight": 0.2, "asset_weight": 0.5,
              "asset_step": 0.2}  # fmt: skip
    assert set(values) == {field.name for field in dataclasses.fields(MethodSettings)}
    config = make_config("scenes", "scl", overrides=values)
    assert config.settings == MethodSettings(**values)


# --- mistakes -------------------------------------------------------------------------------------


def test_unknown_names_come_with_the_closest_and_all_valid_ones():
    assert "'scene'. Did you mean 'scenes'? Valid: scenes, voc2007" in mistake("scene", "an")
    assert "Did you mean 'scl'? Valid: an, cl, scl" in mistake("scenes", "sccl")
    said = mistake("scenes", "an", profile="smok")
    assert "Did you mean 'smoke'?" in said and "cpu" in said
    said = mistake("scenes", "an", overrides={"momentun": 0.5})
    assert "setting 'momentun'" in said and "Did you mean 'momentum'?" in said and "lr," in said


@pytest.mark.parametrize("name", ["dataset", "method", "seed", "profile", "content", "settings"])
def test_what_has_an_option_of_its_own_is_no_setting(name):
    assert f"unknown setting '{name}'" in mistake("scenes", "an", overrides={name: "1"})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("epochs", "many", "int"), ("epochs", "1.5", "int"), ("epochs", 1.5, "int"),
     ("epochs", True, "int"), ("lr", "fast", "float"), ("lr", True, "float"), ("lr", None, "float"),
     ("epochs", "", "int"), ("distance", 1, "str")],
)  # fmt: skip
def test_a_wrong_type_is_named(name, value, kind):
    said = mistake("scenes", "an", overrides={name: value})
    assert f"'{name}' must be of type {kind}; got '{value}'" in said


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch", 0), ("batch", -1), ("lr", 0.0), ("lr", "nan"), ("lr", "inf"),
     ("eval_every", 0), ("crop_side", 0), ("image_side", 222169),
     ("scale_min", 0.0), ("scale_min", "nan"),
     ("scale_max", 1.2), ("ratio_max", 0.5), ("flip", -0.1), ("flip", 1.1), ("momentum", 1.0),
     ("momentum", "nan"), ("weight", -1.0), ("weight", "inf"), ("start", -1), ("ramp", -1.0),
     ("bank_size", 0), ("expected_positives", 0.5), ("train_images", -1), ("eval_images", -1),
     ("weight_decay", -0.1), ("head_lr_factor", 0.0), ("label_seed", -1), ("frozen", -1),
     ("warmup", 1.5), ("pseudo_least", 0.8),
     ("pseudo_least", "nan"), ("count_weight", -0.1), ("asset_weight", -1.0), ("asset_step", 1.1),
     ("asset_step", -0.1)],
)  # fmt: skip
def test_a_value_outside_its_range_is_named(name, value):
    assert name in mistake("scenes", "an", overrides={name: value})


def test_a_seed_outside_its_range_is_named():
    assert "'seed'" in mistake("scenes", "an", seed=-1)


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [("report", "tset", "test, val"), ("backbone", "resnet", "small_resnet, mobilenet_v2"),
     ("amp", "fp16", "auto, bfloat16, off"), ("distance", "l3", "bce, l1, l2"),
     ("bank_dtype", "int8", "uint8, float16, float32")],
)  # fmt: skip
def test_a_choice_comes_with_its_valid_values(name, value, valid):
    said = mistake("scenes", "an", overrides={name: value})
    assert f"'{value}'" in said and valid in said


def test_only_a_real_data_set_has_other_held_out_parts():
    assert make_config("coco18", "an", 0, "smoke", {"report": "val", "held_out": 2}).held_out == 2
    for dataset, report in (("scenes", "val"), ("imagenet", "val"), ("coco18", "test")):
        said = mistake(dataset, "an", overrides={"report": report, "held_out": 1})
        assert f"does not go with report={report} of {dataset}" in said
    assert "'held_out' must be in 0..2" in mistake(
        "coco18", "an", overrides={"report": "val", "held_out": 3}
    )


@pytest.mark.parametrize("pair", ["lr", "=3", "lr 3", ""])
def test_an_override_needs_a_key_and_a_value(pair):
    with pytest.raises(UserError):
        parse_overrides([pair])


def test_every_profile_says_what_it_costs():
    for dataset, profiles in PROFILES.items():
        for profile in profiles:
            expected = cost(dataset, profile)
            assert expected.seconds > 0 and " and " in str(expected)
            assert profile != "smoke" or expected.seconds <= 60
    assert set(COSTS) <= {(d, p) for d in PROFILES for p in PROFILES[d]}


def test_the_help_says_something_about_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out.partition("settings (--set KEY=VALUE)")[2]
    found = dict(re.findall(r"^  (\w+)=\S* +(\S.*)$", text, re.MULTILINE))
    names = set(RunConfig().flat()) - {"dataset", "method", "seed", "profile", "content"}
    assert set(found) == names
