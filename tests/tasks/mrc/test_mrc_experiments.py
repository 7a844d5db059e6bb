import inspect
import json

import pytest
import yaml

from reloss.errors import UsageError
from reloss.experiment.config import override, to_yaml
from reloss.experiment.task import tasks
from reloss.surrogates import ReadingReLoss

TASK = tasks()["mrc"]


@pytest.mark.parametrize("name", TASK.experiments)
def test_docstring_holds_the_exact_command(name):
    make = TASK.experiments[name]
    (command,) = [line.strip() for line in inspect.getdoc(make).splitlines() if line.strip().startswith("reloss ")]
    assert command == f"reloss run {name} --loss reloss --seed 0 --data DATA"
    assert make().name == name


@pytest.mark.parametrize("name", TASK.experiments)
def test_config_survives_yaml_and_json(name):
    config = TASK.experiments[name]()
    assert type(config).model_validate(yaml.safe_load(to_yaml(config))) == config
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    assert config.losses == ("ce", "approx", "reloss")
    assert [make().protocol() for make in TASK.experiments.values()].count(config.protocol()) == 1
    assert "relabelled" not in config.learn.shares()


def test_what_is_tuned_leaves_the_protocol():
    config = TASK.experiments["mrc/squad_minilm"]()
    for setting in ("metric=reading_exact_match", "structure=points", "train.lr=1", "train.init=baseline"):
        assert override(config, [setting]).protocol() == config.protocol()
    for setting in ("train.epochs=3", "data.max_length=256", "model.name=other"):
        assert override(config, [setting]).protocol() != config.protocol()


def test_the_surrogate_is_as_the_options_say():
    config = override(
        TASK.experiments["mrc/squad_minilm"](), ["structure=points", "learn.fidelity=released", "learn.output=identity"]
    )
    surrogate = TASK.new_surrogate(config)
    assert isinstance(surrogate, ReadingReLoss)
    assert surrogate.options() == {
        "structure": "points", "input": "probability", "output": "identity", "width": 64, "scale": 1.0
    }  # fmt: skip


def test_windows_that_do_not_move_on_are_refused():
    with pytest.raises(UsageError, match="must exceed max_question"):
        override(TASK.experiments["mrc/squad_minilm"](), ["data.stride=180"])
