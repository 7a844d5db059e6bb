import inspect
import json
import re

import pytest
import yaml

from reloss.experiment.config import to_yaml
from reloss.experiment.settings import override
from reloss.experiment.task import find_experiment, tasks
from reloss.runtime.errors import RelossError

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


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_the_place_of_the_data_is_where_the_check_misses_them(task, name, tmp_path):
    """`reloss list` looks at the place alone; in an empty folder both agree."""
    config = task.experiments[name]()
    place = config.data.place(tmp_path)
    if place is None:
        task.check_data(config, tmp_path)
        return
    assert not place.exists()
    with pytest.raises(RelossError, match=re.escape(str(tmp_path))):
        task.check_data(config, tmp_path)


def test_data_that_pass_the_check_are_at_their_place(tmp_path):
    task, config = find_experiment("nmt/multi30k_de_en_nat")
    (tmp_path / "multi30k").mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (tmp_path / "multi30k" / f"{split}.{language}").write_text("ein Satz\n")
    task.check_data(config, tmp_path)
    assert config.data.place(tmp_path).exists()


@pytest.mark.parametrize("task", tasks().values(), ids=tasks())
def test_protocol_tells_experiments_apart(task):
    protocols = [make().protocol() for make in task.experiments.values()]
    assert len(set(protocols)) == len(protocols)
