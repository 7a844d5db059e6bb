import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from reloss.errors import UsageError
from reloss.metrics import accuracy, get_metric, top5_accuracy, topk_accuracy


def predictions(seed: int, n: int = 4, b: int = 50, c: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, b, c, generator=generator), torch.randint(c, (n, b), generator=generator)


@given(st.integers(0, 10_000))
def test_accuracy_equals_scikit_learns(seed):
    outputs, targets = predictions(seed)
    expected = [accuracy_score(t, o.argmax(-1)) for o, t in zip(outputs, targets, strict=True)]
    assert accuracy(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_topk_accuracy_equals_scikit_learns_and_torchmetrics(k):
    outputs, targets = predictions(k)
    ours = topk_accuracy(outputs, targets, k).tolist()
    sklearn = [top_k_accuracy_score(t, o, k=k, labels=range(8)) for o, t in zip(outputs, targets, strict=True)]
    micro = {"num_classes": 8, "average": "micro", "top_k": k}
    torchmetrics = [float(multiclass_accuracy(o, t, **micro)) for o, t in zip(outputs, targets, strict=True)]
    assert ours == pytest.approx(sklearn, abs=1e-6)
    assert ours == pytest.approx(torchmetrics, abs=1e-6)
    assert 0 < min(ours) <= max(ours) < 1


def test_top5_accuracy():
    outputs, targets = predictions(0)
    assert top5_accuracy(outputs, targets).tolist() == topk_accuracy(outputs, targets, 5).tolist()
    assert topk_accuracy(outputs, targets, 8).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("k", [0, -1, 9])
def test_k_is_between_one_and_the_classes(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to the 8 classes, not {k}"):
        topk_accuracy(*predictions(0), k)


@pytest.mark.parametrize(
    ("outputs", "targets"), [((4, 8), (4,)), ((2, 4, 8), (2, 5)), ((2, 4, 8), (2, 4, 1)), ((2, 4, 8), (8,))]
)
def test_shapes_must_agree(outputs, targets):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, C\]"):
        accuracy(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))


def test_metrics_by_name():
    assert get_metric("accuracy") is accuracy
    with pytest.raises(UsageError, match="unknown metric 'acuracy'; did you mean accuracy"):
        get_metric("acuracy")
