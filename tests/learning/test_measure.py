import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import matthews_corrcoef
from torch.testing import assert_close
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import MulticlassAccuracy

from reloss.learning import PredictionBank
from reloss.learning.items import Items
from reloss.learning.measure import Measure
from reloss.learning.metric_cache import CHECKED, MetricCache
from reloss.metrics import PerItem, accuracy
from reloss.runtime.errors import RelossError, UsageError


class Counted:
    """A metric of one item that counts its calls.

    `bonus` and `partial_credit` stand for functions of another module that the metric calls: they are not its code.
    """

    calls = 0
    bonus = 0.0
    partial_credit = 1.0

    def metric(self) -> PerItem:
        def share_right(outputs, targets):
            Counted.calls += 1
            share = (outputs.argmax(-1) == targets).float().mean() + Counted.bonus
            return share * Counted.partial_credit if share < 1 else share

        return PerItem(share_right)


@pytest.fixture
def counted(monkeypatch) -> type[Counted]:
    monkeypatch.setattr(Counted, "calls", 0)
    monkeypatch.setattr(Counted, "bonus", 0.0)
    monkeypatch.setattr(Counted, "partial_credit", 1.0)
    return Counted


def some_items(n: int = 20, seed: int = 0) -> Items:
    generator = torch.Generator().manual_seed(seed)
    return Items(torch.randn(n, 16, 4, generator=generator), torch.randint(4, (n, 16), generator=generator))


def measure(counted: type[Counted], folder: Path | None, higher_is_better: bool = True) -> Measure:
    return Measure(counted().metric(), higher_is_better, folder)


def test_a_vectorised_metric_may_return_an_array():
    items = some_items()
    values = Measure(lambda outputs, targets: accuracy(outputs, targets).double().numpy(), True)(items)
    assert_close(values, accuracy(*items[:2]))


def test_a_metric_by_item_equals_the_vectorised_one(counted):
    items = some_items()
    assert_close(measure(counted, None)(items), Measure(accuracy, True)(items))
    assert_close(measure(counted, None, higher_is_better=False)(items), -accuracy(*items[:2]))
    assert measure(counted, None).by_item
    assert not Measure(accuracy, True).by_item
    assert measure(counted, None)(items).dtype == torch.float32


def test_no_value_is_computed_twice(counted, tmp_path):
    items, new_items = some_items(20), some_items(10, seed=1)
    first = measure(counted, tmp_path)
    values = first(items)
    assert counted.calls == 20
    assert torch.equal(first(items.select(torch.tensor([3, 3, 1]))), values[[3, 3, 1]])
    assert counted.calls == 20
    first(Items.concatenate([new_items, new_items]))
    assert counted.calls == 30

    second = measure(counted, tmp_path)
    assert torch.equal(second(items), values)
    assert counted.calls == 30 + CHECKED  # a few are computed again, to detect a changed metric
    second(new_items)
    assert counted.calls == 30 + CHECKED


def test_the_key_of_an_item_covers_outputs_and_targets(counted, tmp_path):
    items = some_items(4)
    cached = measure(counted, tmp_path)
    cached(items)
    cached(items._replace(targets=(items.targets + 1) % 4))
    cached(items._replace(outputs=items.outputs + 1))
    assert counted.calls == 12


def test_values_belong_to_the_code_of_a_metric(tmp_path):
    items = some_items(4)
    for factor in (1, 2):  # the value of a default argument counts as code
        metric = PerItem(lambda outputs, targets, by=factor: by * outputs.mean(), name="mean/of outputs")
        assert_close(Measure(metric, True, tmp_path)(items), factor * items.outputs.mean((1, 2)))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[: len("mean_of_outputs-")] for name in names] == ["mean_of_outputs-"] * 2


def test_values_are_dropped_if_a_function_that_the_metric_calls_has_changed(counted, tmp_path, capsys):
    items = some_items(20)
    before = measure(counted, tmp_path)(items)
    counted.bonus = 1.0
    assert_close(measure(counted, tmp_path)(items), before + 1)
    assert counted.calls == 20 + CHECKED + 20
    assert "metric share_right has changed: its values in" in capsys.readouterr().err
    assert_close(measure(counted, tmp_path)(items), before + 1)
    assert counted.calls == 20 + CHECKED + 20 + CHECKED


def test_a_change_that_spares_the_worst_and_the_best_item_is_detected(counted, tmp_path):
    items = some_items(20)
    for right in (0, 19):
        items.targets[right] = items.outputs[right].argmax(-1)
    before = measure(counted, tmp_path)(items)
    assert before[0] == before[19] == 1
    counted.partial_credit = 0.5
    assert_close(measure(counted, tmp_path)(items)[1:19], before[1:19] / 2)


@pytest.mark.parametrize("content", [b"", b"no safetensors file", None])
def test_a_damaged_file_is_replaced(counted, tmp_path, capsys, content):
    items = some_items(20)
    before = measure(counted, tmp_path)(items)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7] if content is None else content)
    assert_close(measure(counted, tmp_path)(items), before)
    assert counted.calls == 40
    assert f"{file} cannot be read" in capsys.readouterr().err
    assert load_file(file)["values"].tolist() == before.double().tolist()


def test_a_file_that_cannot_be_written_is_reported_once(counted, tmp_path, capsys):
    cache = MetricCache(counted().metric(), tmp_path)
    cache.path.mkdir()
    for seed in (0, 1):
        assert len(cache(*some_items(4, seed)[:2], labels=["item"] * 4)) == 4
    assert capsys.readouterr().err.count("the values of metric share_right are not stored") == 1


def test_a_kill_loses_no_saved_value(tmp_path):
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from reloss.learning import metric_cache\n"
        "from reloss.learning.items import Items\n"
        "from reloss.learning.measure import Measure\n"
        "from reloss.metrics import PerItem\n"
        "metric_cache.SAVE_SECONDS = -1\n"
        "def metric(outputs, targets):\n"
        "    with open('calls', 'a') as file: file.write('x')\n"
        "    if os.path.getsize('calls') == 31: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return outputs[0]\n"
        "items = Items(torch.arange(50.)[:, None], torch.zeros(50, 1))\n"
        "print(Measure(PerItem(metric), True, Path('metrics'))(items).sum().item())\n"
    )
    (tmp_path / "script.py").write_text(script)

    def run() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run().returncode == -9
    second = run()
    assert second.stdout.strip() == str(sum(range(50)) * 1.0), second.stderr
    assert (tmp_path / "calls").stat().st_size == 31 + CHECKED + 20


def test_an_interrupt_loses_nothing(tmp_path):
    calls = []

    def interrupted(outputs, targets):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return outputs.mean()

    with pytest.raises(KeyboardInterrupt):
        Measure(PerItem(interrupted), True, tmp_path)(some_items())
    (file,) = tmp_path.iterdir()
    assert len(load_file(file)["values"]) == 7


def test_cached_values_do_not_change_the_fingerprint_of_the_bank(improving_bank, counted):
    bank = improving_bank()
    before = bank.fingerprint()
    measure(counted, bank.path / "metrics")(Items(*bank.items(torch.arange(10))))
    assert len(list((bank.path / "metrics").iterdir())) == 1
    assert PredictionBank.open(bank.path).fingerprint() == before


def test_a_direction_that_contradicts_the_metrics_own_is_refused():
    for metric, higher in ((MeanAbsoluteError(), False), (MulticlassAccuracy(4), True)):
        assert Measure(metric, higher).sign == (1 if higher else -1)
        word = "higher" if higher else "lower"
        name = type(metric).__name__
        with pytest.raises(
            UsageError, match=f"metric {name} declares that {word} is better; pass higher_is_better={higher}"
        ):
            Measure(metric, not higher)


def nan_at_two(outputs, targets):
    return torch.where(torch.arange(len(outputs)) == 2, float("nan"), 1.0)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (nan_at_two, "metric nan_at_two returned nan for item 42; it must be finite: return a number .* larger items"),
        (
            PerItem(lambda o, t: float("inf"), name="endless"),
            "metric endless returned inf for item 40; it must be finite",
        ),
        (PerItem(lambda o, t: 1 // 0, name="broken"), "metric broken failed for item 40: ZeroDivisionError"),
        (lambda o, t: 0.5, r"metric <lambda> returned a float for 4 items; expected a tensor .*PerItem"),
        (lambda o, t: [0.5] * len(o), "metric <lambda> returned a list for 4 items; expected a tensor"),
        (lambda o, t: torch.zeros(3), r"metric <lambda> returned \[3\] for 4 items; expected one value per item"),
        (lambda o, t: torch.zeros(()), r"metric <lambda> returned \[\] for 4 items"),
        (
            lambda o, t: {}["key"],
            r"metric <lambda> cannot measure the bank's predictions: KeyError: 'key'.*"
            r"outputs \[4, 16, 4\] and targets \[4, 16\]; .*PerItem\(function\) makes .* of a function of one batch",
        ),
        (matthews_corrcoef, "metric matthews_corrcoef cannot measure .*a function of one batch"),
    ],
)
def test_the_error_names_the_item_without_one_finite_value(tmp_path, metric, message):
    with pytest.raises(RelossError, match=message):
        Measure(metric, True, tmp_path)(some_items(4), first=40)
    assert not any(tmp_path.iterdir())
