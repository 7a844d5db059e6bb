"""Metrics are available by name and by import path, and importing them stays light."""

import inspect
import subprocess
import sys

import pytest
import torch

import reloss.metrics
from reloss.metrics import METRICS, PerItem, accuracy, bleu, get_metric
from reloss.runtime.errors import UsageError


def test_metrics_by_name():
    assert get_metric("accuracy") is accuracy
    assert get_metric("bleu") is bleu
    with pytest.raises(UsageError, match="unknown metric 'acuracy'; did you mean accuracy"):
        get_metric("acuracy")


@pytest.fixture
def my_metrics(tmp_path, monkeypatch):
    """Write a module into the current folder; remove it from `sys.modules` after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)
    text = (
        "import torch\n"
        "from reloss.metrics import PerItem\n"
        "from torchmetrics.classification import MulticlassAccuracy\n"
        "def kappa(outputs, targets): return torch.zeros(len(outputs))\n"
        "@PerItem\n"
        "def first(outputs, targets): return outputs[0]\n"
        "torchmetrics_object = MulticlassAccuracy(3)\n"
        "number = 3\n"
    )
    (tmp_path / "my_metrics.py").write_text(text)
    yield
    sys.modules.pop("my_metrics", None)


def test_metrics_by_import_path(my_metrics):
    outputs, targets = torch.arange(4.0).view(2, 2), torch.zeros(2, 2)
    assert get_metric("my_metrics:kappa")(outputs, targets).tolist() == [0, 0]
    assert get_metric("my_metrics:first")(outputs, targets).tolist() == [0, 2]
    assert isinstance(get_metric("my_metrics:torchmetrics_object"), PerItem)
    assert get_metric("reloss.metrics:accuracy") is accuracy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_metrics:kappa",
            "module 'no_metrics' of metric 'no_metrics:kappa' cannot be imported: ModuleNotFoundError",
        ),
        (":kappa", "module '' of metric ':kappa' cannot be imported"),
        (
            "my_metrics",
            "unknown metric 'my_metrics'; .*; name your own metric with its module, such as my_metrics:NAME",
        ),
        ("my_metrics.kappa", "name your own metric with its module, such as my_metrics:kappa"),
        ("my_metrics:kapa", "unknown metric of my_metrics 'kapa'; did you mean kappa"),
        ("my_metrics:", "unknown metric of my_metrics ''"),
        ("my_metrics:number", "3 is not a metric"),
        ("my_metrics:MulticlassAccuracy", "MulticlassAccuracy is a class, not a metric"),
    ],
)
def test_invalid_import_paths_raise(my_metrics, name, message):
    with pytest.raises(UsageError, match=message):
        get_metric(name)


def test_the_error_names_a_module_that_fails(my_metrics, tmp_path):
    (tmp_path / "my_metrics.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=r"'my_metrics' .* cannot be imported: ZeroDivisionError: division by zero"):
        get_metric("my_metrics:kappa")


def test_names_and_their_order():
    assert list(METRICS) == [
        *("accuracy", "top5_accuracy", "balanced_accuracy", "macro_f1"),
        *("binary_f1", "binary_f2", "binary_iou", "binary_accuracy", "binary_balanced_accuracy", "binary_kappa", "mcc"),
        *("average_precision", "auroc", "partial_auroc", "precision_at_10", "recall_at_10"),
        *("ndcg", "ndcg10"),
        *("list_ndcg", "list_ndcg10", "mrr"),
        *("label_macro_f1", "label_micro_f1", "label_mean_average_precision", "label_ranking_average_precision"),
        *("dice", "mask_iou", "mean_iou"),
        *("r2", "concordance", "regression_spearman", "share_within"),
        *("heatmap_pck", "heatmap_oks", "heatmap_ap"),
        *("span_f1", "span_exact_match", "token_f1", "token_exact_match", "bleu", "token_bleu"),
        *("reading_f1", "reading_exact_match"),
    ]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_documented_and_takes_outputs_and_targets(name):
    outputs, targets, *options = inspect.signature(METRICS[name]).parameters.values()
    assert (outputs.name, targets.name) == ("outputs", "targets")
    assert all(option.default is not inspect.Parameter.empty for option in options)
    assert METRICS[name].__name__ == name
    assert getattr(reloss.metrics, name) is METRICS[name]
    assert METRICS[name].__doc__.startswith("Return ")


def test_importing_the_metrics_does_not_import_optional_libraries():
    heavy = {
        "sacrebleu",
        "joblib",
        "cloudpickle",
        "sklearn",
        "scipy",
        "torchmetrics",
        "xtcocotools",
        "matplotlib",
        "torchvision",
    }
    code = f"import sys, reloss.metrics; print(sorted({heavy} & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
