import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reloss.experiment.config import to_yaml
from reloss.experiment.settings import baseline_settings, canonical_settings, dotted_keys, override
from reloss.experiment.task import find_experiment
from reloss.learning.options import RELEASED, LearnOptions
from reloss.runtime.errors import UsageError
from reloss.surrogates.options import PRESETS


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
        ("model.name=my model #1", "model", "name", "my model #1"),
        ("model.name=123", "model", "name", "123"),
        ("train.epochs=010", "train", "epochs", 10),
        ("train.milestones=[010, '2']", "train", "milestones", (10, 2)),
        ("learn.mixture={shifted: 010}", "learn", "mixture", {"shifted": 10.0}),
        ("learn.output=identity", "surrogate", "output", "identity"),
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


def test_a_key_given_twice_is_refused(digits):
    with pytest.raises(UsageError, match=r"train.epochs is given twice, as 3 and 4"):
        override(digits, ["train.epochs=3", "train.epochs=4"])
    with pytest.raises(UsageError, match=r"surrogate.output is given twice"):
        override(digits, ["learn.output=absolute", "surrogate.output=identity"])


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
        ("train.epochs=0", "train.epochs: Input should be greater than or equal to 1, not '0'"),
        ("train.epochs=1.5", "train.epochs: .*valid integer.*not '1.5'"),
        ("train.epochs=1:30", "train.epochs: .*valid integer.*not '1:30'"),
        ("train.epochs=true", "train.epochs: .*valid integer"),
        ("train.lr=1e400", "train.lr: Input should be a finite number"),
        ("train.precision=fp8", "train.precision: Input should be 'no', 'fp16' or 'bf16', not 'fp8'"),
        ("learn.fidelity=relased", "learn.fidelity: Input should be 'released' or 'corrected'"),
        ("train.milestones=[1", "the value is not YAML"),
        ("train.milestones=" + "[" * 400, "the value is not YAML"),
        ("train.milestones=[1:30]", "train.milestones.0: .*valid integer.*not '1:30'"),
        ("train.milestones=[true]", "train.milestones.0: .*valid integer"),
        ("train.milestones=[!!int x]", "train.milestones.0: .*valid integer.*not 'x'"),
        ("train.epochs=!!int x", "train.epochs: .*valid integer.*not '!!int x'"),
        ("model.name=a\x00", "the value of model.name holds a character that cannot be printed: 'a.x00'"),
        ("data.image_size=null", "^--set: images of digits need data.image_size$"),
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


def test_released_fidelity_switches_everything_it_names(digits):
    released = override(digits, ["learn.fidelity=released"])
    learn = released.learn.model_dump()
    assert {name: learn[name] for name in RELEASED} == RELEASED
    assert released.surrogate.model_dump() == {"features": "released", **PRESETS["released"]}
    assert (learn["items"], learn["steps"]) == (64, 200)  # the digits experiment's own
    assert override(digits, []) == digits == override(digits, ["learn.fidelity=corrected"])


def test_the_written_defaults_are_the_corrected_ones():
    fields = LearnOptions.model_fields
    assert {name: fields[name].default for name in RELEASED} == {
        "standardize": True,
        "ties": "mean",
        "penalty": "auto",
        "mixture": "half",
        "calibrate": True,
    }


def test_a_setting_that_is_dropped_is_checked_all_the_same(digits):
    with pytest.raises(UsageError, match=r"learn.steps: .*not 'x'"):
        canonical_settings(digits, ["learn.steps=x"], "ce")


def test_settings_are_compared_by_resolved_value(digits):
    for text in ("0.10", "1e-1", "0.1", ".1"):
        assert canonical_settings(digits, [f"train.lr={text}"], "ce") == ("train.lr=0.1",)
    assert canonical_settings(digits, ["train.epochs=20", "train.lr=5e-2"], "ce") == ()
    learned = ["learn.steps=20", "train.epochs=2", "metric=top5_accuracy", "train.ordinary_weight=1"]
    assert canonical_settings(digits, learned, "ce") == ("train.epochs=2",)
    assert canonical_settings(digits, learned, "reloss") == (
        "learn.steps=20",
        "metric=top5_accuracy",
        "train.epochs=2",
        "train.ordinary_weight=1.0",
    )


def test_settings_that_are_valid_only_together_stay_together(digits):
    settings = ("data.negatives_per_positive=5", "data.positive_class=3")
    assert canonical_settings(digits, settings, "ce") == settings


def test_a_setting_that_equals_the_default_but_not_the_release_counts(digits):
    settings = ["learn.fidelity=released", "learn.output=monotone", "surrogate.input=probability"]
    assert canonical_settings(digits, settings, "reloss") == ("learn.fidelity=released", "surrogate.output=monotone")


@pytest.mark.parametrize(
    "settings",
    [
        ["train.milestones=[1, 2]", "train.clip_norm=null"],
        ["learn.mixture={recorded: 1, noisy: 3}", "learn.pool=64"],
        ["data.per_class=5", "model.name=a b/c", "train.lr=1e-12"],
    ],
)
def test_canonical_settings_resolve_to_the_same_config(digits, settings):
    canonical = canonical_settings(digits, settings, "reloss")
    assert override(digits, canonical) == override(digits, settings)
    assert canonical_settings(digits, canonical, "reloss") == canonical


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


def test_length_shortens_every_duration_of_fine_tuning(digits):
    settings = ["train.init=baseline", "train.length=0.25", "train.epochs=40", "train.milestones=[20, 30, 1]"]
    config = override(digits, settings)
    recipe = config.train.shortened()
    assert (recipe.epochs, recipe.milestones, recipe.warmup_epochs) == (10, (5, 8, 1), 0)
    assert config.train.epochs == 40
    assert config.protocol() == override(digits, settings[2:]).protocol()
    assert baseline_settings(config, settings) == tuple(settings[2:])
    assert override(digits, ["train.init=baseline", "train.epochs=3"]).train.shortened().epochs == 3


def test_only_fine_tuning_is_shortened(digits):
    with pytest.raises(UsageError, match="length shortens fine-tuning; it needs init=baseline"):
        override(digits, ["train.length=0.5"])
