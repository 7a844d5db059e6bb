"""Losses that ship with the package load by name, work on any data of their kind, and rank as their card states."""

import json
from pathlib import Path

import pytest
import torch

import reloss
from reloss import MetricLoss, UsageError, zoo_names
from reloss.metric_loss import zoo
from reloss.metrics import METRICS
from reloss.runtime.errors import RelossError
from tools.fit_zoo import CHECKED, LOSSES, Snapshots, correlation, record
from tools.fit_zoo_kinds import OTHERS, checked
from tools.tabular_runs import load_sklearn
from tools.zoo_sets import HALVES

NAMES = [name for name in zoo_names() if name in LOSSES]
OTHER_NAMES = [name for name in zoo_names() if name in OTHERS]
RANDOM = torch.Generator().manual_seed(0)
BATCHES = {
    "classes": (torch.randn(30, 7, generator=RANDOM), torch.arange(30) % 7),
    "masks": (torch.randn(3, 4, 10, 12, generator=RANDOM), torch.arange(360).view(3, 10, 12) % 4),
    "lists": (torch.randn(5, 15, generator=RANDOM), torch.arange(75.0).view(5, 15) % 4),
    "regression": (torch.randn(40, 1, generator=RANDOM), torch.linspace(-2, 2, 40)[:, None]),
}
"""A batch of each kind: outputs and targets."""


@pytest.fixture(scope="module")
def recordings() -> dict[str, Snapshots]:
    """Scores of small networks on sets that come with scikit-learn."""
    return {which: record(load_sklearn(which), 0) for which in CHECKED}


def test_the_zoo_holds_losses() -> None:
    assert {"f1", "average_precision"} <= set(NAMES)
    assert sorted([*NAMES, *OTHER_NAMES]) == zoo_names()


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_ranks_as_its_card_states(name: str, recordings: dict[str, Snapshots]) -> None:
    loss, card = reloss.load(name), zoo.zoo_card(name)
    assert isinstance(loss, MetricLoss)
    assert card["metric"] == LOSSES[name][0]
    assert card["metric"] in METRICS
    assert card["spearman"]["unseen"] > card["spearman"]["ordinary"]
    assert card["training"]["zoo + cross-entropy"]["difference"] > 0
    for which, figures in card["checked"].items():
        measured = correlation(loss.surrogate, name, recordings[which])
        assert measured == pytest.approx(figures["spearman"], abs=0.03), which
        assert correlation(None, name, recordings[which]) == pytest.approx(figures["ordinary"], abs=0.03), which


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_frozen_and_trains_on_batches_of_any_size_and_form(name: str) -> None:
    loss = reloss.load(name)
    assert not list(loss.parameters())
    generator = torch.Generator().manual_seed(0)
    for size in (1, 7, 64, 300):
        outputs = torch.randn(size, 1, generator=generator).requires_grad_()
        targets = (torch.rand(size, generator=generator) < 0.3).float()
        value = loss(outputs, targets)
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        assert torch.isfinite(outputs.grad).all()
        assert ((outputs.grad[:, 0] * (2 * targets - 1)) <= 1e-7).all()  # better scores never cost more
        assert value == loss(outputs[:, 0], targets.bool()) == loss(outputs, 2 * targets[:, None] - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_loss_for_another_kind_ranks_as_its_card_states(name: str) -> None:
    loss, card = reloss.load(name), zoo.zoo_card(name)
    assert card["metric"] == OTHERS[name].metric
    assert card["spearman"]["unseen"] > card["spearman"]["ordinary"]
    assert card["training"][f"zoo + {card['ordinary']}"]["difference"] > 0
    for which, figures in checked(name, loss.surrogate).items():
        assert figures == pytest.approx(card["checked"][which], abs=0.03)


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_a_loss_for_another_kind_is_frozen_and_takes_a_batch_of_any_size(name: str) -> None:
    loss = reloss.load(name)
    assert not list(loss.parameters())
    outputs, targets = BATCHES[OTHERS[name].kind]
    for size in (1, len(outputs)):
        batch = outputs[:size].clone().requires_grad_()
        value = loss(batch, targets[:size])
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        assert torch.isfinite(batch.grad).all()


def test_halves_of_other_kinds_share_no_set() -> None:
    assert all(not set(first) & set(second) for first, second in HALVES.values())


@pytest.mark.parametrize("name", zoo_names())
def test_a_file_is_small_and_its_card_names_no_machine(name: str) -> None:
    assert (zoo.FOLDER / f"{name}{zoo.SUFFIX}").stat().st_size < 20_000
    text = json.dumps(zoo.zoo_card(name))
    assert not any(machine in text for machine in ("/tmp", "/home", "/root", "/work", str(Path.cwd())))


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(UsageError, match=r"unknown loss 'f11'; did you mean .*f1.*reloss zoo"):
        reloss.load("f11")


def test_a_saved_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = reloss.load("f1")
    monkeypatch.chdir(tmp_path)
    Path("mcc").mkdir()
    torch.testing.assert_close(reloss.load("mcc").surrogate.scale, reloss.load("mcc").surrogate.scale)
    loss.save_pretrained("mcc")
    assert reloss.load("mcc").surrogate.scale == loss.surrogate.scale


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "f1.safetensors"
    path.write_bytes((zoo.FOLDER / "f1.safetensors").read_bytes()[:40])
    with pytest.raises(RelossError, match=r"f1\.safetensors is damaged.*install the package again"):
        zoo.read_file(path)


def test_the_command_lists_the_zoo_and_prints_a_card(cli) -> None:
    code, out, err = cli("zoo")
    assert (code, err) == (0, "")
    assert all(f"\n{name} " in out for name in zoo_names())
    code, out, _ = cli("zoo", "--json")
    assert code == 0
    assert [card["name"] for card in json.loads(out)] == zoo_names()
    code, out, _ = cli("zoo", "f1")
    assert code == 0
    assert out.startswith("f1: binary_f1; scores of two classes")
    code, out, err = cli("zoo", "f11")
    assert (code, out) == (2, "")
    assert "did you mean f1" in err
