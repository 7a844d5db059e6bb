"""The blocks of docs/frameworks.md run, where their framework is installed, and record and learn in it."""

import re
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import reloss

PAGE = Path(__file__).parents[1] / "docs" / "frameworks.md"
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def batches(shape: tuple[int, ...], count: int = 40, size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, size, *shape, generator=generator)
    return list(zip(inputs, inputs.flatten(2)[..., :3].argmax(-1), strict=True))


def run_block(framework: str, **names) -> dict:
    pytest.importorskip(framework)
    exec(compile(BLOCKS[framework], PAGE.name, "exec"), names)
    return names


def test_lightning():
    torch.manual_seed(0)
    recorder, loader = reloss.Recorder(nn.CrossEntropyLoss()), batches((4,))
    common = {"torch": torch, "train_loader": DataLoader(loader, batch_size=None)}
    names = run_block("lightning", **common, model=nn.Linear(4, 3), criterion=recorder)
    assert recorder.step == 80
    loss = recorder.learn("macro_f1", steps=20, items=16).loss
    before = float(loss(names["model"](loader[0][0]), loader[0][1]))
    model = run_block("lightning", **common, model=names["model"], criterion=loss)["model"]
    assert float(loss(model(loader[0][0]), loader[0][1])) < before


def test_timm():
    torch.manual_seed(0)
    recorder = reloss.Recorder(nn.CrossEntropyLoss())
    run_block("timm", criterion=recorder, train_loader=batches((3, 32, 32)))
    loss = recorder.learn("macro_f1", steps=20, items=16).loss
    run_block("timm", criterion=loss, train_loader=batches((3, 32, 32), count=2))
    assert recorder.step == 40


@pytest.fixture
def tokens():
    """Sentences of 8 tokens of 3 classes; the last two are ignored."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(20, (512, 8), generator=generator)
    return [{"input_ids": ids, "labels": labels_of(ids)} for ids in words]


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    return (ids % 3).where(torch.arange(8) < 6, -100)


def encoder():
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForTokenClassification(BertConfig(vocab_size=20, num_labels=3, **sizes))


def test_trainer(tokens, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorder = reloss.Recorder(nn.CrossEntropyLoss(), item_size=64)
    recorder.loss.forward = lambda logits, labels: nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    run_block("transformers", criterion=recorder, model=encoder(), train_dataset=tokens)
    assert recorder.step == 8 * 4
    loss = recorder.learn("macro_f1", steps=20, items=16).loss
    run_block("transformers", criterion=loss, model=encoder(), train_dataset=tokens)


def test_accumulated_gradients_are_the_mean_over_micro_batches(tokens, tmp_path, monkeypatch):
    """One step of plain SGD with learning rate 1 shows the gradient."""
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(125, 8, 3, generator=generator), torch.randint(3, (125, 8), generator=generator)
    loss, model = reloss.learn_loss(logits, labels, "macro_f1", steps=1, item_size=25).loss, encoder()
    for layer in model.modules():
        layer.p = 0.0  # no dropout
    copy, batches = deepcopy(model), []
    model.register_forward_pre_hook(lambda module, args, inputs: batches.append(inputs["input_ids"]), with_kwargs=True)
    block = BLOCKS["transformers"].replace(
        "max_steps=8", "max_steps=1, max_grad_norm=0, optim='sgd', learning_rate=1.0"
    )
    exec(block, {"criterion": loss, "model": model, "train_dataset": tokens})
    assert len(batches) == 4
    for ids in batches:
        (loss(copy(input_ids=ids).logits, labels_of(ids)) / 4).backward()
    for (name, parameter), trained in zip(copy.named_parameters(), model.parameters(), strict=True):
        assert torch.allclose(parameter - parameter.grad, trained, atol=1e-6), name
