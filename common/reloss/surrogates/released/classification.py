"""The release's network for classification: two parts of two layers each, over the probability of the target.

Its inputs and output are choices of `ClassificationReLoss`. The release takes the probability, which passes no gradient
where it is 0 or 1, and the absolute value of the output, which folds a curve that crosses zero: the loss can then rise
towards the right answer.

Source: the `ReLoss` of classification in hunto/ReLoss.
"""

from torch import nn


def two_part_network(width: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the two parts, `logits_fcs` and `loss` in the release: one number -> `width` units -> one number."""
    first = nn.Sequential(nn.Linear(1, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
    second = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))
    return first, second
