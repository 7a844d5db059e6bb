import json
import math

import pytest

from reloss.experiment.metrics_log import MetricsFile, read_metrics
from reloss.pipeline.stages import _finite_scores
from reloss.runtime.errors import RelossError


def test_a_run_whose_score_is_not_finite_fails():
    with pytest.raises(RelossError, match="accuracy of the trained model is nan: training diverged"):
        _finite_scores({"accuracy": math.nan, "error": 0.5}, "accuracy")


def test_another_score_that_is_not_finite_is_named_and_dropped(capsys):
    assert _finite_scores({"accuracy": 0.5, "mcc": math.nan, "nll": math.inf}, "accuracy") == {"accuracy": 0.5}
    assert capsys.readouterr().err == "note: the record lacks mcc, nll, which are not finite\n"


def test_metrics_are_logged_as_json_without_nan(tmp_path):
    MetricsFile(tmp_path / "metrics.jsonl").append({"step": 1, "loss": math.nan, "accuracy": 0.5})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "accuracy": 0.5}
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "accuracy": 0.5}]
