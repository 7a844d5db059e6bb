"""From predictions and a metric to a loss, by `learn_loss` and by `Recorder`."""

import numpy as np
import pytest
import torch
from processes import in_two_processes
from rare import FEW, checkpoints
from sklearn.metrics import f1_score
from torch import nn
from torch.nn import functional as F

import reloss
from reloss import MetricLoss, Recorder, RelossError, UsageError, learn_loss
from reloss.metrics import binary_f1


def test_the_loss_ranks_better_than_the_ordinary_one(learned):
    assert learned.fit.spearman > 0.85
    assert learned.fit.spearman > learned.expected_fit.spearman > learned.fit.spearman_ordinary + 0.02
    assert learned.verdict().startswith("worth training with")


def test_the_loss_is_frozen_and_falls_as_predictions_get_better(learned):
    outputs, targets = checkpoints()
    losses = [float(learned.loss(checkpoint, targets)) for checkpoint in (outputs[0], outputs[-1])]
    assert losses[1] < losses[0]
    assert not list(learned.loss.parameters())
    scores = outputs[3].clone().requires_grad_()
    learned.mixed(0.5)(scores, targets.float()).backward()
    mixed = scores.grad.clone()
    scores.grad = None
    (F.binary_cross_entropy_with_logits(scores, targets.float()) + 0.5 * learned.loss(scores, targets)).backward()
    assert torch.allclose(mixed, scores.grad)


def test_every_form_of_targets_gives_the_same_loss(learned):
    outputs, targets = checkpoints()
    expected = learned.loss(outputs[3], targets)
    for form in (targets.float(), targets.bool(), 2 * targets - 1, targets[:, None]):
        assert torch.equal(learned.loss(outputs[3], form), expected)
    assert torch.equal(learned.loss(outputs[3][:, None], targets), expected)


def test_a_saved_loss_is_the_same(learned, tmp_path):
    learned.save_pretrained(tmp_path / "loss")
    outputs, targets = checkpoints()
    loss = reloss.load(tmp_path / "loss")
    assert isinstance(loss, MetricLoss)
    assert torch.equal(loss(outputs[3], 2 * targets - 1), learned.loss(outputs[3], targets))
    assert isinstance(reloss.load("classification/cifar10"), reloss.ClassificationReLoss)


def test_print_shows_the_verdict(learned):
    lines = str(learned).splitlines()
    assert lines[0].startswith("f1_score; scores of two classes")
    assert [line.split()[0] for line in lines[2:5]] == ["learned", "expected", "binary"]
    assert " ".join(lines[5:]) == learned.verdict()
    assert max(map(len, lines)) <= 100


def test_the_same_seed_gives_the_same_loss(learned):
    outputs, targets = checkpoints()
    state = torch.get_rng_state()
    again = learn_loss(outputs, targets, f1_score, item_size=32, **FEW)
    assert torch.equal(again.loss(outputs[3], targets), learned.loss(outputs[3], targets))
    assert torch.equal(torch.get_rng_state(), state)  # the random numbers of the training are untouched
    other = learn_loss(outputs, targets, f1_score, item_size=32, seed=1, **FEW)
    assert not torch.equal(other.loss(outputs[3], targets), learned.loss(outputs[3], targets))


def test_arrays_and_a_single_checkpoint_will_do():
    outputs, targets = checkpoints(examples=2000)
    result = learn_loss(outputs[6].numpy(), targets.numpy(), "f1", **FEW)
    assert result.metric.metric is binary_f1
    assert np.isfinite(result.fit.spearman)


def test_a_metric_that_cross_entropy_follows_gives_no_gain():
    outputs, targets = checkpoints()

    def likelihood(outputs, targets):
        return -F.binary_cross_entropy_with_logits(outputs, targets.float())

    result = learn_loss(outputs, targets, likelihood, item_size=32, **FEW)
    assert result.verdict().startswith("no better than binary cross-entropy")
    assert result.expected is None


def test_a_metric_of_chance_is_not_learnable():
    outputs, targets = checkpoints()

    def checksum(outputs, targets):
        return float((outputs.double().abs().sum() * 1e6) % 1)

    result = learn_loss(outputs, targets, checksum, item_size=32, **FEW)
    assert result.verdict().startswith("not learnable")


def train(criterion, steps=120):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        inputs = torch.randn(32, 4, generator=generator)
        targets = (inputs.sum(1) + torch.randn(32, generator=generator) > 2).float()
        loss = criterion(model(inputs).squeeze(1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss


def test_a_recorder_is_the_ordinary_loss_and_records(capsys):
    torch.manual_seed(0)
    recorder = Recorder(nn.BCEWithLogitsLoss())
    recorded = train(recorder)
    torch.manual_seed(0)
    assert torch.equal(recorded, train(nn.BCEWithLogitsLoss()))
    with torch.no_grad():
        recorder(torch.randn(8), torch.ones(8))
    assert recorder.step == 120
    result = recorder.learn("f1", **FEW)
    assert len(recorder.bank) == 120
    assert result.ordinary is recorder.loss
    assert capsys.readouterr().err.splitlines()[0] == "recording scores of two classes [] (kind=binary), 32 per item"
    recorder(torch.randn(32), torch.ones(32))  # recording continues
    assert len(recorder.learn("f1", **FEW).recording.bank) == 121


def test_a_recording_can_have_a_place(tmp_path):
    recorder = Recorder(nn.BCEWithLogitsLoss(), path=tmp_path)
    train(recorder, 40)
    recorder.learn("f1", **FEW)
    assert len(reloss.PredictionBank.open(tmp_path / "bank")) == 40
    again = Recorder(nn.BCEWithLogitsLoss(), path=tmp_path)
    with pytest.raises(RelossError, match="holds a prediction bank already"):
        train(again, 1)


def test_wrong_calls_are_explained(tmp_path):
    outputs, targets = checkpoints()
    with pytest.raises(RelossError, match="nothing was recorded"):
        Recorder(nn.BCEWithLogitsLoss()).learn("f1")
    with pytest.raises(UsageError, match="unknown kind of predictions 'binari'; did you mean binary"):
        Recorder(nn.BCEWithLogitsLoss(), kind="binari")
    with pytest.raises(UsageError, match="unknown option of the fit 'stepps'; did you mean steps"):
        learn_loss(outputs, targets, "f1", stepps=3)
    with pytest.raises(UsageError, match="320 outputs, but 100 targets"):
        learn_loss(outputs, targets[:100], "f1")
    with pytest.raises(UsageError, match="12 outputs and 2 targets"):
        learn_loss(outputs, [targets, targets], "f1")
    with pytest.raises(RelossError, match="too few to learn from"):
        learn_loss(outputs[0][:20], targets[:20], "f1")
    with pytest.raises(UsageError, match="outputs must be a tensor or an array of numbers, not list"):
        learn_loss([["a"]], [targets], "f1")


def record_and_learn(folder):
    torch.manual_seed(torch.distributed.get_rank())
    recorder = Recorder(nn.BCEWithLogitsLoss(), path=folder)
    train(recorder, 60)
    result = recorder.learn("f1", **FEW)
    probe = torch.linspace(-3, 3, 32)
    return len(reloss.PredictionBank.open(folder / "bank")), float(result.loss(probe, (probe > 1).long()))


def test_two_processes_record_and_learn_together(tmp_path):
    (items, loss), other = in_two_processes(record_and_learn, tmp_path, tmp_path / "recording")
    assert items == 120
    assert other == (items, pytest.approx(loss, rel=1e-5))


def test_two_processes_need_one_folder(tmp_path):
    (error, _) = in_two_processes(lambda: Recorder(nn.BCEWithLogitsLoss()), tmp_path)
    assert "several processes record together: pass Recorder(loss, path=FOLDER)" in error


def test_a_batch_of_another_form_is_refused(learned):
    with pytest.raises(ValueError, match=r"outputs \[6, 3\] and targets \[6\] are not scores of two classes: expected"):
        learned.loss(torch.randn(6, 3), torch.zeros(6))


@pytest.mark.parametrize("kind", ["classes", "spans"])
def test_losses_that_decompose_can_be_weighted(kind):
    generator = torch.Generator().manual_seed(0)
    shape, high = {"classes": ((40,), 40), "spans": ((2, 20), 20)}[kind]
    outputs = [torch.randn(400, *shape, generator=generator) for _ in range(4)]
    targets = torch.randint(high, (400,) if kind == "classes" else (400, 2), generator=generator)
    targets = targets if kind == "classes" else targets.sort(-1).values
    loss = learn_loss(outputs, targets, {"classes": "accuracy", "spans": "f1"}[kind], kind=kind, **FEW).loss
    batch, labels = outputs[0][:16], targets[:16]
    each = loss(batch, labels, reduction="none")
    assert each.shape == (16,)
    assert torch.allclose(each.mean(), loss(batch, labels), rtol=1e-5)
    assert torch.allclose(loss(batch, labels, reduction="sum"), each.sum())
    weights = torch.arange(16.0)
    assert torch.allclose(loss(batch, labels, weights), (weights * each).sum() / weights.sum())
    alone = torch.stack([loss(batch[number, None], labels[number, None]) for number in range(16)])
    assert torch.allclose(each, alone, atol=1e-5)


def test_losses_of_a_whole_batch_refuse_weights(learned):
    with pytest.raises(ValueError, match="ExpectedSets scores a batch as a whole"):
        learned.loss(torch.randn(6), torch.tensor([0, 1, 0, 1, 0, 1]), torch.ones(6))


def class_logits(examples: int = 160, classes: int = 4):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(classes, (examples,), generator=generator)
    noise = torch.randn(8, examples, classes, generator=generator)
    return list(noise + torch.linspace(0, 3, 8)[:, None, None] * F.one_hot(targets, classes)), targets


def test_remedies_of_messages_work():
    outputs, targets = class_logits()
    with pytest.raises(RelossError, match="count classes from 0: targets - 1"):
        learn_loss(outputs, targets + 1, "f1", **FEW)
    cured = learn_loss(outputs, (targets + 1) - 1, "f1", **FEW)
    assert cured.fit.spearman > 0.9
    with pytest.warns(UserWarning, match="pass what comes before the softmax"):
        learn_loss([checkpoint.softmax(1) for checkpoint in outputs], targets, "f1", **FEW)
    with pytest.raises(RelossError, match="all targets in the bank"):
        learn_loss(outputs, torch.zeros(160, dtype=torch.long), "f1", **FEW)
    with pytest.raises(UsageError, match=r"(?s)outputs \[160, 4\] with targets \[160\].*regression: outputs \[B\]"):
        learn_loss(outputs, targets + 0.5, "f1", **FEW)
    cured = learn_loss(outputs, F.one_hot(targets, 4) + 0.5, "r2", **FEW)
    assert cured.loss.kind.name == "regression"


def test_soft_and_one_hot_labels_are_the_same_as_classes():
    outputs, targets = class_logits()
    losses = [
        learn_loss(outputs, labels, "f1", **FEW).loss(outputs[3], labels)
        for labels in (targets, F.one_hot(targets, 4), 0.6 * F.one_hot(targets, 4) + 0.1)
    ]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


def test_metrics_of_the_top_get_a_loss_that_sees_the_top():
    outputs, targets = checkpoints()
    result = learn_loss(outputs, targets, "precision_at_10", item_size=32, **FEW)
    assert type(result.loss.surrogate).__name__ == "ExpectedTop"
    assert result.expected is not None
