"""`build` returns a fresh surrogate of any kind, `load` a fitted one; neither needs the class."""

import json

import pytest
import torch
from torch.testing import assert_close

from reloss.runtime.errors import RelossError, UsageError
from reloss.surrogates import KINDS, ClassificationReLoss, build, find_kind, load

SHAPES = {"classification": (10,), "pose": (3, 12, 8), "reading": (2, 9), "set": (10,), "translation": (7,)}
RELEASED = {
    "classification": {"input": "probability", "output": "absolute"},
    "pose": {"size": [12, 8], "monotone": False},
    "reading": {"structure": "span", "input": "probability", "output": "absolute"},
    "set": {"output": "absolute"},
    "translation": {"output": "absolute", "positions": "released", "average": "sentence", "width": 32, "length": 7},
}
LIKELIHOOD = {
    "classification": {"input": "log_probability", "output": "monotone"},
    "pose": {"size": [12, 8], "monotone": True},
    "reading": {"structure": "span", "input": "log_probability", "output": "monotone"},
    "set": {"output": "monotone"},
    "translation": {"output": "monotone", "positions": "counted", "average": "token", "width": 32, "length": 7},
}
# The kinds that differ in their expected features only.
for name, same in (("pose_ranking", "pose"), ("top", "set")):
    for table in (SHAPES, RELEASED, LIKELIHOOD):
        table[name] = table[same]


def test_every_kind_is_covered():
    assert SHAPES.keys() == RELEASED.keys() == LIKELIHOOD.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("features", "expected"), [("released", RELEASED), ("likelihood", LIKELIHOOD)])
def test_features_choose_the_options(kind, features, expected):
    surrogate = build(kind, SHAPES[kind], features=features)
    assert type(surrogate) is find_kind(kind)
    assert expected[kind].items() <= surrogate.options().items()
    assert all(parameter.requires_grad for parameter in surrogate.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_options_come_before_the_features(kind):
    """Every kind accepts `input`, though only kinds whose features are probabilities use it."""
    options = build(kind, SHAPES[kind], features="released", input="log_probability", output="identity").options()
    assert options.get("input", "log_probability") == "log_probability"
    assert options.get("output", "identity") == "identity"


def test_options_of_the_constructor():
    assert build("reading", (2, 9), structure="points", width=8).options()["structure"] == "points"
    assert build("translation", (7,), width=16).options()["width"] == 16
    with pytest.raises(TypeError, match="structure"):
        build("set", (10,), structure="points")


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("pose", (5,), r"expected heatmaps \[K, H, W\] of an example, not \[5\]"),
        ("reading", (3, 9), r"expected start and end logits \[2, T\] of an example, not \[3, 9\]"),
        (
            "translation",
            (7, 50),
            r"expected log-probabilities \[T\] of a sentence's gold tokens, or \[T, T\], not \[7, 50\]",
        ),
    ],
)
def test_outputs_of_another_kind_are_refused(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        build(kind, shape)


def test_unknown_names():
    with pytest.raises(UsageError, match="did you mean classification"):
        build("clasification", (10,))
    with pytest.raises(UsageError, match="unknown features 'release'; did you mean released"):
        build("set", (10,), features="release")


@pytest.mark.parametrize("kind", KINDS)
def test_load_reads_the_class_from_the_card(kind, tmp_path):
    surrogate = build(kind, SHAPES[kind])
    surrogate.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(surrogate)
    assert loaded.options() == surrogate.options()
    for name, value in surrogate.state_dict().items():
        assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_load_by_name():
    assert type(load("classification/cifar10")) is ClassificationReLoss
    with pytest.raises(UsageError, match=r"no surrogate at clasification/cifar10.*did you mean classification/cifar10"):
        load("clasification/cifar10")


def test_load_refuses_what_has_no_known_class(tmp_path):
    torch.save(ClassificationReLoss().state_dict(), tmp_path / "reloss_cls.ckpt")
    with pytest.raises(UsageError, match="holds weights without a card; load it with from_pretrained"):
        load(tmp_path / "reloss_cls.ckpt")
    with pytest.raises(RelossError, match=r"holds no saved loss, no surrogate\.json"):
        load(tmp_path)
    cards = (
        ({"options": {}}, "has no class and options"),
        ({"class": "Mean", "options": {}}, "a Mean, not one of Class"),
    )
    for card, message in cards:
        (tmp_path / "surrogate.json").write_text(json.dumps(card))
        with pytest.raises(RelossError, match=message):
            load(tmp_path)


BATCHES = {
    "classification": (torch.randn(4, 10), torch.arange(4)),
    "pose": (torch.rand(4, 3, 12, 8), torch.rand(4, 3, 12, 8)),
    "reading": (torch.randn(4, 2, 9), torch.ones(4, 1, 2, dtype=torch.long)),
    "set": (torch.randn(4, 10), torch.arange(4)),
    "translation": (-torch.rand(4, 7), torch.ones(4, 7, 2, dtype=torch.long)),
}
BATCHES |= {"pose_ranking": BATCHES["pose"], "top": BATCHES["set"]}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unfitted_surrogate_trains_no_model(kind):
    surrogate = build(kind, SHAPES[kind])
    weight = torch.ones(1, requires_grad=True)
    outputs, targets = BATCHES[kind]
    with pytest.raises(UsageError, match="has not been fitted, so it cannot train a model: fit it with fit_surrogate"):
        surrogate(weight * outputs, targets)
    assert surrogate(outputs, targets).isfinite()
    surrogate.freeze()(weight * outputs, targets).backward()
    assert weight.grad.isfinite()
