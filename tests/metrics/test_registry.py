import inspect
import subprocess
import sys

import pytest

import reloss.metrics
from reloss.errors import UsageError
from reloss.metrics import METRICS, accuracy, bleu, get_metric


def test_metrics_by_name():
    assert get_metric("accuracy") is accuracy
    assert get_metric("bleu") is bleu
    with pytest.raises(UsageError, match="unknown metric 'acuracy'; did you mean accuracy"):
        get_metric("acuracy")


def test_names():
    assert list(METRICS) == [
        *("accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1"),
        *("binary_f1", "average_precision", "auroc"),
        *("ndcg", "ndcg10"),
        "heatmap_pck",
        *("span_f1", "span_exact_match", "token_f1", "token_exact_match", "bleu"),
    ]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_documented_and_takes_outputs_and_targets(name):
    outputs, targets, *options = inspect.signature(METRICS[name]).parameters.values()
    assert (outputs.name, targets.name) == ("outputs", "targets")
    assert all(option.default is not inspect.Parameter.empty for option in options)
    assert METRICS[name].__name__ == name
    assert getattr(reloss.metrics, name) is METRICS[name]
    assert METRICS[name].__doc__.startswith("Return ")


def test_importing_the_metrics_imports_no_library_that_only_some_of_them_need():
    heavy = {"sacrebleu", "sklearn", "scipy", "torchmetrics", "xtcocotools", "matplotlib", "torchvision"}
    code = f"import sys, reloss.metrics; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
