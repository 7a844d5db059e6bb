"""A folder or a file of weights loads as it was saved; a damaged one is refused in one line."""

import hashlib
import json

import pytest
import torch
from surrogate_files import GARBAGE, OPTIONS, Code, losses, refusal
from torch.testing import assert_close

from reloss import ClassificationReLoss
from reloss.runtime.errors import RelossError, UsageError
from reloss.runtime.files import short_hash


def test_round_trip(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s", {"metric": "accuracy"})
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s")
    assert loaded.options() == OPTIONS
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    card = json.loads((tmp_path / "s" / "surrogate.json").read_text())
    digest = hashlib.sha256((tmp_path / "s" / "surrogate.safetensors").read_bytes()).hexdigest()
    description = {"class": "ClassificationReLoss", "options": OPTIONS}
    hashes = {"sha256": digest, "options_hash": short_hash(description)}
    assert card == {**description, "metric": "accuracy", **hashes}


def test_flipped_bit_is_refused(tmp_path):
    ClassificationReLoss(**OPTIONS).save_pretrained(tmp_path)
    path = tmp_path / "surrogate.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(RelossError, match=r"surrogate\.safetensors is damaged: its checksum differs from the one in"):
        ClassificationReLoss.from_pretrained(tmp_path)


def test_changed_options_are_refused(tmp_path):
    ClassificationReLoss(output="monotone").save_pretrained(tmp_path)
    path = tmp_path / "surrogate.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({**card, "options": {**card["options"], "output": "identity"}}))
    with pytest.raises(RelossError, match=r"surrogate\.json was changed: its options differ"):
        ClassificationReLoss.from_pretrained(tmp_path)
    del card["options_hash"]  # earlier versions wrote none
    path.write_text(json.dumps(card))
    assert ClassificationReLoss.from_pretrained(tmp_path).output == "monotone"


def test_saving_again_replaces(tmp_path):
    for _ in range(2):
        surrogate = ClassificationReLoss(**OPTIONS)
        surrogate.save_pretrained(tmp_path)
    assert_close(losses(ClassificationReLoss.from_pretrained(tmp_path)), losses(surrogate), rtol=0, atol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["surrogate.json", "surrogate.safetensors"]


def test_frozen_surrogate_passes_gradients_to_the_outputs(tmp_path):
    ClassificationReLoss(**OPTIONS).save_pretrained(tmp_path)
    outputs = torch.randn(8, 3, requires_grad=True)
    ClassificationReLoss.from_pretrained(tmp_path)(outputs, torch.zeros(8, dtype=torch.long)).backward()
    assert outputs.grad.abs().min() > 0


def test_released_weights_are_a_plain_state_dict(tmp_path):
    surrogate = ClassificationReLoss(input="probability", output="absolute")
    torch.save(surrogate.state_dict(), tmp_path / "reloss_cls.ckpt")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "reloss_cls.ckpt")
    assert loaded.options() == {"input": "probability", "output": "absolute", "width": 128, "scale": 1.0}
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)


def test_options_are_for_files_and_not_for_folders(tmp_path):
    surrogate = ClassificationReLoss(**OPTIONS)
    surrogate.save_pretrained(tmp_path / "s")
    loaded = ClassificationReLoss.from_pretrained(tmp_path / "s" / "surrogate.safetensors", **OPTIONS)
    assert_close(losses(loaded), losses(surrogate), rtol=0, atol=0)
    assert "remove width" in refusal(tmp_path / "s", UsageError, width=16)


def test_missing_path_is_refused(tmp_path):
    assert "expected a folder with surrogate.json" in refusal(tmp_path / "absent", UsageError)
    assert "holds no saved loss, no surrogate.json; name a folder" in refusal(tmp_path)


def test_code_in_a_file_of_weights_is_refused_and_never_run(tmp_path):
    torch.save({"loss.2.bias": Code(tmp_path / "victim")}, tmp_path / "evil.ckpt")
    assert "not a file of tensors only" in refusal(tmp_path / "evil.ckpt")
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_file_without_weights_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    ClassificationReLoss().save_pretrained(tmp_path)
    torch.save(ClassificationReLoss().state_dict(), tmp_path / "weights.ckpt")
    (tmp_path / "surrogate.safetensors").rename(tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot read weights" in refusal(path)


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2]])
def test_file_that_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.ckpt")
    assert f"it holds a {type(content).__name__}" in refusal(tmp_path / "w.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"loss.2.bias": 3}, {1: torch.zeros(1)}])
def test_state_dict_of_other_values_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.ckpt")
    assert f"under {next(iter(content))!r} it holds a" in refusal(tmp_path / "w.ckpt")


def test_weights_of_another_size_are_refused(tmp_path):
    weights = ClassificationReLoss(width=16).state_dict()
    torch.save(weights, tmp_path / "narrow.ckpt")
    weights.pop("loss.2.bias")
    torch.save(weights, tmp_path / "short.ckpt")
    assert "size mismatch for logits_fcs.0.weight" in refusal(tmp_path / "narrow.ckpt")
    assert "Missing key" in refusal(tmp_path / "short.ckpt")


def test_folder_without_weights_is_refused(tmp_path):
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
        *(
            (
                f'{{"class": "ClassificationReLoss", "options": {{"scale": {scale}}}}}',
                "scale must be a positive number, not ",
            )
            for scale in ("NaN", "Infinity", '"x"', "0", "-1", "true", "null")
        ),
        *(
            (
                f'{{"class": "ClassificationReLoss", "options": {{"width": {width}}}}}',
                "width must be a whole number of at ",
            )
            for width in ("-1", "0", "1.5", '"8"', "null")
        ),
    ],
)
def test_wrong_card_is_refused(tmp_path, card, cause):
    ClassificationReLoss().save_pretrained(tmp_path)
    (tmp_path / "surrogate.json").write_text(card)
    assert cause in refusal(tmp_path)
