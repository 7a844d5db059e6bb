"""PerItem: values, worker processes, failures, torchmetrics objects; and the identity of a metric."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import sklearn.metrics
import torch
from joblib.externals.loky import get_reusable_executor
from torch.testing import assert_close
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAveragePrecision, MulticlassF1Score

from reloss.metrics import PerItem, accuracy, as_metric, average_precision, macro_f1, per_item
from reloss.metrics.identity import identity
from reloss.runtime.errors import RelossError, UsageError

MAIN_PROCESS = os.getpid()


def predictions(n: int = 20, b: int = 32, c: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, b, c, generator=generator), torch.randint(c, (n, b), generator=generator)


@pytest.fixture(scope="module")
def shared_workers() -> Iterator[None]:
    """Workers keep running after `values`, so the next test does not have to start them."""
    yield
    get_reusable_executor(reuse=True).shutdown(wait=True)


@pytest.fixture
def workers(shared_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start workers after the first item."""
    monkeypatch.setattr(per_item, "PATIENCE", 0.0)


def total(outputs, targets):
    return float(outputs.sum())


def count_to(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n)[:, None].float(), torch.zeros(n, 1)


def test_a_function_of_one_item_equals_the_vectorised_metric():
    outputs, targets = predictions()
    metric = PerItem(lambda o, t: sklearn.metrics.f1_score(t, o.argmax(-1), average="macro", zero_division=0))
    assert_close(metric(outputs, targets), macro_f1(outputs, targets))
    assert metric.__name__ == "<lambda>"
    assert metric.higher_is_better is None


def test_fast_metrics_and_single_workers_stay_in_this_process(monkeypatch):
    assert set(PerItem(lambda o, t: os.getpid()).values(*count_to(50))) == {MAIN_PROCESS}
    monkeypatch.setattr(per_item, "PATIENCE", 0.0)
    assert set(PerItem(lambda o, t: os.getpid(), workers=1).values(*count_to(50))) == {MAIN_PROCESS}
    assert set(PerItem(lambda o, t: os.getpid(), workers=2).values(*count_to(8))) == {MAIN_PROCESS}


def test_workers_keep_the_order_and_accept_closures(workers):
    shift = torch.tensor(0.5)
    values = list(PerItem(lambda o, t: o.sum() + shift, workers=2).values(*count_to(300)))
    assert values == [number + 0.5 for number in range(300)]
    partial = functools.partial(lambda factor, o, t: factor * float(o), 3)
    assert list(PerItem(partial, workers=2).values(*count_to(40))) == [3.0 * number for number in range(40)]


def test_workers_are_other_processes_with_one_thread_each(workers):
    pids = list(PerItem(lambda o, t: os.getpid(), workers=2).values(*count_to(200)))
    assert pids[0] == MAIN_PROCESS
    assert MAIN_PROCESS not in pids[1:]
    assert 1 <= len(set(pids[1:])) <= 2
    threads = list(PerItem(lambda o, t: torch.get_num_threads(), workers=2).values(*count_to(40)))
    assert set(threads[1:]) == {1}


def test_workers_compute_torchmetrics_objects(workers):
    outputs, targets = predictions(40)
    metric = PerItem(MulticlassF1Score(num_classes=5, average="macro"), workers=2)
    assert_close(torch.tensor(list(metric.values(outputs, targets))), macro_f1(outputs, targets))


def test_a_failure_in_a_worker_names_item_and_cause(workers):
    class Odd(Exception):  # cannot be unpickled, because its constructor needs two arguments
        def __init__(self, number, unused):
            super().__init__(f"odd {number}")

    def fails(outputs, targets):
        if outputs.sum() == 33:
            raise Odd(int(outputs.sum()), None)
        return 0

    with pytest.raises(RelossError, match="metric fails failed for item 33: Odd: odd 33") as caught:
        list(PerItem(fails, workers=2).values(*count_to(60)))
    assert "in fails" in str(caught.value.__cause__)


def test_a_worker_that_dies_is_reported(workers):
    def dies(outputs, targets):
        if os.getpid() != MAIN_PROCESS:
            os._exit(1)
        return 0

    with pytest.raises(RelossError, match=r"metric dies: a worker process died.*workers=1"):
        list(PerItem(dies, workers=2).values(*count_to(60)))


def test_a_function_that_cannot_be_sent_to_a_worker_raises(workers):
    lock = threading.Lock()

    def locked(outputs, targets):
        with lock:
            return 1

    with pytest.raises(RelossError, match=r"metric locked cannot be sent to worker processes .*workers=1"):
        list(PerItem(locked, workers=2).values(*count_to(60)))
    assert PerItem(locked, workers=1)(*count_to(60)).sum() == 60


def test_functions_defined_in_main_run_in_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch\n"
        "from reloss.metrics import PerItem, per_item\n"
        "per_item.PATIENCE = 0.0\n"
        "def half(value): return value / 2\n"
        "def metric(outputs, targets): return half(float(outputs)) if os.getpid() != HERE else -1\n"
        "HERE = os.getpid()\n"
        "print(PerItem(metric, workers=2)(torch.arange(30)[:, None].float(), torch.zeros(30, 1)).tolist())\n"
    )
    process = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == str([-1.0, *(number / 2 for number in range(1, 30))])
    assert process.stderr == ""


def fails_at_three(outputs, targets):
    return 1 / (float(outputs) - 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails_at_three, "metric fails_at_three failed for item 3: ZeroDivisionError: float division by zero"),
        (lambda o, t: None, "metric <lambda> failed for item 0: TypeError: .*not 'NoneType'"),
        (lambda o, t: torch.zeros(3), "metric <lambda> failed for item 0: ValueError: only one element tensors"),
    ],
)
def test_a_failure_names_item_and_cause(function, message):
    with pytest.raises(RelossError, match=message):
        PerItem(function)(*count_to(6))


def test_messages_use_the_name_and_the_labels():
    metric = PerItem(fails_at_three, name="shares")
    with pytest.raises(RelossError, match="metric shares failed for the fourth"):
        list(metric.values(*count_to(5), labels=["the first", "the second", "the third", "the fourth", "the fifth"]))


def test_a_function_may_modify_its_arguments():
    outputs, targets = count_to(5)
    PerItem(lambda o, t: float(o.zero_().sum()))(outputs, targets)
    assert outputs.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [3, "accuracy", None])
def test_a_value_that_is_not_callable_is_not_a_metric(value):
    with pytest.raises(UsageError, match=f"{value!r} is not a metric"):
        as_metric(value)
    with pytest.raises(UsageError, match=f"{value!r} is not a metric"):
        PerItem(value)


def test_a_class_is_not_a_metric():
    with pytest.raises(UsageError, match=r"MulticlassF1Score is a class.*MulticlassF1Score\(\.\.\.\)"):
        as_metric(MulticlassF1Score)


def test_invalid_arguments_raise():
    with pytest.raises(UsageError, match="workers must be at least 1, not 0"):
        PerItem(total, workers=0)
    with pytest.raises(ValueError, match="5 outputs, but 1 targets"):
        PerItem(total)(count_to(5)[0], count_to(1)[1])


def test_as_metric_returns_other_metrics_unchanged():
    metric = PerItem(total)
    assert as_metric(accuracy) is accuracy
    assert as_metric(metric) is metric


def test_torchmetrics_f1_equals_macro_f1_and_scikit_learn():
    outputs, targets = predictions()
    values = as_metric(MulticlassF1Score(num_classes=5, average="macro"))(outputs, targets)
    expected = [
        sklearn.metrics.f1_score(t, o.argmax(-1), average="macro", zero_division=0)
        for o, t in zip(outputs, targets, strict=True)
    ]
    assert_close(values, torch.tensor(expected, dtype=torch.float32))
    assert_close(values, macro_f1(outputs, targets))


def test_torchmetrics_average_precision_equals_average_precision_and_scikit_learn():
    outputs, _ = predictions(c=1)
    targets = (torch.rand(20, 32, generator=torch.Generator().manual_seed(1)) < 0.3).long()
    outputs = outputs[..., 0]
    values = as_metric(BinaryAveragePrecision())(outputs, targets)
    expected = [sklearn.metrics.average_precision_score(t, o) for o, t in zip(outputs, targets, strict=True)]
    assert_close(values, torch.tensor(expected, dtype=torch.float32))
    assert_close(values, average_precision(outputs, targets))


def test_a_torchmetrics_object_is_copied_and_reset_for_each_item():
    error = MeanSquaredError()
    error.update(torch.tensor([2.0]), torch.tensor([0.0]))
    metric = as_metric(error)
    assert metric.__name__ == "MeanSquaredError"
    assert metric.higher_is_better is False
    assert metric(torch.tensor([[1.0, 3], [2, 2]]), torch.zeros(2, 2)).tolist() == [5, 4]
    assert error.compute() == 4


WEIGHT = 2.0


def helper(value):
    return WEIGHT * value


def define(text: str, **names: object) -> object:
    """Return the function f that `text` defines in a module with the given names."""
    namespace = {"__name__": "module", **names}
    exec(text, namespace)
    return namespace["f"]


def test_identity_changes_with_the_code():
    text = "def g(x): return x + 1\ndef f(o, t, k=1): return (lambda v: g(v) * LIMIT)(o)\n"
    original = identity(define(text, LIMIT=3))
    assert original == identity(define(text, LIMIT=3))
    changed = [
        identity(define(text, LIMIT=4)),
        identity(define(text.replace("x + 1", "x + 2"), LIMIT=3)),
        identity(define(text.replace("k=1", "k=2"), LIMIT=3)),
        identity(define(text.replace("g(v) *", "g(v) -"), LIMIT=3)),
        identity(define(text + "f.__qualname__ = 'other'", LIMIT=3)),
    ]
    assert len({original, *changed}) == 6


def test_identity_changes_with_closures_and_objects():
    def constant(value):
        return lambda o, t: value

    values = [
        1,
        2,
        1.0,
        "1",
        [1],
        (1,),
        {1: 2},
        torch.ones(2),
        torch.zeros(2),
        helper,
        constant(1),
        constant(2),
        functools,
    ]
    assert len({identity(constant(value)) for value in values}) == len(values)
    assert identity(constant(torch.ones(2))) == identity(constant(torch.ones(2)))
    scores = [MulticlassF1Score(5, average=average) for average in ("macro", "micro", "macro")]
    macro, micro, macro_again = (identity(PerItem(score).function) for score in scores)
    assert macro == macro_again != micro
    cyclic: list = []
    cyclic.append(cyclic)
    assert identity(constant(cyclic)) == identity(constant(cyclic))


def test_identity_is_the_same_in_another_process():
    text = "def f(o, t, k={'a': 1, 'b': 2}): return o in {'a', 'b', 'c', 'd'}\n"
    script = (
        f"from reloss.metrics import PerItem; from reloss.metrics.identity import identity\n{text}"
        "from torchmetrics.classification import MulticlassF1Score\n"
        "print(identity(f), identity(PerItem(MulticlassF1Score(5)).function))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    process = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [identity(define(text)), identity(PerItem(MulticlassF1Score(5)).function)]
