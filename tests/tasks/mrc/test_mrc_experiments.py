import pytest

from reloss.experiment.settings import override
from reloss.experiment.task import tasks
from reloss.runtime.errors import UsageError
from reloss.surrogates import ReadingReLoss

TASK = tasks()["mrc"]


def test_tuned_keys_do_not_change_the_protocol():
    config = TASK.experiments["mrc/squad_minilm"]()
    for setting in ("metric=reading_exact_match", "structure=points", "train.lr=1", "train.init=baseline"):
        assert override(config, [setting]).protocol() == config.protocol()
    for setting in ("train.epochs=3", "data.max_length=256", "model.name=other"):
        assert override(config, [setting]).protocol() != config.protocol()


def test_the_surrogate_has_the_options_of_the_config():
    config = override(
        TASK.experiments["mrc/squad_minilm"](), ["structure=points", "learn.fidelity=released", "learn.output=identity"]
    )
    surrogate = TASK.new_surrogate(config)
    assert isinstance(surrogate, ReadingReLoss)
    assert surrogate.options() == {
        "structure": "points", "input": "probability", "output": "identity", "width": 64, "scale": 1.0
    }  # fmt: skip


def test_expected_features_see_the_spans_that_decoding_does():
    config = override(TASK.experiments["mrc/squad_minilm"](), ["surrogate.features=expected", "data.max_answer=20"])
    assert TASK.new_surrogate(config).options() == {"limit": 20, "metric": None, "width": 16, "scale": 1.0}
    assert TASK.new_surrogate(config, "expected").options()["metric"] == "reading_f1"
    assert TASK.new_surrogate(config, "expected").options()["limit"] == 20


def test_windows_that_do_not_advance_are_refused():
    with pytest.raises(UsageError, match="must be at least max_question"):
        override(TASK.experiments["mrc/squad_minilm"](), ["data.stride=180"])


def test_structure_is_no_option_of_expected_features():
    config = TASK.experiments["mrc/squad_minilm"]()
    with pytest.raises(UsageError, match=r"surrogate\.structure is an option of surrogate\.features=likelihood"):
        override(config, ["surrogate.features=expected", "surrogate.structure=points"])
