import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reloss.experiment.config import dotted_keys, override, to_yaml
from reloss.experiment.task import find_experiment
from reloss.learning.options import PRESETS, LearnOptions
from reloss.runtime.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return find_experiment("classification/digits_cnn")[1]


@pytest.mark.parametrize(
    ("setting", "section", "key", "value"),
    [
        ("train.epochs=3", "train", "epochs", 3),
        ("train.lr=1e-3", "train", "lr", 0.001),
        ("train.lr=1e30", "train", "lr", 1e30),
        ("train.milestones=[1, 2]", "train", "milestones", (1, 2)),
        ("train.clip_norm=0.5", "train", "clip_norm", 0.5),
        ("train.clip_norm=null", "train", "clip_norm", None),
        ("train.precision=no", "train", "precision", "no"),
        ("train.precision='no'", "train", "precision", "no"),
        ("learn.calibrate=false", "learn", "calibrate", False),
        ("learn.calibrate=no", "learn", "calibrate", False),
        ("recording.item_size=7", "recording", "item_size", 7),
        ("model.name=a=b", "model", "name", "a=b"),
    ],
)
def test_override_takes_typed_values(digits, setting, section, key, value):
    found = getattr(getattr(override(digits, [setting]), section), key)
    assert found == value
    assert type(found) is type(value)


def test_override_changes_nothing_else(digits):
    changed = override(digits, ["train.epochs=3", "metric=top5_accuracy"]).model_dump()
    before = digits.model_dump()
    assert changed.pop("metric") == "top5_accuracy"
    assert before.pop("metric") == "accuracy"
    assert changed["train"].pop("epochs") == 3
    assert before["train"].pop("epochs") == 20
    assert changed == before


def test_the_last_setting_of_a_key_counts(digits):
    assert override(digits, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@given(epochs=st.integers(1, 10**6), rate=st.floats(1e-12, 1e12))
def test_any_number_survives_override(digits, epochs, rate):
    train = override(digits, [f"train.epochs={epochs}", f"train.lr={rate!r}"]).train
    assert (train.epochs, train.lr) == (epochs, rate)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "key=value, not 'train.epochs'"),
        ("train.epoch=3", "did you mean train.epochs"),
        ("train.lr=fast", "train.lr: Input should be a valid number.*not 'fast'"),
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, not 0"),
        ("train.epochs=1.5", "train.epochs: .*fractional part, not 1.5"),
        ("train.precision=fp8", "train.precision: Input should be 'no', 'fp16' or 'bf16', not 'fp8'"),
        ("learn.fidelity=relased", "learn.fidelity: Input should be 'released' or 'corrected'"),
        ("train.milestones=[1", "the value is not YAML"),
        ("train=3", "unknown config key 'train'"),
        ("name=other", "unknown config key 'name'"),
        ("losses=[ce]", "unknown config key 'losses'"),
    ],
)
def test_override_names_what_is_wrong(digits, setting, message):
    with pytest.raises(UsageError, match=message):
        override(digits, [setting])


def test_every_key_takes_its_own_value(digits):
    values = yaml.safe_load(to_yaml(digits))
    for key in dotted_keys(digits):
        value = values
        for part in key.split("."):
            value = value[part]
        assert override(digits, [f"{key}={json.dumps(value)}"]) == digits


def test_fidelity_switches_all_that_it_names(digits):
    for fidelity, preset in PRESETS.items():
        learn = override(digits, [f"learn.fidelity={fidelity}"]).learn.model_dump()
        assert {name: learn[name] for name in preset} == preset
        assert (learn["items"], learn["steps"]) == (64, 200)  # of the digits experiment, still
    assert PRESETS["released"].keys() == PRESETS["corrected"].keys()
    assert override(digits, []).learn == digits.learn == override(digits, ["learn.fidelity=corrected"]).learn


def test_a_named_option_wins_over_fidelity(digits):
    settings = ["learn.fidelity=released", "learn.calibrate=true"]
    for order in (settings, settings[::-1]):
        learn = override(digits, order).learn
        assert learn.calibrate is True
        assert learn.penalty == "item"
        assert LearnOptions.model_validate(learn.model_dump()) == learn


@pytest.mark.parametrize(
    "setting",
    ["train.epochs=3", "data.per_class=5", "data.image_size=16", "model.name=resnet20", "train.clip_norm=1"],
)
def test_protocol_differs_by_what_makes_scores_incomparable(digits, setting):
    assert override(digits, [setting]).protocol() != digits.protocol()


@pytest.mark.parametrize(
    "setting",
    ["train.lr=0.2", "train.init=baseline", "train.ordinary_weight=0.5", "learn.steps=3", "learn.fidelity=released"],
)
def test_protocol_is_shared_over_what_is_tuned_for_each_loss(digits, setting):
    assert override(digits, [setting]).protocol() == digits.protocol()
