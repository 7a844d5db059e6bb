import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import TORCHRUN
from safetensors.torch import load_file
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.measure import CHECKED
from reloss.metrics import PerItem, accuracy
from reloss.runtime.distributed import Share
from reloss.runtime.errors import UsageError

SETTINGS = {"steps": 30, "items": 25, "validate_every": 10}  # 25 items: one process has one more than the other


def in_two_processes(function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return what `function` returns in each of two processes that share a group over gloo."""
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child(rank: int) -> None:
        try:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
            )
            answers.put((rank, function(*arguments)))
        except BaseException:
            answers.put((rank, traceback.format_exc()))

    children = [context.Process(target=child, args=(rank,), daemon=True) for rank in range(2)]
    for each in children:
        each.start()
    found = dict(answers.get() for _ in children)
    for each in children:
        each.join()
    return [found[rank] for rank in range(2)]


class Counting(ClassificationReLoss):
    """Counts the items of which it computed losses to learn from."""

    learned_from = 0

    def losses_and_norms(self, outputs, targets, statistics=None):
        self.learned_from += len(targets)
        return super().losses_and_norms(outputs, targets, statistics)


def fit(bank: Path, distributed: bool, metric: Any = accuracy, **settings: Any) -> dict[str, Any]:
    """Return a fit as plain values, to go through a queue."""
    more = {name: settings.pop(name) for name in ("checkpoint", "on_validation") if name in settings}
    options = LearnOptions(**SETTINGS | settings)
    torch.manual_seed(0)
    surrogate = Counting(input=options.input, output=options.output)
    opened = PredictionBank.open(bank)
    result = fit_surrogate(surrogate, opened, metric, options=options, distributed=distributed, **more)
    weights = {name: value.tolist() for name, value in result.surrogate.state_dict().items()}
    return {
        **{"weights": weights, "scale": result.surrogate.scale, "history": result.history},
        **{"spearman": result.spearman, "learned_from": surrogate.learned_from},
    }


@pytest.mark.parametrize("settings", [{}, {"fidelity": "released"}, {"objective": "value"}, {"correlation": "kendall"}])
def test_two_processes_fit_the_surrogate_of_one(improving_bank, tmp_path, settings):
    bank = improving_bank().path
    alone = fit(bank, False, **settings)
    first, second = in_two_processes(lambda: fit(bank, True, **settings), tmp_path)
    assert first["weights"] == second["weights"]
    assert first["history"] == second["history"]
    for name, value in alone["weights"].items():
        assert_close(torch.tensor(first["weights"][name]), torch.tensor(value), rtol=1e-3, atol=1e-4)
    assert first["spearman"] == pytest.approx(alone["spearman"], abs=1e-3)
    assert first["scale"] == pytest.approx(alone["scale"], rel=1e-3)
    for ours, theirs in zip(first["history"], alone["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3)
    if settings.get("objective") != "value":
        assert [each["learned_from"] for each in (alone, first, second)] == [750, 390, 360]


def test_a_slow_metric_is_computed_by_one_of_them(improving_bank, tmp_path):
    bank, calls = improving_bank().path, tmp_path / "calls"

    def slow(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        with calls.open("a") as file:
            file.write("x")
        return float((outputs.argmax(-1) == targets).float().mean())

    def fit_by_item() -> dict[str, Any]:
        return fit(bank, True, PerItem(slow, workers=1), pool=50)

    first, second = in_two_processes(fit_by_item, tmp_path)
    assert first["weights"] == second["weights"]
    # Of recorded items, of those made of the held-out ones, of the pool, and some that the second computes again.
    assert len(calls.read_text()) == 120 + 24 + 50 + CHECKED


def test_two_processes_go_on_where_one_was_interrupted(improving_bank, tmp_path):
    bank, checkpoint = improving_bank().path, tmp_path / "fit.pt"

    def interrupt(entry: dict[str, float]) -> None:
        if entry["step"] == 20:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        fit(bank, False, checkpoint=checkpoint, on_validation=interrupt)
    alone = fit(bank, False)
    first, second = in_two_processes(lambda: fit(bank, True, checkpoint=checkpoint), tmp_path)
    assert first["weights"] == second["weights"]
    assert first["learned_from"] + second["learned_from"] == 10 * 25
    for name, value in alone["weights"].items():
        assert_close(torch.tensor(first["weights"][name]), torch.tensor(value), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_torchrun_learns_what_one_process_learns(improving_bank, tmp_path, finish):
    bank = improving_bank().path
    words = (
        "learn",
        "--bank",
        bank,
        "--metric",
        "accuracy",
        "--kind",
        "classification",
        "--set",
        "steps=40",
        "items=32",
    )
    finish(*words, "--out", tmp_path / "one")
    said = finish(*words, "--out", tmp_path / "two", launcher=TORCHRUN)
    assert said.count("step 40/40") == 1
    one, two = (load_file(tmp_path / name / "surrogate.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert_close(two[name], value, rtol=1e-3, atol=1e-4)


def test_more_processes_than_items(improving_bank, monkeypatch):
    monkeypatch.setattr("reloss.runtime.distributed.processes", lambda: 8)
    with pytest.raises(UsageError, match="4 items of a step cannot be shared by 8 processes"):
        fit(improving_bank().path, True, items=4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_all_of_it_once(size):
    parts = torch.cat([Share(rank, size).own(10) for rank in range(size)])
    assert parts.sort().values.tolist() == list(range(10))
