import json
import os
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.errors import RelossError, UsageError

OPTIONS = {"input": "log_probability", "output": "identity", "width": 16, "scale": 1.75}


def losses(surrogate: ClassificationReLoss) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return surrogate.per_item(torch.randn(4, 8, 3, generator=generator), torch.zeros(4, 8, dtype=torch.long))


def refusal(path: Path, error: type[RelossError] = RelossError, **options) -> str:
    """The message with which `path` is refused, checked to be one line that names the path."""
    with pytest.raises(error) as caught:
        ClassificationReLoss.from_pretrained(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s", {"metric": "accuracy"})
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s")
    assert loaded.options() == OPTIONS
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    card = json.loads((tmp_path / "s" / "surrogate.json").read_text())
    assert card == {"class": "ClassificationReLoss", "options": OPTIONS, "metric": "accuracy"}


def test_saving_again_replaces(tmp_path):
    for _ in range(2):
        surrogate = ClassificationReLoss(**OPTIONS)
        surrogate.save_pretrained(tmp_path)
    assert_close(losses(ClassificationReLoss.from_pretrained(tmp_path)), losses(surrogate), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surrogate.json", "surrogate.safetensors"]


def test_a_frozen_surrogate_still_passes_a_gradient_to_the_outputs(tmp_path):
    ClassificationReLoss(**OPTIONS).save_pretrained(tmp_path)
    outputs = torch.randn(8, 3, requires_grad=True)
    ClassificationReLoss.from_pretrained(tmp_path)(outputs, torch.zeros(8, dtype=torch.long)).backward()
    assert outputs.grad.abs().min() > 0


def test_a_released_checkpoint_is_a_plain_state_dict(tmp_path):
    surrogate = ClassificationReLoss()
    torch.save(surrogate.state_dict(), tmp_path / "reloss_cls.ckpt")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "reloss_cls.ckpt")
    assert loaded.options() == {"input": "probability", "output": "absolute", "width": 128, "scale": 1.0}
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)


def test_options_go_with_a_file_and_not_with_a_folder(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s" / "surrogate.safetensors", **OPTIONS)
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert "drop width" in refusal(tmp_path / "s", UsageError, width=16)


def test_nothing_there(tmp_path):
    assert "expected a folder with surrogate.json" in refusal(tmp_path / "absent", UsageError)
    assert "does not exist" in refusal(tmp_path)


class Code:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path):
    torch.save({"loss.2.bias": Code(tmp_path / "victim")}, tmp_path / "evil.ckpt")
    assert "not a file of tensors alone" in refusal(tmp_path / "evil.ckpt")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage " * 20], ids=["empty", "garbage"])
def test_a_file_that_holds_no_weights(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_truncated_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    ClassificationReLoss().save_pretrained(tmp_path)
    torch.save(ClassificationReLoss().state_dict(), tmp_path / "weights.ckpt")
    (tmp_path / "surrogate.safetensors").rename(tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("held", [torch.zeros(3), [1, 2]])
def test_a_checkpoint_that_is_no_state_dict(tmp_path, held):
    torch.save(held, tmp_path / "w.ckpt")
    assert f"it holds a {type(held).__name__}" in refusal(tmp_path / "w.ckpt")


def test_weights_that_do_not_fit(tmp_path):
    narrow = ClassificationReLoss(width=16).state_dict()
    torch.save(narrow, tmp_path / "narrow.ckpt")
    torch.save({"state_dict": narrow}, tmp_path / "nested.ckpt")
    assert "size mismatch for logits_fcs.0.weight" in refusal(tmp_path / "narrow.ckpt")
    assert "Missing key" in refusal(tmp_path / "nested.ckpt")


def test_a_folder_without_its_weights(tmp_path):
    ClassificationReLoss().save_pretrained(tmp_path)
    (tmp_path / "surrogate.safetensors").unlink()
    assert "surrogate.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("card", "cause"),
    [
        ('{"class": "PoseReLoss", "options": {}}', "a PoseReLoss, not a ClassificationReLoss"),
        ('{"class": "ClassificationReLoss"}', "no class and options"),
        ("[]", "no class and options"),
        ('{"class": "ClassificationReLoss", "options": {"depth": 3}}', "'depth'"),
        ('{"class": "ClassificationReLoss", "options": {"input": "logits"}}', "logits"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_a_card_that_describes_something_else(tmp_path, card, cause):
    ClassificationReLoss().save_pretrained(tmp_path)
    (tmp_path / "surrogate.json").write_text(card)
    assert cause in refusal(tmp_path)
