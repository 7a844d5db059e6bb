import inspect
import json

import pytest
import yaml

from reloss.experiment.config import to_yaml
from reloss.experiment.settings import override
from reloss.experiment.task import tasks

EVERY = [pytest.param(task, name, id=name) for task in tasks().values() for name in task.experiments]


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_docstring_holds_the_exact_command(task, name):
    make = getattr(task.experiments[name], "func", task.experiments[name])
    lines = [line.strip() for line in inspect.getdoc(make).splitlines()]
    (command,) = [line for line in lines if line.startswith("reloss ")]
    of_this_function = [other for other, made in task.experiments.items() if getattr(made, "func", made) is make]
    commands = [f"reloss run {other} --loss reloss --seed 0" for other in of_this_function]
    assert name in of_this_function
    assert command.removesuffix(" --data DATA") in commands
    assert not lines[0].startswith("reloss ")


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_config_survives_yaml_and_json(task, name):
    config = task.experiments[name]()
    assert config.name == name
    assert type(config).model_validate(yaml.safe_load(to_yaml(config))) == config
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    assert override(config, []) == config
    assert config.losses[0] == config.ordinary_loss
    assert {"approx", "reloss"} < set(config.losses)


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_the_expected_metric_is_a_loss_where_it_is_listed(task, name):
    config = task.experiments[name]()
    if "expected" in config.losses:
        surrogate = task.new_surrogate(config, "expected")
        assert surrogate.metric == config.metric
        assert not list(surrogate.parameters())


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_protocol_tells_experiments_apart(task):
    protocols = [make().protocol() for make in task.experiments.values()]
    assert len(set(protocols)) == len(protocols)
