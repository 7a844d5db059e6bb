"""Logarithms of sums of probabilities, computed fast.

Expected counts are sums of probabilities, and their logarithms stay exact where the probabilities round to 0. On a CPU,
exp takes ten times as long where it underflows, so terms that are too small to matter are raised to a small one first.
"""

from torch import Tensor

LOG_OF_NOTHING = -1e9  # logarithm of an empty sum; far below that of every other sum
SMALLEST_SHARE = 60  # a term may be smaller than the largest by this factor, as a logarithm; below, it is rounding


def log_of_sum(logs: Tensor, counted: Tensor | None = None) -> Tensor:
    """Return log(sum(exp(logs))) over the last axis: [..., B] -> [...].

    Args:
        logs: [..., B], finite or -inf.
        counted: which terms count; broadcasts with `logs`. All by default.

    Returns:
        [...]; about LOG_OF_NOTHING, without a gradient, if nothing counts.
    """
    if not logs.shape[-1]:
        return logs.sum(-1) + LOG_OF_NOTHING
    if counted is not None:
        logs = logs.masked_fill(~counted, LOG_OF_NOTHING)
    return logs.clamp(min=logs.detach().amax(-1, keepdim=True) - SMALLEST_SHARE).logsumexp(-1)
