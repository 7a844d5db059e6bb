"""Classification metrics equal scikit-learn and torchmetrics, and define every edge case."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from reloss.metrics import accuracy, balanced_accuracy, macro_f1, top5_accuracy, topk_accuracy

METRICS = [accuracy, balanced_accuracy, macro_f1]


def predictions(seed: int, n: int = 4, b: int = 50, c: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, b, c, generator=generator), torch.randint(c, (n, b), generator=generator)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_accuracy_equals_scikit_learn(seed):
    outputs, targets = predictions(seed)
    expected = [accuracy_score(t, o.argmax(-1)) for o, t in zip(outputs, targets, strict=True)]
    assert accuracy(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_topk_accuracy_equals_scikit_learn_and_torchmetrics(k):
    outputs, targets = predictions(k)
    values = topk_accuracy(outputs, targets, k).tolist()
    sklearn = [top_k_accuracy_score(t, o, k=k, labels=range(8)) for o, t in zip(outputs, targets, strict=True)]
    micro = {"num_classes": 8, "average": "micro", "top_k": k}
    torchmetrics = [float(multiclass_accuracy(o, t, **micro)) for o, t in zip(outputs, targets, strict=True)]
    assert values == pytest.approx(sklearn, abs=1e-6)
    assert values == pytest.approx(torchmetrics, abs=1e-6)
    assert 0 < min(values) <= max(values) < 1


def test_top5_accuracy():
    outputs, targets = predictions(0)
    assert top5_accuracy(outputs, targets).tolist() == topk_accuracy(outputs, targets, 5).tolist()
    assert topk_accuracy(outputs, targets, 8).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("k", [0, -1, 9, 2.5, True])
def test_k_outside_the_classes_raises(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to the 8 classes, not {k}"):
        topk_accuracy(*predictions(0), k)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.parametrize("shape", [(150, 50, 8), (150, 3, 8), (50, 1, 4), (50, 20, 2), (4, 20, 1)])
def test_balanced_accuracy_and_macro_f1_equal_scikit_learn(shape):
    outputs, targets = predictions(0, *shape)
    outputs += torch.nn.functional.one_hot(targets, shape[-1]) * torch.linspace(0, 2, shape[0])[:, None, None]
    pairs = list(zip(targets, outputs.argmax(-1), strict=True))
    recalls = [balanced_accuracy_score(t, o) for t, o in pairs]
    f1s = [f1_score(t, o, average="macro", zero_division=0) for t, o in pairs]
    torchmetrics = [float(multiclass_f1_score(o, t, shape[-1])) for t, o in pairs[:20] if shape[-1] > 1]
    assert balanced_accuracy(outputs, targets).tolist() == pytest.approx(recalls, abs=1e-6)
    assert macro_f1(outputs, targets).tolist() == pytest.approx(f1s, abs=1e-6)
    assert macro_f1(outputs, targets).tolist()[: len(torchmetrics)] == pytest.approx(torchmetrics, abs=1e-6)


def test_balanced_accuracy_and_macro_f1_by_hand():
    outputs = torch.eye(4)[torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2], [3, 3, 3, 3]])]
    targets = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 2, 0]])
    assert accuracy(outputs, targets).tolist() == [0.75, 1, 0]
    assert balanced_accuracy(outputs, targets).tolist() == [0.75, 1, 0]  # (2/2 + 1/2) / 2
    assert macro_f1(outputs, targets).tolist() == pytest.approx([(4 / 5 + 2 / 3) / 2, 1, 0])


def test_balanced_accuracy_is_accuracy_on_one_class():
    outputs, targets = predictions(0)
    assert balanced_accuracy(outputs, targets * 0).tolist() == accuracy(outputs, targets * 0).tolist()


def test_constant_scores_predict_the_first_class():
    constant = torch.zeros(1, 4, 3)
    assert balanced_accuracy(constant, torch.tensor([[0, 1, 2, 2]])).item() == pytest.approx(1 / 3)
    assert macro_f1(constant, torch.tensor([[0, 1, 2, 2]])).item() == pytest.approx(2 / 5 / 3)


@pytest.mark.parametrize("classes", [3, 7, 30, 300, 3000])
def test_of_equal_scores_the_first_classes_are_predicted(classes):
    constant, targets = torch.zeros(1, 4, classes), torch.tensor([[0, 0, 1, 2]])
    assert accuracy(constant, targets) == 0.5
    assert topk_accuracy(constant, targets, 2) == 0.75
    assert topk_accuracy(constant, targets, 3) == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float32])
def test_classes_in_a_dtype_that_cannot_hold_their_number(metric, dtype):
    targets = torch.arange(256).to(dtype)[None]
    assert metric(torch.eye(256)[None], targets) == 1
    assert metric(torch.eye(256).flip(0)[None], targets) == 0


@pytest.mark.parametrize("metric", METRICS)
def test_nan_is_no_prediction(metric):
    outputs = torch.zeros(1, 4, 3)
    outputs[0, 1, 2] = float("nan")
    with pytest.raises(ValueError, match="outputs must not be NaN: the model has diverged"):
        metric(outputs, torch.tensor([[0, 0, 1, 2]]))
    outputs[0, 1, 2] = float("-inf")  # masks a class
    assert metric(outputs, torch.zeros(1, 4)) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_outputs_must_be_tensors(metric):
    with pytest.raises(ValueError, match=r"outputs must be a torch tensor, not list; torch.as_tensor converts"):
        metric([[[0.0, 1.0]]], torch.zeros(1, 1))


@pytest.mark.parametrize("metric", METRICS)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_values_are_in_range_and_ignore_the_order_of_examples(metric, seed, b, c):
    outputs, targets = predictions(seed, 3, b, c)
    order = torch.randperm(b, generator=torch.Generator().manual_seed(seed))
    values = metric(outputs, targets)
    assert values.dtype == torch.float32
    assert values.shape == (3,)
    assert 0 <= values.min() <= values.max() <= 1
    assert values.tolist() == pytest.approx(metric(outputs[:, order], targets[:, order]).tolist(), abs=1e-6)
    assert metric(torch.nn.functional.one_hot(targets, c), targets).tolist() == [1, 1, 1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [((4, 8), (4,)), ((2, 4, 8), (2, 5)), ((2, 4, 8), (2, 4, 1)), ((2, 4, 8), (8,)), ((2, 0, 8), (2, 0))],
)
def test_shapes_must_agree(metric, outputs, targets):
    with pytest.raises(ValueError, match=r"expected outputs \[N, B, C\] and targets \[N, B\].*not \["):
        metric(torch.zeros(outputs), torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize("metric", METRICS)
def test_no_items_give_no_values(metric):
    assert metric(torch.zeros(0, 4, 3), torch.zeros(0, 4, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("target", [-1, 8, 0.5])
def test_targets_that_are_not_classes_raise(metric, target):
    with pytest.raises(ValueError, match=f"targets must be whole numbers from 0 to 7, not {target}"):
        metric(torch.zeros(1, 1, 8), torch.tensor([[target]]))
