from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import TORCHRUN, in_two_processes
from safetensors.torch import load_file
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.learning import LearnOptions, PredictionBank, fit_surrogate
from reloss.learning.local_diagnostics import CHANGES, ITEMS
from reloss.learning.metric_cache import CHECKED
from reloss.metrics import PerItem, accuracy
from reloss.runtime.distributed import Share
from reloss.runtime.errors import UsageError
from reloss.surrogates.options import FEATURES, PRESETS

SETTINGS = {"steps": 30, "items": 25, "validate_every": 10}  # with 25 items, one process has one more than the other


class Counting(ClassificationReLoss):
    """Counts the items whose losses it computed in learning steps."""

    learned_from = 0

    def losses_and_norms(self, outputs, targets, statistics=None):
        self.learned_from += len(targets)
        return super().losses_and_norms(outputs, targets, statistics)


def fit(bank: Path, distributed: bool, metric: Any = accuracy, **settings: Any) -> dict[str, Any]:
    """Return the result of a fit as plain values, which can be sent through a queue."""
    more = {name: settings.pop(name) for name in ("checkpoint", "on_validation") if name in settings}
    options = LearnOptions(**SETTINGS | settings)
    torch.manual_seed(0)
    surrogate = Counting(**PRESETS[FEATURES[options.fidelity]])
    opened = PredictionBank.open(bank)
    result = fit_surrogate(surrogate, opened, metric, options=options, distributed=distributed, **more)
    weights = {name: value.tolist() for name, value in result.surrogate.state_dict().items()}
    return {
        **{"weights": weights, "scale": result.surrogate.scale, "history": result.history},
        **{"spearman": result.spearman, "learned_from": surrogate.learned_from},
    }


@pytest.mark.parametrize("settings", [{}, {"fidelity": "released"}, {"objective": "value"}, {"correlation": "kendall"}])
def test_two_processes_fit_the_same_surrogate_as_one(improving_bank, tmp_path, settings):
    bank = improving_bank().path
    single = fit(bank, False, **settings)
    first, second = in_two_processes(lambda: fit(bank, True, **settings), tmp_path)
    assert first["weights"] == second["weights"]
    assert first["history"] == second["history"]
    for name, value in single["weights"].items():
        assert_close(torch.tensor(first["weights"][name]), torch.tensor(value), rtol=1e-3, atol=1e-4)
    assert first["spearman"] == pytest.approx(single["spearman"], abs=1e-3)
    assert first["scale"] == pytest.approx(single["scale"], rel=1e-3)
    for entry, expected in zip(first["history"], single["history"], strict=True):
        assert entry == pytest.approx(expected, rel=1e-3, abs=1e-3)
    if settings.get("objective") != "value":
        assert [result["learned_from"] for result in (single, first, second)] == [750, 390, 360]


def test_only_one_process_computes_a_slow_metric(improving_bank, tmp_path):
    bank, calls = improving_bank().path, tmp_path / "calls"

    def slow(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        with calls.open("a") as file:
            file.write("x")
        return float((outputs.argmax(-1) == targets).float().mean())

    def fit_by_item() -> dict[str, Any]:
        return fit(bank, True, PerItem(slow, workers=1), pool=50)

    first, second = in_two_processes(fit_by_item, tmp_path)
    assert first["weights"] == second["weights"]
    # Recorded items, synthetic held-out items, the pool, small changes of the last items, and the values that the
    # second process checks.
    assert len(calls.read_text()) == 120 + 24 + 50 + ITEMS * CHANGES + CHECKED


def test_two_processes_resume_the_fit_of_one(improving_bank, tmp_path):
    bank, checkpoint = improving_bank().path, tmp_path / "fit.pt"

    def interrupt(entry: dict[str, float]) -> None:
        if entry["step"] == 20:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        fit(bank, False, checkpoint=checkpoint, on_validation=interrupt)
    single = fit(bank, False)
    first, second = in_two_processes(lambda: fit(bank, True, checkpoint=checkpoint), tmp_path)
    assert first["weights"] == second["weights"]
    assert first["learned_from"] + second["learned_from"] == 10 * 25
    for name, value in single["weights"].items():
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
    output = finish(*words, "--out", tmp_path / "two", launcher=TORCHRUN)
    assert output.count("step 40/40") == 1
    single, double = (load_file(tmp_path / name / "surrogate.safetensors") for name in ("one", "two"))
    for name, value in single.items():
        assert_close(double[name], value, rtol=1e-3, atol=1e-4)


def test_more_processes_than_items_are_refused(improving_bank, monkeypatch):
    monkeypatch.setattr("reloss.runtime.distributed.processes", lambda: 8)
    with pytest.raises(UsageError, match="the 4 items of a step cannot be shared by 8 processes"):
        fit(improving_bank().path, True, items=4)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_cover_every_index_once(size):
    parts = torch.cat([Share(rank, size).indices(10) for rank in range(size)])
    assert parts.sort().values.tolist() == list(range(10))
