"""What newcomers get wrong: each mistake is refused at once, or named in the verdict, with the remedy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rare import checkpoints
from torch import nn

import reloss
from reloss import Recorder, RelossError, UsageError, learn_loss
from reloss.metric_loss.kinds import KINDS
from reloss.metric_loss.plain_metrics import resolve_metric

SCORES, LABELS = torch.linspace(-2, 2, 64), (torch.arange(64) % 4 == 0).long()
LOGITS, CLASSES = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (
            LABELS.float(),
            SCORES,
            r"outputs \[64\] look like targets, and targets \[64\] like the outputs of a",
        ),
        (CLASSES.float(), LOGITS, r"outputs \[64\] look like targets, and targets \[64, 3\] like the outputs"),
        (SCORES, LABELS[:50], "64 outputs, but 50 targets"),
        (LOGITS, CLASSES + 0.5, r"outputs \[64, 3\] with targets \[64\] of torch.float32; the kinds are"),
        (LABELS, LABELS, "outputs have the type torch.int64: pass scores such as logits, not predicted labels"),
        (SCORES.tolist(), LABELS.tolist(), r"these are lists of numbers: pass torch.tensor\(outputs\)"),
    ],
)
def test_wrong_predictions(outputs, targets, message):
    with pytest.raises(UsageError, match=message):
        learn_loss(outputs, targets, "f1")


def test_a_regression_to_whole_numbers_is_not_taken_for_swapped_arguments():
    recorder = Recorder(nn.MSELoss())
    recorder.record(torch.arange(64.0), 3 * SCORES)
    assert recorder.kind.name == "regression"


def test_swapped_arguments_of_a_recorder():
    with pytest.raises(UsageError, match="look like targets"):
        Recorder(nn.BCEWithLogitsLoss())(LABELS.float(), SCORES.requires_grad_())


def test_swapped_arguments_of_a_fitted_loss():
    loss = reloss.load("f1")
    with pytest.raises(ValueError, match=r"targets must be 0 or 1, -1 or 1, or bool, not -2; the loss takes"):
        loss(LABELS.float(), SCORES)
    assert loss(SCORES, LABELS).isfinite()


@pytest.mark.parametrize(
    ("loss", "message"),
    [(nn.BCEWithLogitsLoss, r"write Recorder\(BCEWithLogitsLoss\(\)\)"), ("bce", r"not 'bce': write Recorder\(nn\.")],
)
def test_a_recorder_of_no_loss(loss, message):
    with pytest.raises(UsageError, match=message):
        Recorder(loss)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("f1_scor", r"unknown metric 'f1_scor'; did you mean f1\?; or pass a function of \(outputs, targets\)"),
        ("precison", "did you mean precision_at_10 or average_precision"),
        ("exact_match", "is for predictions of kind spans, and these are scores of two classes"),
        (lambda outputs, targets: np.nan, "returned nan for all 8 batches that it was tried with; return a number"),
        (lambda outputs: 1.0, "takes 1 positional argument but 2 were given. A metric takes"),
    ],
)
def test_wrong_metrics(metric, message):
    items = SCORES.expand(8, 64), LABELS.expand(8, 64)
    with pytest.raises(UsageError, match=message):
        resolve_metric(metric, KINDS["binary"], items, None, None)


def test_the_order_of_the_arguments_is_reported():
    def missed(y_true, y_pred):
        return float(((y_true == 1) & (y_pred == 0)).sum())

    items = torch.stack([SCORES + 0.3 * shift + 0.01 for shift in range(8)]), LABELS.expand(8, 64)
    for metric, call in (
        (missed, " (called with targets, then labels)"),
        (lambda predicted, true: missed(true, predicted), " (called with labels, then targets)"),
        ("f1", ""),
    ):
        assert resolve_metric(metric, KINDS["binary"], items, None, None).call() == call


def test_a_metric_in_the_wrong_direction(learned):
    reverse = replace(learned, fit=replace(learned.fit, spearman_ordinary=-0.8))
    assert reverse.verdict().startswith("check the direction: the better the predictions are by binary cross-entropy")
    assert reverse.verdict().endswith("If lower is better, pass higher_is_better=False")


def test_wrong_functions_for_compare(learned):
    outputs, targets = checkpoints()
    for train, message in (
        (lambda loss: None, r"must be a function train\(loss, seed\) or train\(loss, seed, lr\): too many positional"),
        ("train", r"must be a function train\(loss, seed\)"),
        (lambda loss, seed: (outputs[0][:50], targets), "train must return .*: 50 outputs, but"),
        (lambda loss, seed: (targets, outputs[0]), "train must return .*: targets must be 0 or 1, -1 or 1, or bool"),
    ):
        with pytest.raises(UsageError, match=message):
            learned.compare(train, seeds=2)


def test_a_folder_without_a_loss(tmp_path):
    with pytest.raises(RelossError, match=r"holds no saved loss, no surrogate\.json; name a folder"):
        reloss.load(tmp_path)
