"""Expected parts of classification metrics: how likely a target is among the first k classes that a model would draw.

Accuracy asks whether the target has the largest logit. If the class is drawn from the softmax instead, the expected
accuracy is the probability of the target. For top-k accuracy, classes are drawn one after another, without replacement:
the target is a hit if it appears within k draws. All parts are logarithms, so that they pass a gradient to examples
that the model gets badly wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from reloss.surrogates.checks import check_class_logits, check_logits, gather_targets
from reloss.surrogates.classification import ClassificationReLoss
from reloss.surrogates.expected.base import ExpectedLoss, ExpectedMetric
from reloss.surrogates.expected.sums import log_of_sum

LARGEST = 1e4  # bounds the size of logits: the logarithms stay finite where a logit is infinite
NEVER = -1e9  # logit of a class that is no longer drawn


class ExpectedClassification(ExpectedLoss):
    """A loss over what the accuracies of class logits are in expectation, for each example.

    Takes logits [B, C] and classes [B] from 0 to C - 1.

    Args:
        metric: None for a network to be fitted, or `accuracy` or `top5_accuracy` for its expectation; see
            `log_top_k` for what is computed for the latter.
        width: units of the hidden layers.
        scale: see `SurrogateLoss`.

    Raises:
        ValueError: there is no formula for the metric, or a width or scale is not positive.
    """

    decomposes = True
    takes_logits = True
    FEATURES = ("log_p", "log_beats_rival", "log_top_5")
    EXPECTED: ClassVar[Mapping[str, ExpectedMetric]] = {
        "accuracy": lambda features: features[..., 0].exp(),
        "top5_accuracy": lambda features: features[..., 2].exp(),
    }

    def features(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the features of each example: logits [N, B, C], classes [N, B] -> [N, B, 3].

        Raises:
            ValueError: the shapes do not agree, or the targets have a floating dtype.
        """
        check_logits(outputs, targets)
        return classification_features(outputs, targets)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError unless these are logits [N, B, C] and classes [N, B] from 0 to C - 1."""
        check_class_logits(outputs, targets)

    @staticmethod
    def ordinary_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each item: outputs [N, B, C], targets [N, B] -> [N]."""
        return ClassificationReLoss.ordinary_loss(outputs, targets)


def classification_features(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return three logarithms for each example, in the order of `ExpectedClassification.FEATURES`.

    Each rises with the target's logit and does not rise with any other.

    Args:
        outputs: [..., C] logits in float32 or float64, C at least 2; clamped to +-1e4.
        targets: [...] classes.

    Returns:
        [..., 3], at most 0: log p of the target; the logarithm of its probability against its strongest rival alone,
        a margin that flattens once the target leads; and the logarithm of the soft top-5 accuracy, see `log_top_k`.
    """
    target, rivals = split_rivals(outputs.clamp(-LARGEST, LARGEST), targets, 4)
    hits = log_hits(target, rivals)
    return torch.stack((hits[..., 0], F.logsigmoid(target - rivals[..., 0]), hits.logsumexp(-1).clamp(max=0)), -1)


def log_top_k(outputs: Tensor, targets: Tensor, k: int) -> Tensor:
    """Return the logarithm of a smooth top-k accuracy of each example.

    k classes are drawn without replacement (the Plackett-Luce model). Draw i takes the target with its softmax
    probability among the classes that remain; each draw that misses it takes its strongest remaining rival. The
    result is the probability of a hit within k draws. It is the target's probability for k = 1. For k > 1 the exact
    probability is a sum over C^(k - 1) orders of rivals, and this is its largest possible value, since no other rival
    leaves the target a larger share. It tends to the hard top-k as logits grow, as the exact one does.

    Args:
        outputs: [..., C] finite logits.
        targets: [...] classes.
        k: number of draws, at least 1.

    Returns:
        [...], at most 0; 0 if C <= k. Rises with the target's logit and does not rise with any other.
    """
    return log_hits(*split_rivals(outputs, targets, k - 1)).logsumexp(-1).clamp(max=0)


def split_rivals(outputs: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the logit of each target, and those of its rivals, the strongest ones apart.

    Args:
        outputs: [..., C] finite logits.
        targets: [...] classes.
        count: number of rivals to return one by one; all C - 1 if there are fewer.

    Returns:
        target: [...].
        rivals: [..., count + 1], the largest first. The last entry is the log-sum-exp of all other rivals, `NEVER` if
            there are none.
    """
    target = gather_targets(outputs, targets)
    others = outputs.scatter(-1, targets.long()[..., None], NEVER)
    strongest, where = others.topk(min(count, outputs.shape[-1] - 1), dim=-1)
    rest = log_of_sum(others.scatter(-1, where, NEVER))[..., None]
    return target, torch.cat((strongest, rest), -1)


def log_hits(target: Tensor, rivals: Tensor) -> Tensor:
    """Return the log-probability that the target is drawn first, second, ..., if misses take the strongest rivals.

    Args:
        target: [...] logits.
        rivals: [..., K] logits of the rivals in the order in which misses take them; the last stands for all others.

    Returns:
        [..., K].
    """
    # Before draw i: all rivals that no draw has taken. Unlike `logcumsumexp` and `logaddexp`, `logsumexp` has finite
    # second derivatives for logits that are far apart.
    remaining = torch.stack([rivals[..., draw:].logsumexp(-1) for draw in range(rivals.shape[-1])], -1)
    total = torch.stack((remaining, target[..., None].expand_as(remaining)), -1).logsumexp(-1)
    misses = (remaining - total).cumsum(-1)
    return target[..., None] - total + F.pad(misses[..., :-1], (1, 0))
