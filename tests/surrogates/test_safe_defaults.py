"""Surrogates with default arguments, fitted with default options, on data where earlier defaults failed."""

import torch
from torch import nn
from torch.nn import functional as F

from reloss.learning import PredictionBank, fit_surrogate
from reloss.metrics import binary_f1
from reloss.surrogates import ClassificationReLoss, SetReLoss


def rare_data(examples=2000, seed=0):
    """Return features [B, 5] and labels. The 6 % of positives are hard to tell from the negatives."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(examples, generator=generator) < 0.06).float()
    return torch.randn(examples, 5, generator=generator) + 0.9 * labels[:, None], labels


def train(loss, features, labels, steps=200, seed=0, record=None):
    """Return the scores of a small network after a training with `loss`."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        batch = torch.randint(len(labels), (128,))
        outputs = model(features[batch]).squeeze(-1)
        if record is not None:
            record.append(outputs.detach(), labels[batch], step)
        optimizer.zero_grad()
        loss(outputs, labels[batch]).backward()
        optimizer.step()
    return model(features).squeeze(-1).detach()


def test_a_set_with_few_positives_does_not_collapse(tmp_path):
    features, labels = rare_data()
    bank = PredictionBank.create(tmp_path, item_size=128)
    scores = train(F.binary_cross_entropy_with_logits, features, labels, record=bank)
    bank.finish()
    ordinary = binary_f1(scores[None], labels[None]).item()
    torch.manual_seed(0)
    loss = fit_surrogate(SetReLoss(), bank, binary_f1, steps=100, items=64).surrogate
    learned = binary_f1(train(loss, features, labels)[None], labels[None]).item()
    assert learned > ordinary - 0.02


def test_quadratic_kappa_is_ranked(tmp_path):
    generator = torch.Generator().manual_seed(0)
    bank = PredictionBank.create(tmp_path, item_size=64)
    for step in range(200):
        targets = torch.randint(5, (64,), generator=generator)
        near = -(torch.arange(5) - targets[:, None]).abs()
        bank.append(step / 100 * near + torch.randn(64, 5, generator=generator), targets, step)
    bank.finish()
    torch.manual_seed(0)
    result = fit_surrogate(ClassificationReLoss(), bank, quadratic_kappa, steps=100, items=64)
    assert result.spearman > 0.9


def quadratic_kappa(outputs, targets):
    predicted, classes = outputs.argmax(-1), torch.arange(outputs.shape[-1])
    weights = (classes[:, None] - classes).square().float()
    table = torch.einsum("nbi,nbj->nij", F.one_hot(targets, 5).float(), F.one_hot(predicted, 5).float())
    chance = table.sum(2, keepdim=True) * table.sum(1, keepdim=True) / targets.shape[1]
    return 1 - (weights * table).sum((1, 2)) / (weights * chance).sum((1, 2))
