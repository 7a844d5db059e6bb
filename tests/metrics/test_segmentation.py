"""Metrics of masks equal scikit-learn's; pixels of -100 and 255 do not count."""

import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from reloss.metrics import dice, mask_iou, mean_iou

SCORES = {dice: f1_score, mask_iou: jaccard_score}


def masks(classes=4, n=3, b=5, seed=0):
    """Logits of random classes, or of a foreground that one image lacks; some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(max(classes, 2), (n, b, 6, 5), generator=generator)
    targets[:, 0] = 0
    outputs = torch.randn(n, b, classes, 6, 5, generator=generator)
    outputs = outputs + (targets[:, :, None] == torch.arange(1 if classes == 1 else 0, max(classes, 2))[:, None, None])
    outputs[:, 0] -= 5 if classes == 1 else 0
    ignored = torch.rand(targets.shape, generator=generator)
    return outputs, targets.masked_fill(ignored < 0.1, -100).masked_fill(ignored > 0.9, 255)


def labelled(outputs, targets):
    """Predictions and targets of the pixels that count, as NumPy arrays."""
    counts = (targets != -100) & (targets != 255)
    predictions = (outputs[..., 0, :, :] > 0).long() if outputs.shape[-3] == 1 else outputs.argmax(-3)
    return predictions[counts].numpy(), targets[counts].numpy()


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("classes", [1, 4])
def test_images_equal_scikit_learn(metric, classes):
    outputs, targets = masks(classes)
    expected = []
    for images in zip(outputs, targets, strict=True):
        values = []
        for image in zip(*images, strict=True):
            predicted, actual = labelled(*image)
            groups = [1] if classes == 1 else sorted(set(actual))
            values += [SCORES[metric](actual == c, predicted == c, zero_division=1) for c in groups]
        expected.append(sum(values) / len(values))
    assert metric(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [1, 4])
def test_mean_iou_equals_scikit_learn(classes):
    outputs, targets = masks(classes)
    average = {"average": "macro"} if classes > 1 else {}
    expected = []
    for item in zip(outputs, targets, strict=True):
        predicted, actual = labelled(*item)
        expected.append(jaccard_score(actual, predicted, **average))
    assert mean_iou(outputs, targets).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", [dice, mask_iou, mean_iou])
def test_forms_of_masks(metric):
    outputs, targets = masks(1)
    expected = metric(outputs, targets)
    assert torch.equal(metric(outputs, targets[:, :, None]), expected)
    assert torch.equal(metric(outputs, targets.float()), expected)
    assert torch.equal(metric(outputs, targets.masked_fill(targets == -100, 255).to(torch.uint8)), expected)
    assert metric(outputs, torch.full_like(targets, -100)).tolist() == [0, 0, 0]
    assert metric(-outputs.abs(), 0 * targets).tolist() == [1, 1, 1]
    assert metric(outputs.abs(), 0 * targets).tolist() == [0, 0, 0]
    many = torch.zeros(1, 1, 300, 2, 2)
    assert metric(many, torch.full((1, 1, 2, 2), 255)).tolist() == [0]  # 255 is a class here
    many[:, :, 255] = 1
    assert metric(many, torch.full((1, 1, 2, 2), 255)).tolist() == [1]


@pytest.mark.parametrize("metric", [dice, mask_iou, mean_iou])
def test_wrong_masks_raise(metric):
    outputs, targets = masks(4)
    binary = masks(1)[0]
    for scores, wrong, message in (
        (outputs, targets + 1000, r"from 0 to 3, not \d+; mark pixels that do not count with -100"),
        (binary, (targets > 0) * 7, r"from 0 to 1, not 7; turn the foreground into 1: \(targets > 0\)"),
        (binary, targets.clamp(0, 1) * 0.5, "not 0.5; for mixed-up or soft targets"),
        (binary, (targets > 0) * 255, r"if 255 is the foreground, pass \(targets > 0\)"),
        (outputs, torch.zeros_like(outputs), r"turn one-hot masks into classes: targets.argmax\(1\)"),
        (outputs, targets[:, :, None], r"remove the axis of length 1: targets.squeeze\(1\)"),
        (binary[:, :, 0], targets, r"add the axis of the single class: outputs.unsqueeze\(1\)"),
        (outputs * torch.nan, targets, "the model has diverged"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(scores, wrong)
